// Vectors that vectors.py wrote: what the Python reference kernels compute, and the core held to it.
#pragma once

#include <cstdint>
#include <cstring>
#include <fstream>
#include <vector>

#include "check_linear.h"
#include "report.h"

struct Case {
  int32_t kind;
  std::vector<std::vector<char>> arrays;

  // The i-th array as numbers; its memory is aligned as `new` aligns.
  template <class T>
  const T* at(size_t i) const {
    return arrays[i].empty() ? nullptr : reinterpret_cast<const T*>(arrays[i].data());
  }
  template <class T>
  int64_t count(size_t i) const {
    return static_cast<int64_t>(arrays[i].size() / sizeof(T));
  }
};

inline std::vector<Case> read_cases(const char* path) {
  std::ifstream file(path, std::ios::binary);
  const auto number = [&file] {
    int32_t value = 0;
    file.read(reinterpret_cast<char*>(&value), sizeof value);
    return value;
  };
  std::vector<Case> cases(file ? number() : 0);
  for (Case& each : cases) {
    each.kind = number();
    each.arrays.resize(number());
    for (std::vector<char>& array : each.arrays) {
      array.resize(number());
      file.read(array.data(), static_cast<std::streamsize>(array.size()));
    }
  }
  return cases;
}

namespace check {

inline void rows_vector(const Isa& isa, Report& report, const Case& given) {
  const int32_t *shape = given.at<int32_t>(0), *s = given.at<int32_t>(1);
  const RowScheme scheme{s[0] != 0, s[1], s[2], s[3], *given.at<float>(2), s[4]};
  const int64_t m = shape[0], k = shape[1], stride = (k + 3) / 4 * 4;
  std::vector<uint8_t> q(m * stride);
  std::vector<float> scale(m);
  std::vector<int32_t> zero_point(m);
  isa.quantize_rows(given.at<float>(3), m, k, scheme, q.data(), stride, scale.data(), zero_point.data());
  report.equal("vector: rows", q.data(), given.at<uint8_t>(4), m * stride);
  report.equal("vector: scales", scale.data(), given.at<float>(5), m);
  report.equal("vector: zero points", zero_point.data(), given.at<int32_t>(6), m);
}

inline void linear_vector(const Isa& isa, Report& report, const Case& given) {
  const int32_t *shape = given.at<int32_t>(0), *out = given.at<int32_t>(9);
  const int64_t m = shape[0], n = shape[1];
  std::vector<float> y(m * n);
  std::vector<uint8_t> q(m * n);
  Linear op{};
  op.x = given.at<uint8_t>(1), op.x_scale = given.at<float>(2), op.x_zero_point = given.at<int32_t>(3);
  op.depths = (shape[2] + kDepth - 1) / kDepth, op.x_stride = op.depths * kDepth;
  op.per_row = op.per_column = shape[3];
  op.weight = given.at<int8_t>(4), op.weight_scale = given.at<float>(5), op.weight_sum = given.at<int32_t>(6);
  op.n = n, op.bias = given.at<float>(7), op.residual = given.at<float>(8);
  op.activation = static_cast<Activation>(shape[4]);
  op.out_zero_point = out[0], op.out_qmin = out[1], op.out_qmax = out[2], op.out_scale = *given.at<float>(10);
  op.y = y.data();
  isa.linear(op, 0, m, 0, (n + kColumns - 1) / kColumns);
  op.y = nullptr, op.y_q = q.data();
  isa.linear(op, 0, m, 0, (n + kColumns - 1) / kColumns);
  const float* expected = given.at<float>(11);
  if (op.activation <= Activation::gelu) {
    report.equal("vector: linear", y.data(), expected, m * n);
    report.equal("vector: linear, requantized", q.data(), given.at<uint8_t>(12), m * n);
    return;
  }
  for (int64_t i = 0; i < m * n; ++i) {
    const float rest = op.residual ? op.residual[i] : 0.0f;
    report.close("vector: linear", i, y[i], expected[i], 2e-5 * std::fabs(expected[i] - rest) + 2e-7 * std::fabs(rest) + 1e-6);
    report.close("vector: linear, requantized", i, q[i], given.at<uint8_t>(12)[i], 1);
  }
}

inline void weight_only_vector(const Isa& isa, Report& report, const Case& given) {
  const int32_t* shape = given.at<int32_t>(0);
  const int64_t m = shape[0], n = shape[1], k = shape[2], blocks = (n + kColumns - 1) / kColumns;
  std::vector<float> y(m * n);
  WeightOnly op{};
  op.x = given.at<float>(1), op.weight = given.at<int8_t>(2), op.bits = shape[3];
  op.block_bytes = given.count<int8_t>(2) / blocks;
  op.n = n, op.k = k, op.group = shape[4], op.groups = k / shape[4];
  op.scale = given.at<float>(3), op.zero_point = given.at<int8_t>(4), op.bias = given.at<float>(5);
  op.activation = Activation::silu, op.activated = blocks * kColumns, op.y = y.data();
  isa.weight_only(op, 0, m, 0, blocks);
  for (int64_t i = 0; i < m * n; ++i) {
    const float expected = given.at<float>(6)[i];
    report.close("vector: weight_only", i, y[i], expected, 1e-5 * (1 + std::fabs(expected)));
  }
}

inline void embedding_vector(const Isa& isa, Report& report, const Case& given) {
  const int32_t* shape = given.at<int32_t>(0);
  std::vector<float> y(shape[0] * shape[1]);
  isa.embedding(given.at<int8_t>(1), given.at<float>(2), shape[2], given.at<int64_t>(3), shape[0], shape[1], y.data());
  report.equal("vector: embedding", y.data(), given.at<float>(4), static_cast<int64_t>(y.size()));
}

inline void vector(const Isa& isa, Report& report, const Case& given) {
  switch (given.kind) {
    case 0: return rows_vector(isa, report, given);
    case 1: return linear_vector(isa, report, given);
    case 2: return weight_only_vector(isa, report, given);
    default: return embedding_vector(isa, report, given);
  }
}

}  // namespace check

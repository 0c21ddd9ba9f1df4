// Checks of what multiplies and quantizes: every shape that does not fit the blocks, and the ends of every range.
#pragma once

#include <limits>

#include "data.h"
#include "report.h"
#include "scalar.h"

namespace check {

using namespace fxq;

constexpr RowScheme kSchemes[] = {
    {false, 0, 255, 128, 127.5f, 0},    {true, 0, 255, 128, 127.0f, 0},   {false, -128, 127, 0, 127.5f, 128},
    {true, -127, 127, 0, 127.0f, 128},  {true, -128, 127, 0, 127.5f, 128},
};

inline void quantize(const Isa& isa, Report& report) {
  Numbers numbers(1);
  const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
  for (const RowScheme& scheme : kSchemes)
    for (const int64_t k : {0, 1, 3, 8, 17, 31, 32, 33, 64, 77})
      for (const float size : {0.0f, 1e-40f, 1e-30f, 0.3f, 7.0f, 3e38f, nan, infinity}) {
        const int64_t rows = 3, stride = (k + kDepth - 1) / kDepth * kDepth;
        std::vector<float> x = numbers.reals(rows * k, std::isfinite(size) ? size : 1.0f);
        if (!std::isfinite(size) && k > 0) x[k / 2] = x[rows * k - 1] = size;
        std::vector<uint8_t> q(rows * stride, 99), expected(rows * stride, 0), flat(rows * k), all(rows * k);
        std::vector<float> scale(rows), scales(rows);
        std::vector<int32_t> zero_point(rows), zero_points(rows);
        isa.quantize_rows(x.data(), rows, k, scheme, q.data(), stride, scale.data(), zero_point.data());
        for (int64_t r = 0; r < rows; ++r) {
          scalar::qparams(x.data() + r * k, k, scheme, scales[r], zero_points[r]);
          for (int64_t i = 0; i < k; ++i)
            expected[r * stride + i] = scalar::quantize(x[r * k + i], scheme, scales[r], zero_points[r]);
          zero_points[r] += scheme.shift;
        }
        report.equal("quantize_rows", q.data(), expected.data(), rows * stride);
        report.equal("quantize_rows scale", scale.data(), scales.data(), rows);
        report.equal("quantize_rows zero point", zero_point.data(), zero_points.data(), rows);
        isa.quantize_all(x.data(), rows * k, scheme, 0.037f, scheme.middle, flat.data());
        for (int64_t i = 0; i < rows * k; ++i) all[i] = scalar::quantize(x[i], scheme, 0.037f, scheme.middle);
        report.equal("quantize_all", flat.data(), all.data(), rows * k);
      }
}

// A linear with all that it points to.
struct Product {
  int64_t rows, blocks;
  std::vector<uint8_t> x;
  std::vector<int8_t> weight;
  std::vector<float> x_scale, weight_scale, bias, residual, y;
  std::vector<int32_t> x_zero_point, sums;
  Linear op{};

  Product(Numbers& numbers, int64_t rows, int64_t n, int64_t k, bool apart) : rows(rows), blocks((n + 63) / 64) {
    op.n = n;
    op.depths = (k + kDepth - 1) / kDepth;
    op.x_stride = op.depths * kDepth;
    op.per_row = op.per_column = apart;
    x = numbers.whole<uint8_t>(rows * op.x_stride, 0, 255);
    weight.assign(blocks * op.depths * kColumns * kDepth, 0);
    sums.assign(n, 0);
    for (int64_t c = 0; c < n; ++c)
      for (int64_t i = 0; i < k; ++i) {
        const auto value = numbers.whole<int8_t>(1, -128, 127)[0];
        weight[((c / kColumns * op.depths + i / kDepth) * kColumns + c % kColumns) * kDepth + i % kDepth] = value;
        sums[c] += value;
      }
    x_scale = numbers.reals(rows, 0.01f), weight_scale = numbers.reals(n, 0.02f);
    x_zero_point = numbers.whole<int32_t>(rows, 0, 255);
    bias = numbers.reals(n, 3), residual = numbers.reals(rows * n, 2);
    y.assign(rows * n, -77.0f);
    op.x = x.data(), op.weight = weight.data();
    op.x_scale = x_scale.data(), op.weight_scale = weight_scale.data();
    op.x_zero_point = x_zero_point.data(), op.weight_sum = sums.data();
    if (apart) op.bias = bias.data(), op.residual = residual.data(), op.next_weight = weight.data();
    op.out_scale = 0.043f, op.out_zero_point = 17, op.out_qmin = 1, op.out_qmax = 255;
  }
};

// How far an activation's result may be from its value in float64.
inline double bound_of(Activation activation, double y) {
  if (activation == Activation::gelu) return 6e-7 + 5e-7 * std::fabs(y);
  return (activation == Activation::silu ? 2e-6 : 2e-5) * std::fabs(y) + 1e-30;
}

inline void products(const Isa& isa, Report& report, Product& p, Activation activation) {
  Linear& op = p.op;
  op.activation = activation;
  op.y = p.y.data(), op.y_q = nullptr, op.y_half = nullptr;
  isa.linear(op, 0, p.rows, 0, p.blocks);
  const bool exact = activation == Activation::none || activation == Activation::relu;
  for (int64_t r = 0; r < p.rows; ++r)
    for (int64_t c = 0; c < op.n; ++c) {
      const int64_t place = r * op.n + c;
      const double value = scalar::activate(activation, scalar::linear_sum(op, r, c));
      const double y = value + (op.residual ? op.residual[place] : 0.0f);
      const float rounded = static_cast<float>(y);
      if (exact) report.equal("linear", &p.y[place], &rounded, 1);
      else report.close("linear", place, p.y[place], y, bound_of(activation, value) + 1.2e-7 * std::fabs(y));
    }
  std::vector<uint8_t> bytes(p.y.size(), 200), some(p.y.size(), 200), expected;
  std::vector<Half> halves(p.y.size()), narrowed;
  op.y = nullptr, op.y_q = bytes.data();
  isa.linear(op, 0, p.rows, 0, p.blocks);
  op.y_q = nullptr, op.y_half = halves.data();
  isa.linear(op, 0, p.rows, 0, p.blocks);
  for (const float y : p.y) expected.push_back(scalar::requantize(op, y)), narrowed.push_back(scalar::narrow(y));
  report.equal("linear, requantized", bytes.data(), expected.data(), static_cast<int64_t>(bytes.size()));
  report.equal("linear, as bfloat16", halves.data(), narrowed.data(), static_cast<int64_t>(halves.size()));
  // A part of the rows and blocks leaves all others alone.
  op.y_half = nullptr, op.y_q = some.data();
  isa.linear(op, 1, p.rows, p.blocks / 2, p.blocks);
  for (int64_t i = 0; i < static_cast<int64_t>(some.size()); ++i)
    if (i < op.n || i % op.n < p.blocks / 2 * kColumns) expected[i] = 200;
  report.equal("linear, a part", some.data(), expected.data(), static_cast<int64_t>(some.size()));
}

inline void linear(const Isa& isa, Report& report) {
  Numbers numbers(2);
  for (const int64_t rows : {0, 1, 2, 3, 4, 5, 6, 7, 13})
    for (const int64_t n : {1, 64, 130})
      for (const int64_t k : {0, 1, 4, 7, 9, 16, 23, 61}) {
        Product p(numbers, rows, n, k, (rows + n + k) % 2 == 0);
        products(isa, report, p, Activation::none);
        if (k == 23)
          for (const Activation a : {Activation::relu, Activation::gelu, Activation::gelu_tanh, Activation::silu})
            products(isa, report, p, a);
      }
  for (const int64_t k : {0, 3, 7, 61}) {  // rows that share a copy of a block
    Product many(numbers, 29, 130, k, k == 7);
    products(isa, report, many, Activation::relu);
  }
  Product deep(numbers, 3, 3, kDeepest, false);  // sums near the ends of int32, and all of one sign
  for (const int8_t weight : {127, -127}) {
    std::fill(deep.x.begin(), deep.x.end(), weight < 0 ? 0 : 255);
    std::fill(deep.weight.begin(), deep.weight.end(), weight);
    std::fill(deep.sums.begin(), deep.sums.end(), weight * kDeepest);
    std::fill(deep.x_zero_point.begin(), deep.x_zero_point.end(), weight < 0 ? 255 : 0);
    for (int64_t i = 0; i < 3; ++i)  // places beyond the last depth hold no weights
      for (int64_t beyond = kDeepest; beyond < deep.op.depths * kDepth; ++beyond)
        deep.weight[((beyond / kDepth) * kColumns + i) * kDepth + beyond % kDepth] = 0;
    products(isa, report, deep, Activation::none);
  }
}

// Weights of 8 or 4 bits, packed as core.h says, with what they stand for.
inline void weight_only(const Isa& isa, Report& report, int64_t bits, int64_t rows, int64_t k, int64_t group, bool zeros,
                        float size) {
  Numbers numbers(3 + rows + k);
  const int64_t n = 70, blocks = 2, groups = (k + group - 1) / group;
  std::vector<int8_t> packed(blocks * groups * group * kColumns * bits / 8, 0), zero(blocks * groups * kColumns, 0);
  std::vector<float> scale = numbers.reals(blocks * groups * kColumns, 0.02f), x = numbers.reals(rows * k, size);
  std::vector<float> bias = numbers.reals(n, 1), residual = numbers.reals(rows * n, 1), y(rows * n);
  std::vector<int> codes(n * k);
  for (int64_t c = 0; c < n; ++c)
    for (int64_t i = 0; i < k; ++i) {
      const int code = codes[c * k + i] = static_cast<int>(numbers.below(bits == 8 ? 256 : 16)) - (bits == 8 ? 128 : 8);
      const int64_t at = (c / kColumns * groups + i / group) * group, d = i % group;
      if (bits == 8) packed[(at + d) * kColumns + c % kColumns] = static_cast<int8_t>(code);
      else packed[((at / 8 + d / 8) * kColumns + c % kColumns) * 4 + d % 4] |= static_cast<int8_t>((code & 15) << d % 8 / 4 * 4);
    }
  for (int8_t& z : zero) z = static_cast<int8_t>(numbers.below(15) - 7);
  WeightOnly op{x.data(), packed.data(), bits, static_cast<int64_t>(packed.size()) / blocks, n, k, group, groups,
                scale.data(), zeros ? zero.data() : nullptr, bias.data(), residual.data(), Activation::relu, 64, y.data()};
  isa.weight_only(op, 0, rows, 0, blocks);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < n; ++c) {
      double sum = bias[c], terms = std::fabs(bias[c]);
      for (int64_t i = 0; i < k; ++i) {
        const int64_t place = (c / kColumns * groups + i / group) * kColumns + c % kColumns;
        const double term = double{scale[place]} * x[r * k + i];
        sum += term * (codes[c * k + i] - (zeros ? zero[place] : 0));
        terms += std::fabs(term) * (std::abs(codes[c * k + i]) + (zeros ? std::abs(zero[place]) : 0));
      }
      const double expected = scalar::activate(c < 64 ? Activation::relu : Activation::none, sum) + residual[r * n + c];
      report.close("weight_only", r * n + c, y[r * n + c], expected, (k + 8) * 0x1p-24 * (terms + 1));
    }
}

inline void weight_only(const Isa& isa, Report& report) {
  for (const int64_t bits : {8, 4})
    for (const bool zeros : {false, true}) {
      for (const int64_t rows : {1, 2, 3, 4, 5, 6, 9}) weight_only(isa, report, bits, rows, 80, 32, zeros, 1);
      weight_only(isa, report, bits, 2, 24, 24, zeros, 2e37f);
    }
}

}  // namespace check

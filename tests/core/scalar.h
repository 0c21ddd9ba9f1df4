// The arithmetic of the core once more, in plain loops and mostly in float64: what it is checked against.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "core.h"

namespace scalar {

using fxq::Activation, fxq::Attention, fxq::Half, fxq::Linear, fxq::Norm, fxq::Rotary, fxq::RowScheme, fxq::WeightOnly;

inline float clamp(float v, float low, float high) { return std::isnan(v) ? low : std::min(std::max(v, low), high); }

inline uint8_t quantize(float x, const RowScheme& s, float scale, int32_t zero_point) {
  const float low = static_cast<float>(s.qmin - zero_point), high = static_cast<float>(s.qmax - zero_point);
  const int32_t q = static_cast<int32_t>(std::nearbyint(clamp(x / scale, low, high)));
  return static_cast<uint8_t>(q + zero_point + s.shift);
}

// S and Z of a row, in float32 as the definition is.
inline void qparams(const float* x, int64_t k, const RowScheme& s, float& scale, int32_t& zero_point) {
  float low = 0, high = 0;
  for (int64_t i = 0; i < k; ++i) {
    if (!std::isfinite(x[i])) {
      scale = std::numeric_limits<float>::quiet_NaN();
      zero_point = s.symmetric ? s.middle : s.qmin;
      return;
    }
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
  }
  const float least = 0x1p-120f;
  if (s.symmetric) {
    scale = std::max(-low, high) / s.divisor;
    zero_point = s.middle;
  } else {
    scale = (high / 2 - low / 2) / s.divisor;
    const float z = std::nearbyint(static_cast<float>(s.qmin) - low / std::max(scale, least));
    zero_point = static_cast<int32_t>(clamp(z, static_cast<float>(s.qmin), static_cast<float>(s.qmax)));
  }
  scale = scale == 0 ? 1 : std::max(scale, least);
}

inline double activate(Activation activation, double x) {
  switch (activation) {
    case Activation::none: return x;
    case Activation::relu: return x > 0 ? x : 0 * x;
    case Activation::gelu: return x / 2 * std::erfc(-x / std::sqrt(2.0));
    case Activation::gelu_tanh: return x / (1 + std::exp(-2 * 0.7978845608028654 * (x + 0.044715 * x * x * x)));
    case Activation::silu: return x / (1 + std::exp(-x));
  }
  return x;
}

// Σ_k x·w − Z·Σ_k w times the scales, plus the bias, rounded once: exact but for that.
inline float linear_sum(const Linear& op, int64_t row, int64_t column) {
  int64_t sum = 0;
  for (int64_t k = 0; k < op.depths * fxq::kDepth; ++k) {
    const int64_t place = ((column / fxq::kColumns * op.depths + k / fxq::kDepth) * fxq::kColumns + column % fxq::kColumns);
    sum += op.x[row * op.x_stride + k] * op.weight[place * fxq::kDepth + k % fxq::kDepth];
  }
  sum -= int64_t{op.x_zero_point[row * op.per_row]} * op.weight_sum[column];
  const float scale = op.x_scale[row * op.per_row] * op.weight_scale[column * op.per_column];
  return std::fma(static_cast<float>(static_cast<int32_t>(sum)), scale, op.bias ? op.bias[column] : 0.0f);
}

inline uint8_t requantize(const Linear& op, float y) {
  const float low = static_cast<float>(op.out_qmin - op.out_zero_point);
  const float high = static_cast<float>(op.out_qmax - op.out_zero_point);
  return static_cast<uint8_t>(static_cast<int32_t>(std::nearbyint(clamp(y / op.out_scale, low, high))) + op.out_zero_point);
}

inline Half narrow(float y) {
  uint32_t bits;
  std::memcpy(&bits, &y, sizeof bits);
  if (std::isnan(y)) return 0x7FC0;
  return static_cast<Half>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

inline float widen(Half h) {
  const uint32_t bits = uint32_t{h} << 16;
  float y;
  std::memcpy(&y, &bits, sizeof y);
  return y;
}

inline std::vector<double> norm(const Norm& op, const float* x) {
  double mean = 0, squares = 0;
  for (int64_t i = 0; i < op.d; ++i) mean += op.rms ? 0 : x[i];
  mean /= op.d;
  for (int64_t i = 0; i < op.d; ++i) squares += (x[i] - mean) * (x[i] - mean);
  std::vector<double> y(op.d);
  for (int64_t i = 0; i < op.d; ++i)
    y[i] = (x[i] - mean) / std::sqrt(squares / op.d + op.eps) * (op.weight ? op.weight[i] : 1) + (op.bias ? op.bias[i] : 0);
  return y;
}

// The scores of one query over all keys of its sequence, −inf where it sees nothing; then what it reads of the values.
template <class Read>
inline std::vector<double> attend(const Attention& op, int64_t sequence, int64_t head, int64_t query, Read read) {
  const int64_t start = op.offsets ? op.offsets[sequence] : 0, batch = op.offsets ? 0 : sequence;
  const int64_t keys = op.offsets ? op.offsets[sequence + 1] - start : op.keys, kv = head / (op.heads / op.kv_heads);
  const auto row = [&](const int64_t* stride, int64_t place, int64_t h) {
    return batch * stride[0] + (start + place) * stride[1] + h * stride[2];
  };
  std::vector<double> scores(keys, -HUGE_VAL), y(op.features, 0.0);
  double top = -HUGE_VAL, sum = 0;
  for (int64_t t = 0; t < keys; ++t) {
    if (op.causal && t > query + op.diagonal) continue;
    if (op.padding && !op.padding[sequence * op.padding_stride[0] + t * op.padding_stride[1]]) continue;
    if (op.window && t <= query + op.diagonal - op.window) continue;
    const auto place = [&](const int64_t* m) { return sequence * m[0] + head * m[1] + query * m[2] + t * m[3]; };
    if (op.keep && !op.keep[place(op.keep_stride)]) continue;
    double score = 0;
    for (int64_t d = 0; d < op.features; ++d)
      score += read(op.q, row(op.q_stride, query, head) + d) * read(op.k, row(op.k_stride, t, kv) + d);
    score *= op.scale;
    if (op.cap != 0) score = op.cap * std::tanh(score / op.cap);
    scores[t] = score + (op.bias ? op.bias[place(op.bias_stride)] : 0);
    top = std::max(top, scores[t]);
  }
  if (top == -HUGE_VAL) return y;
  for (double& score : scores) sum += score = std::exp(score - top);
  for (int64_t t = 0; t < keys; ++t)
    for (int64_t d = 0; d < op.features; ++d) y[d] += scores[t] / sum * read(op.v, row(op.v_stride, t, kv) + d);
  return y;
}

}  // namespace scalar

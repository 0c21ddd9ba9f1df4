// Quantizing float rows. Included inside the namespace of an instruction set, after its vector type V.
#pragma once

constexpr float kSmallestScale = 0x1p-120f;  // as fxquant/numerics.py

// NaN becomes `low`, as it does in the vector code.
inline float clamp(float v, float low, float high) { return v > high ? high : v > low ? v : low; }

// The range of a row, zero included; NaN where the row holds NaN or an infinity, which minima alone would pass over.
inline void row_range(const float* x, int64_t k, float& low, float& high) {
  constexpr int32_t infinity = 0x7f800000;
  V::F least = V::set(0.0f), greatest = V::set(0.0f);
  V::I largest = V::seti(0);  // |x| as an integer, which orders as the floats do, with NaN beyond infinity
  int64_t i = 0;
  for (; i + V::lanes <= k; i += V::lanes) {
    const V::F v = V::load(x + i);
    least = V::min(least, v);
    greatest = V::max(greatest, v);
    largest = V::maxi(largest, V::andi(V::bits(v), V::seti(0x7fffffff)));
  }
  low = V::least(least);
  high = V::greatest(greatest);
  bool finite = V::greatesti(largest) < infinity;
  for (; i < k; ++i) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
    finite &= std::isfinite(x[i]);
  }
  if (!finite) low = high = std::nanf("");
}

// S and Z as fxquant/numerics.py computes them, operation by operation.
inline void row_qparams(float low, float high, const RowScheme& scheme, float& scale, int32_t& zero_point) {
  if (scheme.symmetric) {
    scale = (-low > high ? -low : high) / scheme.divisor;
    zero_point = scheme.middle;
  } else {
    scale = (high / 2 - low / 2) / scheme.divisor;
    const float floor = scale > kSmallestScale ? scale : kSmallestScale;
    const float z = std::nearbyint(static_cast<float>(scheme.qmin) - low / floor);
    zero_point = static_cast<int32_t>(
        clamp(z, static_cast<float>(scheme.qmin), static_cast<float>(scheme.qmax)));
  }
  scale = scale == 0 ? 1.0f : scale < kSmallestScale ? kSmallestScale : scale;
}

// x/S correctly rounded, as a division gives it, from r = 1/S in a third of the time. Source: Markstein 1990, "Computation
// of elementary functions on the IBM RISC System/6000 processor", theorem 8. Where |x| ≥ S/4 the remainder x − q·S is a
// multiple of 2⁻⁴⁸·S, so that it is exact, as the theorem wants it, for S ≥ kExactScale; below, x/S rounds to zero.
constexpr float kExactScale = 0x1p-100f;
inline V::F divide(V::F x, V::F s, V::F r) {
  const V::F q = V::mul(x, r);
  return V::fma(V::fnma(q, s, x), r, q);
}

// q = clamp(round(x / S) + Z, qmin, qmax) + shift. The quotient is clamped before it is rounded, which is the same
// since the bounds are whole numbers, and keeps the conversion in range.
inline void quantize_span(const float* x, int64_t k, const RowScheme& scheme, float scale, int32_t zero_point,
                          uint8_t* q) {
  const float low = static_cast<float>(scheme.qmin - zero_point), high = static_cast<float>(scheme.qmax - zero_point);
  const int32_t offset = zero_point + scheme.shift;
  const V::F s = V::set(scale), least = V::set(low), greatest = V::set(high);
  const V::I add = V::seti(offset);
  int64_t i = 0;
  for (; i + V::lanes <= k; i += V::lanes) {
    const V::F v = V::min(V::max(V::div(V::load(x + i), s), least), greatest);
    V::store_bytes(q + i, V::addi(V::round(v), add));
  }
  for (; i < k; ++i) {
    const float v = clamp(x[i] / scale, low, high);
    q[i] = static_cast<uint8_t>(static_cast<int32_t>(std::nearbyint(v)) + offset);
  }
}

// The same for a row whose own range gave the scale, in all 256 values: nothing leaves the range of an integer then, and
// the narrowing to bytes clamps.
inline void quantize_whole(const float* x, int64_t k, const RowScheme& scheme, float scale, int32_t zero_point,
                           uint8_t* q) {
  const V::F s = V::set(scale), r = V::set(1.0f / scale);
  const V::I add = V::seti(zero_point + scheme.shift - 128);
  const auto lanes = [&](const float* p) { return V::addi(V::round(divide(V::load(p), s, r)), add); };
  constexpr int64_t n = V::lanes;
  int64_t i = 0;
  for (; i + 4 * n <= k; i += 4 * n)
    V::store_saturated(q + i, lanes(x + i), lanes(x + i + n), lanes(x + i + 2 * n), lanes(x + i + 3 * n));
  quantize_span(x + i, k - i, scheme, scale, zero_point, q + i);
}

inline void quantize_ranged(const float* x, int64_t k, const RowScheme& scheme, float scale, int32_t zero_point,
                            uint8_t* q) {
  const bool whole = scheme.qmax - scheme.qmin == 255;
  (whole && scale >= kExactScale ? quantize_whole : quantize_span)(x, k, scheme, scale, zero_point, q);
}

inline void quantize_rows(const float* x, int64_t rows, int64_t k, const RowScheme& scheme, uint8_t* q, int64_t stride,
                          float* scale, int32_t* zero_point) {
  for (int64_t r = 0; r < rows; ++r) {
    float low, high;
    int32_t z;
    row_range(x + r * k, k, low, high);
    row_qparams(low, high, scheme, scale[r], z);
    quantize_ranged(x + r * k, k, scheme, scale[r], z, q + r * stride);
    for (int64_t i = k; i < stride; ++i) q[r * stride + i] = 0;
    zero_point[r] = z + scheme.shift;
  }
}

inline void quantize_all(const float* x, int64_t count, const RowScheme& scheme, float scale, int32_t zero_point,
                         uint8_t* q) {
  quantize_span(x, count, scheme, scale, zero_point, q);
}

inline void embedding(const int8_t* table, const float* scale, int64_t per_row, const int64_t* index, int64_t count,
                      int64_t d, float* y) {
  for (int64_t r = 0; r < count; ++r, y += d) {
    const int8_t* row = table + index[r] * d;
    const float s = scale[index[r] * per_row];
    int64_t i = 0;
    for (; i + V::lanes <= d; i += V::lanes) V::store(y + i, V::mul(V::bytes(row + i), V::set(s)));
    for (; i < d; ++i) y[i] = static_cast<float>(row[i]) * s;
  }
}

// Normalization over rows, and sums and products of rows. Included inside the namespace of an instruction set, after V.
#pragma once

// Σ f(x[i]) over a row, in two chains so that additions overlap; the last few values one by one.
template <class Vector, class Scalar>
inline float row_sum(const float* x, int64_t d, Vector vector, Scalar scalar) {
  V::F even = V::set(0.0f), odd = V::set(0.0f);
  int64_t i = 0;
  for (; i + 2 * V::lanes <= d; i += 2 * V::lanes) {
    even = vector(V::load(x + i), even);
    odd = vector(V::load(x + i + V::lanes), odd);
  }
  for (; i + V::lanes <= d; i += V::lanes) even = vector(V::load(x + i), even);
  float sum = V::sum(V::add(even, odd));
  for (; i < d; ++i) sum = scalar(x[i], sum);
  return sum;
}

// y = (x − mean)/√(variance + eps)·weight + bias, or without mean where `rms`. y may be x.
inline void norm(const Norm& op, const float* x, int64_t rows, float* y) {
  const float d = static_cast<float>(op.d);
  for (int64_t r = 0; r < rows; ++r, x += op.d, y += op.d) {
    const float mean =
        op.rms ? 0.0f
               : row_sum(x, op.d, [](V::F v, V::F s) { return V::add(s, v); }, [](float v, float s) { return s + v; }) / d;
    const V::F m = V::set(mean);
    const float squares = row_sum(
        x, op.d,
        [m](V::F v, V::F s) {
          const V::F e = V::sub(v, m);
          return V::fma(e, e, s);
        },
        [mean](float v, float s) { return s + (v - mean) * (v - mean); });
    const float inverse = 1.0f / std::sqrt(squares / d + op.eps);
    const V::F scale = V::set(inverse);
    int64_t i = 0;
    for (; i + V::lanes <= op.d; i += V::lanes) {
      V::F v = V::mul(V::sub(V::load(x + i), m), scale);
      if (op.weight) v = V::mul(v, V::load(op.weight + i));
      if (op.bias) v = V::add(v, V::load(op.bias + i));
      V::store(y + i, v);
    }
    for (; i < op.d; ++i) {
      const float v = (x[i] - mean) * inverse * (op.weight ? op.weight[i] : 1.0f);
      y[i] = op.bias ? v + op.bias[i] : v;
    }
  }
}

inline void add(const float* a, const float* b, int64_t count, float* y) {
  int64_t i = 0;
  for (; i + V::lanes <= count; i += V::lanes) V::store(y + i, V::add(V::load(a + i), V::load(b + i)));
  for (; i < count; ++i) y[i] = a[i] + b[i];
}

inline void multiply(const float* a, const float* b, int64_t count, float* y) {
  int64_t i = 0;
  for (; i + V::lanes <= count; i += V::lanes) V::store(y + i, V::mul(V::load(a + i), V::load(b + i)));
  for (; i < count; ++i) y[i] = a[i] * b[i];
}

template <Activation A>
inline void activate_all(const float* x, int64_t count, float* y) {
  int64_t i = 0;
  for (; i + V::lanes <= count; i += V::lanes) V::store(y + i, activate<A>(V::load(x + i)));
  if (i == count) return;
  alignas(64) float rest[V::lanes] = {};
  std::memcpy(rest, x + i, (count - i) * sizeof(float));
  V::store(rest, activate<A>(V::load(rest)));
  std::memcpy(y + i, rest, (count - i) * sizeof(float));
}

inline void activate_as(Activation activation, const float* x, int64_t count, float* y) {
  switch (activation) {
    case Activation::relu: return activate_all<Activation::relu>(x, count, y);
    case Activation::gelu: return activate_all<Activation::gelu>(x, count, y);
    case Activation::gelu_tanh: return activate_all<Activation::gelu_tanh>(x, count, y);
    case Activation::silu: return activate_all<Activation::silu>(x, count, y);
    default: return activate_all<Activation::none>(x, count, y);
  }
}

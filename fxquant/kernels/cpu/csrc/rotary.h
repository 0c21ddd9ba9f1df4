// Rotary embeddings of rows of heads. Included inside the namespace of an instruction set, after Lanes and norm.h.
#pragma once

inline void rotate_halves(const float* x, float* y, const float* cos, const float* sin, int64_t rotated) {
  const int64_t half = rotated / 2;
  const V::F zero = V::set(0.0f);
  for (int64_t d = 0; d < half; d += V::lanes) {
    const int64_t n = half - d;
    const V::F a = Lanes::load_first(x + d, n), b = Lanes::load_first(x + half + d, n);
    const V::F ya = V::fma(a, Lanes::load_first(cos + d, n), V::mul(V::sub(zero, b), Lanes::load_first(sin + d, n)));
    const V::F yb = V::fma(b, Lanes::load_first(cos + half + d, n), V::mul(a, Lanes::load_first(sin + half + d, n)));
    Lanes::store_first(y + d, ya, n);
    Lanes::store_first(y + half + d, yb, n);
  }
}

inline void rotate_pairs(const float* x, float* y, const float* cos, const float* sin, int64_t rotated) {
  for (int64_t d = 0; d < rotated; d += 2) {
    const float a = x[d], b = x[d + 1];
    y[d] = std::fma(a, cos[d], -b * sin[d]);  // said, as compilers fuse one product or the other
    y[d + 1] = std::fma(b, cos[d + 1], a * sin[d + 1]);
  }
}

void rotate(const Rotary& op, int64_t sequence, int64_t head) {
  const float* x = op.x + sequence * op.x_stride[0] + head * op.x_stride[2];
  float* y = op.y + sequence * op.y_stride[0] + head * op.y_stride[2];
  const int64_t turned = op.cos ? op.rotated : 0;
  const Norm rms{op.features, op.norm, nullptr, op.eps, true};
  for (int64_t i = 0; i < op.positions; ++i, x += op.x_stride[1], y += op.y_stride[1]) {
    const float* from = x;
    if (op.norm) norm(rms, x, 1, y), from = y;  // pairs are read before they are written
    if (turned) {
      const float* cos = op.cos + sequence * op.cos_stride[0] + i * op.cos_stride[1];
      const float* sin = op.sin + sequence * op.sin_stride[0] + i * op.sin_stride[1];
      (op.interleaved ? rotate_pairs : rotate_halves)(from, y, cos, sin, turned);
    }
    if (from != y) std::memcpy(y + turned, x + turned, (op.features - turned) * sizeof(float));
  }
}

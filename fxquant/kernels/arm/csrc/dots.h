// Strips of 16 columns by dot products of four bytes. Included inside the namespace of an instruction set that defines
// `dot<lane>(acc, weights, x)`, before strips.h.
#pragma once

constexpr int64_t kStrip = 16;

template <int lane, int kCount>
inline void multiply_depth(const Sixteen (&a)[kCount], const int8_t* weight, int32x4_t (&acc)[kCount][4]) {
  const int8x16x4_t w = vld1q_s8_x4(weight);
#pragma GCC unroll 4
  for (int r = 0; r < kCount; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) acc[r][c] = dot<lane>(acc[r][c], w.val[c], a[r]);
}

inline void store_sums(const int32x4_t (&acc)[4], int32_t* out) {
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) vst1q_s32(out + 4 * c, acc[c]);
}

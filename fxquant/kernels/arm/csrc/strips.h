// Tiles of up to four rows by strips of columns. Included inside the namespace of an instruction set that defines
// `Sixteen`, what so many activations are held in, and `sixteen`, which makes it of u8; `kStrip`, the columns of a strip,
// whose sums are four registers a row; `multiply_depth<lane>`, which adds the products of word `lane` of each row's
// activations with the weights of one depth; and `store_sums`.
#pragma once

// Four bytes at p in each word.
inline uint8x16_t four_bytes(const uint8_t* p) {
  uint32_t four;
  std::memcpy(&four, p, sizeof four);
  return vreinterpretq_u8_u32(vdupq_n_u32(four));
}

// Loads do not move over this: left alone the compiler hoists the weights of several depths, and runs out of registers.
inline void in_order() { asm volatile("" ::: "memory"); }

// Sixteen accumulators, four activations and the weights of a depth fit into the 32 registers.
template <int kCount>
inline void strip(const uint8_t* x, int64_t stride, const int8_t* weight, int64_t depths, int32_t* out,
                  const int8_t* ahead) {
  constexpr int64_t step = kColumns * kDepth;
  int32x4_t acc[kCount][4];
  Sixteen a[kCount];
#pragma GCC unroll 4
  for (int r = 0; r < kCount; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) acc[r][c] = vdupq_n_s32(0);
  int64_t d = 0;
  for (; d + 4 <= depths; d += 4, weight += 4 * step) {
    if (ahead)
#pragma GCC unroll 4
      for (int64_t i = 0; i < 4; ++i) __builtin_prefetch(ahead + (d + i) * 64, 0, 2);
#pragma GCC unroll 4
    for (int r = 0; r < kCount; ++r) a[r] = sixteen(vld1q_u8(x + r * stride + d * kDepth));
    multiply_depth<0>(a, weight, acc);
    in_order();
    multiply_depth<1>(a, weight + step, acc);
    in_order();
    multiply_depth<2>(a, weight + 2 * step, acc);
    in_order();
    multiply_depth<3>(a, weight + 3 * step, acc);
  }
  for (; d < depths; ++d, weight += step) {
#pragma GCC unroll 4
    for (int r = 0; r < kCount; ++r) a[r] = sixteen(four_bytes(x + r * stride + d * kDepth));
    multiply_depth<0>(a, weight, acc);
  }
#pragma GCC unroll 4
  for (int r = 0; r < kCount; ++r) store_sums(acc[r], out + r * kColumns);
}

inline void tile_of_four(int64_t rows, const uint8_t* x, int64_t stride, const int8_t* weight, int64_t depths,
                         int32_t* out, Ahead ahead) {
  for (int64_t c = 0; c < kColumns; c += kStrip) {
    const int8_t* w = weight + c * kDepth;
    const int8_t* next = ahead.part(c / kStrip, depths);
    switch (rows) {
      case 1: strip<1>(x, stride, w, depths, out + c, next); break;
      case 2: strip<2>(x, stride, w, depths, out + c, next); break;
      case 3: strip<3>(x, stride, w, depths, out + c, next); break;
      default: strip<4>(x, stride, w, depths, out + c, next); break;
    }
  }
}

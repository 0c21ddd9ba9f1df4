// The matrix-multiply extension: usmmla takes the products of two rows of eight u8 with two columns of eight s8. A packed
// block has four depths of a column together, as dot products take them: many rows are multiplied with a copy of the
// block in which eight are together, which is made once for all of them, few rows with two depths that are interleaved
// on the way.
#include <arm_neon.h>

#include <cmath>
#include <cstring>

#include <initializer_list>
#include <vector>

#include "gelu_table.h"
#include "neon.h"

#if FXQ_HAS_I8MM

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod,i8mm"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod+i8mm")
#endif

namespace fxq {
namespace neon_i8mm_impl {

#include "vec_neon.h"

#include "epilogue.h"

using Sixteen = uint8x16_t;

inline Sixteen sixteen(uint8x16_t x) { return x; }

template <int lane>
inline int32x4_t dot(int32x4_t acc, int8x16_t weights, Sixteen x) {
  return vsudotq_laneq_s32(acc, weights, x, lane);
}

#include "dots.h"

#include "strips.h"

// Two depths of kPairs pairs of rows by 16 columns; an accumulator holds two columns of two rows. The second depth is null
// where the first is the last.
template <int kPairs>
inline void multiply_depths(const uint8x16_t (&a)[kPairs], const int8_t* first, const int8_t* second,
                            int32x4_t (&acc)[kPairs][8]) {
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const int32x4_t even = vreinterpretq_s32_s8(vld1q_s8(first + 16 * c));
    const int32x4_t odd = second ? vreinterpretq_s32_s8(vld1q_s8(second + 16 * c)) : vdupq_n_s32(0);
    const int8x16_t low = vreinterpretq_s8_s32(vzip1q_s32(even, odd));
    const int8x16_t high = vreinterpretq_s8_s32(vzip2q_s32(even, odd));
#pragma GCC unroll 3
    for (int p = 0; p < kPairs; ++p) {
      acc[p][2 * c] = vusmmlaq_s32(acc[p][2 * c], a[p], low);
      acc[p][2 * c + 1] = vusmmlaq_s32(acc[p][2 * c + 1], a[p], high);
    }
    if constexpr (kPairs == 3) in_order();  // which fills all registers
  }
}

// The same of a block in which they are together, to the end.
template <int kPairs>
inline void multiply_paired(const uint8x16_t (&a)[kPairs], const int8_t* weight, int32x4_t (&acc)[kPairs][8]) {
#pragma GCC unroll 8
  for (int c = 0; c < 8; ++c) {
    const int8x16_t w = vld1q_s8(weight + 16 * c);
#pragma GCC unroll 3
    for (int p = 0; p < kPairs; ++p) acc[p][c] = vusmmlaq_s32(acc[p][c], a[p], w);
    if constexpr (kPairs == 3) in_order();
  }
}

// Byte (d, c, i) of [depths/2 rounded up][64][8] is that of depth 8·d + i and column c: what `multiply_paired` reads.
inline void pair_depths(const int8_t* weight, int64_t depths, int8_t* to) {
  constexpr int64_t step = kColumns * kDepth;
  for (int64_t d = 0; d < depths; d += 2, weight += 2 * step)
    for (int64_t c = 0; c < step; c += 16, to += 32) {
      const int32x4_t even = vreinterpretq_s32_s8(vld1q_s8(weight + c));
      const int32x4_t odd = d + 1 < depths ? vreinterpretq_s32_s8(vld1q_s8(weight + step + c)) : vdupq_n_s32(0);
      vst1q_s8(to, vreinterpretq_s8_s32(vzip1q_s32(even, odd)));
      vst1q_s8(to + 16, vreinterpretq_s8_s32(vzip2q_s32(even, odd)));
    }
}

inline void store_pair(int32x4_t left, int32x4_t right, int32_t* first, int32_t* second) {
  const int64x2_t a = vreinterpretq_s64_s32(left), b = vreinterpretq_s64_s32(right);
  vst1q_s32(first, vreinterpretq_s32_s64(vzip1q_s64(a, b)));
  if (second) vst1q_s32(second, vreinterpretq_s32_s64(vzip2q_s64(a, b)));
}

// Six rows by 16 columns keep 24 accumulators, three pairs of activations and two depths of weights in the 32 registers.
// An odd last row is multiplied twice. `kPaired`: the weights are those of `pair_depths`.
template <int kCount, bool kPaired>
inline void pairs(const uint8_t* x, int64_t stride, const int8_t* weight, int64_t depths, int32_t* out,
                  const int8_t* ahead) {
  constexpr int kPairs = (kCount + 1) / 2;
  constexpr int64_t step = kColumns * kDepth;
  const auto row = [&](int r) { return x + (r < kCount ? r : kCount - 1) * stride; };
  int32x4_t acc[kPairs][8];
  uint8x16_t a[kPairs];
#pragma GCC unroll 3
  for (int p = 0; p < kPairs; ++p)
#pragma GCC unroll 8
    for (int c = 0; c < 8; ++c) acc[p][c] = vdupq_n_s32(0);
  int64_t d = 0;
  for (; d + 2 <= depths; d += 2, weight += 2 * step) {
    if (ahead) __builtin_prefetch(ahead + d * 64, 0, 2), __builtin_prefetch(ahead + d * 64 + 64, 0, 2);
#pragma GCC unroll 3
    for (int p = 0; p < kPairs; ++p)
      a[p] = vcombine_u8(vld1_u8(row(2 * p) + d * kDepth), vld1_u8(row(2 * p + 1) + d * kDepth));
    if constexpr (kPaired) multiply_paired(a, weight, acc);
    else multiply_depths(a, weight, weight + step, acc);
  }
  if (d < depths) {
#pragma GCC unroll 3
    for (int p = 0; p < kPairs; ++p)
      a[p] = vcombine_u8(vget_low_u8(four_bytes(row(2 * p) + d * kDepth)),
                         vget_low_u8(four_bytes(row(2 * p + 1) + d * kDepth)));
    if constexpr (kPaired) multiply_paired(a, weight, acc);
    else multiply_depths(a, weight, nullptr, acc);
  }
#pragma GCC unroll 3
  for (int p = 0; p < kPairs; ++p)
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      int32_t* first = out + 2 * p * kColumns + 4 * c;
      store_pair(acc[p][2 * c], acc[p][2 * c + 1], first, 2 * p + 1 < kCount ? first + kColumns : nullptr);
    }
}

template <bool kPaired>
inline void tile(int64_t rows, const uint8_t* x, int64_t stride, const int8_t* weight, int64_t depths, int32_t* out,
                 Ahead ahead) {
  for (int64_t c = 0; c < kColumns; c += 16) {
    const int8_t* w = weight + c * kDepth * (kPaired ? 2 : 1);
    const int8_t* next = ahead.part(c / 16, depths);
    switch (rows) {
      case 1:
        if constexpr (kPaired) pairs<1, true>(x, stride, w, depths, out + c, next);
        else strip<1>(x, stride, w, depths, out + c, next);
        break;
      case 2: pairs<2, kPaired>(x, stride, w, depths, out + c, next); break;
      case 3: pairs<3, kPaired>(x, stride, w, depths, out + c, next); break;
      case 4: pairs<4, kPaired>(x, stride, w, depths, out + c, next); break;
      case 5: pairs<5, kPaired>(x, stride, w, depths, out + c, next); break;
      default: pairs<6, kPaired>(x, stride, w, depths, out + c, next); break;
    }
  }
}

// One block of columns, whose copy is `paired`.
void linear_paired(const Linear& op, int64_t row, int64_t row_end, int64_t block, const int8_t* paired) {
  const auto multiply = [paired](int64_t rows, const uint8_t* x, int64_t stride, const int8_t*, int64_t depths,
                                 int32_t* out, Ahead ahead) { tile<true>(rows, x, stride, paired, depths, out, ahead); };
  linear_with<6>(multiply, op, row, row_end, block, block + 1);
}

void linear_interleaving(const Linear& op, int64_t row, int64_t row_end, int64_t block, int64_t block_end) {
  linear_with<6>(tile<false>, op, row, row_end, block, block_end);
}

}  // namespace neon_i8mm_impl

}  // namespace fxq

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace fxq {

// Rows from which a copy of a block takes fewer instructions than interleaving it anew for every six: 87 a pair of depths
// once, against 32 each time.
constexpr int64_t kCopied = 24;

void linear_neon_i8mm(const Linear& op, int64_t row, int64_t row_end, int64_t block, int64_t block_end) {
  if (row_end - row < kCopied) return neon_i8mm_impl::linear_interleaving(op, row, row_end, block, block_end);
  thread_local std::vector<int8_t> paired;
  const int64_t bytes = op.depths * kColumns * kDepth;
  paired.resize((op.depths + 1) / 2 * 2 * kColumns * kDepth);
  for (int64_t b = block; b < block_end; ++b) {
    Linear part = op;
    if (b + 1 < block_end) part.next_weight = op.weight + (b + 1) * bytes;
    neon_i8mm_impl::pair_depths(op.weight + b * bytes, op.depths, paired.data());
    neon_i8mm_impl::linear_paired(part, row, row_end, b, paired.data());
  }
}

}  // namespace fxq

#endif  // FXQ_HAS_I8MM

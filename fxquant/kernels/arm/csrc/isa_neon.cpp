// NEON as every AArch64 CPU has it: smull makes products of s8, each exact in s16, and sadalp adds pairs of them to s32.
// Activations are moved from u8 to s8, 128 less, and so are their zero points.
#include <arm_neon.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include <initializer_list>
#include <utility>
#include <vector>

#include "gelu_table.h"
#include "neon.h"

namespace fxq {
namespace neon_impl {

#include "vec_neon.h"

#include "rows.h"

#include "epilogue.h"

#include "depthwise.h"

#include "norm.h"

#include "weight_only.h"

#include "lanes_neon.h"

#include "factors.h"

#include "attention.h"

#include "rotary.h"

#include "decode.h"

using Sixteen = int8x16_t;

inline Sixteen sixteen(uint8x16_t x) { return vreinterpretq_s8_u8(veorq_u8(x, vdupq_n_u8(128))); }

constexpr int64_t kStrip = 8;

// An accumulator holds two partial sums for each of two columns. Each product is added on its own: the sum of two would
// overflow s16 where all four factors are −128.
template <int lane, int kCount>
inline void multiply_depth(const Sixteen (&a)[kCount], const int8_t* weight, int32x4_t (&acc)[kCount][4]) {
  const int8x16_t w[2] = {vld1q_s8(weight), vld1q_s8(weight + 16)};
#pragma GCC unroll 4
  for (int r = 0; r < kCount; ++r) {
    const int8x16_t x = vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(a[r]), lane));
#pragma GCC unroll 2
    for (int c = 0; c < 2; ++c) {
      acc[r][2 * c] = vpadalq_s16(acc[r][2 * c], vmull_s8(vget_low_s8(w[c]), vget_low_s8(x)));
      acc[r][2 * c + 1] = vpadalq_s16(acc[r][2 * c + 1], vmull_high_s8(w[c], x));
    }
    // Row by row: left alone the compiler begins all products first, and runs out of registers.
    asm volatile("" : "+w"(acc[r][0]), "+w"(acc[r][1]), "+w"(acc[r][2]), "+w"(acc[r][3]));
  }
}

inline void store_sums(const int32x4_t (&acc)[4], int32_t* out) {
  vst1q_s32(out, vpaddq_s32(acc[0], acc[1]));
  vst1q_s32(out + 4, vpaddq_s32(acc[2], acc[3]));
}

#include "strips.h"

void linear(const Linear& op, int64_t row, int64_t row_end, int64_t block, int64_t block_end) {
  linear_with<4, 128>(tile_of_four, op, row, row_end, block, block_end);
}

}  // namespace neon_impl

const Isa neon = {
    "neon",
    neon_impl::quantize_rows,
    neon_impl::quantize_all,
    neon_impl::row_range,
    neon_impl::row_qparams,
    neon_impl::quantize_ranged,
    neon_impl::depthwise,
    neon_impl::linear,
    neon_impl::embedding,
    neon_impl::norm,
    neon_impl::add,
    neon_impl::multiply,
    neon_impl::activate_as,
    neon_impl::weight_only_with<6>,
    neon_impl::attention,
    neon_impl::rotate,
    neon_impl::decode,
};

}  // namespace fxq

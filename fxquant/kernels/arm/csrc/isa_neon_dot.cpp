// The dot-product extension: sdot takes four s8·s8 products a lane. Activations are moved from u8 to s8, 128 less, and so
// are their zero points.
#include <arm_neon.h>

#include <cmath>
#include <cstring>

#include <initializer_list>

#include "gelu_table.h"
#include "neon.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

namespace fxq {
namespace neon_dot_impl {

#include "vec_neon.h"

#include "epilogue.h"

using Sixteen = int8x16_t;

inline Sixteen sixteen(uint8x16_t x) { return vreinterpretq_s8_u8(veorq_u8(x, vdupq_n_u8(128))); }

template <int lane>
inline int32x4_t dot(int32x4_t acc, int8x16_t weights, Sixteen x) {
  return vdotq_laneq_s32(acc, weights, x, lane);
}

#include "dots.h"

#include "strips.h"

}  // namespace neon_dot_impl

void linear_neon_dot(const Linear& op, int64_t row, int64_t row_end, int64_t block, int64_t block_end) {
  neon_dot_impl::linear_with<4, 128>(neon_dot_impl::tile_of_four, op, row, row_end, block, block_end);
}

}  // namespace fxq

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

// The same 256-bit kernels as isa_avx_vnni.cpp as AVX-512 writes those instructions: for trying them where that is.
#include <cmath>
#include <cstring>
#include <immintrin.h>

#include <initializer_list>

#include "gelu_table.h"
#include "x86.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avx512f,avx512vl,avx512vnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512vl,avx512vnni")
#endif

namespace fxq {
namespace avx512_vl_impl {

#include "vec256.h"

#include "rows.h"

#include "epilogue.h"

inline __m256i dot_bytes(__m256i acc, __m256i x, __m256i w) { return _mm256_dpbusd_epi32(acc, x, w); }

#include "tile_vnni256.h"

}  // namespace avx512_vl_impl

void linear_avx512_vl(const Linear& op, int64_t row, int64_t row_end, int64_t block, int64_t block_end) {
  avx512_vl_impl::linear(op, row, row_end, block, block_end);
}

}  // namespace fxq

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

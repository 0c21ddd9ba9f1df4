// AVX-VNNI: the dot products of VNNI in 256 bits, on CPUs without AVX-512. The rest is AVX2.
#include <cmath>
#include <cstring>
#include <immintrin.h>

#include <initializer_list>

#include "gelu_table.h"
#include "x86.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,avxvnni"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,avxvnni")
#endif

namespace fxq {
namespace avx_vnni_impl {

#include "vec256.h"

#include "rows.h"

#include "epilogue.h"

inline __m256i dot_bytes(__m256i acc, __m256i x, __m256i w) { return _mm256_dpbusd_avx_epi32(acc, x, w); }

#include "tile_vnni256.h"

}  // namespace avx_vnni_impl

void linear_avx_vnni(const Linear& op, int64_t row, int64_t row_end, int64_t block, int64_t block_end) {
  avx_vnni_impl::linear(op, row, row_end, block, block_end);
}

}  // namespace fxq

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

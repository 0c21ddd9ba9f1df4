// AVX2 without VNNI: bytes are widened to s16 and multiplied by vpmaddwd. vpmaddubsw would be faster and saturates.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <immintrin.h>

#include <initializer_list>
#include <utility>
#include <vector>

#include "gelu_table.h"
#include "x86.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

namespace fxq {
namespace avx2_impl {

#include "vec256.h"

#include "rows.h"

#include "epilogue.h"

#include "depthwise.h"

#include "norm.h"

#include "weight_only.h"

#include "lanes256.h"

#include "factors.h"

#include "attention.h"

#include "rotary.h"

#include "decode.h"

inline __m256i broadcast(const uint8_t* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  return _mm256_cvtepu8_epi16(_mm_set1_epi32(four));
}

// Three rows by 16 columns: each accumulator holds two partial sums for each of four columns.
template <int kCount>
inline void strip(const uint8_t* x, int64_t stride, const int8_t* weight, int64_t depths, int32_t* out,
                  const int8_t* ahead) {
  __m256i acc[kCount][4];
#pragma GCC unroll 3
  for (int r = 0; r < kCount; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) acc[r][c] = _mm256_setzero_si256();
  for (int64_t d = 0; d < depths; ++d, weight += 256) {
    if (ahead) __builtin_prefetch(ahead + d * 64, 0, 2);
    __m256i a[kCount];
#pragma GCC unroll 3
    for (int r = 0; r < kCount; ++r) a[r] = broadcast(x + r * stride + d * kDepth);
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const __m256i w = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weight + 16 * c)));
#pragma GCC unroll 3
      for (int r = 0; r < kCount; ++r) acc[r][c] = _mm256_add_epi32(acc[r][c], _mm256_madd_epi16(a[r], w));
    }
  }
#pragma GCC unroll 3
  for (int r = 0; r < kCount; ++r)
#pragma GCC unroll 2
    for (int c = 0; c < 4; c += 2) {
      // hadd pairs within 128-bit halves; 0xD8 puts the columns back in order.
      const __m256i sums = _mm256_permute4x64_epi64(_mm256_hadd_epi32(acc[r][c], acc[r][c + 1]), 0xD8);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + r * kColumns + c * 4), sums);
    }
}

inline void tile(int64_t rows, const uint8_t* x, int64_t stride, const int8_t* weight, int64_t depths, int32_t* out,
                 Ahead ahead) {
  for (int64_t c = 0; c < kColumns; c += 16) {
    const int8_t* w = weight + c * kDepth;
    const int8_t* next = ahead.part(c / 16, depths);
    switch (rows) {
      case 1: strip<1>(x, stride, w, depths, out + c, next); break;
      case 2: strip<2>(x, stride, w, depths, out + c, next); break;
      default: strip<3>(x, stride, w, depths, out + c, next); break;
    }
  }
}

void linear(const Linear& op, int64_t row, int64_t row_end, int64_t block, int64_t block_end) {
  linear_with<3>(tile, op, row, row_end, block, block_end);
}

}  // namespace avx2_impl

const Isa avx2 = {
    "avx2",
    avx2_impl::quantize_rows,
    avx2_impl::quantize_all,
    avx2_impl::row_range,
    avx2_impl::row_qparams,
    avx2_impl::quantize_ranged,
    avx2_impl::depthwise,
    avx2_impl::linear,
    avx2_impl::embedding,
    avx2_impl::norm,
    avx2_impl::add,
    avx2_impl::multiply,
    avx2_impl::activate_as,
    avx2_impl::weight_only_with<4>,
    avx2_impl::attention,
    avx2_impl::rotate,
    avx2_impl::decode,
};

}  // namespace fxq

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

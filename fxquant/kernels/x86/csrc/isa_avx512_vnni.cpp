// AVX-512 VNNI: vpdpbusd takes four u8·s8 products a lane, without saturating.
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
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")
#endif

namespace fxq {
namespace avx512_vnni_impl {

#include "vec512.h"

#include "rows.h"

#include "epilogue.h"

#include "depthwise.h"

#include "norm.h"

#include "weight_only.h"

#include "lanes512.h"

#include "factors.h"

#include "attention.h"

#include "rotary.h"

#include "decode.h"

inline __m512i broadcast(const uint8_t* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  return _mm512_set1_epi32(four);
}

// Six rows by 64 columns keep 24 accumulators, four weights and a broadcast in the 32 registers.
template <int kCount>
inline void tile_of(const uint8_t* x, int64_t stride, const int8_t* weight, int64_t depths, int32_t* out,
                    Ahead ahead) {
  __m512i acc[kCount][4];
#pragma GCC unroll 6
  for (int r = 0; r < kCount; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) acc[r][c] = _mm512_setzero_si512();
  for (int64_t d = 0; d < depths; ++d, weight += 256) {
    for (int64_t line = 0; line < ahead.lines; ++line, ahead.from += 64) __builtin_prefetch(ahead.from, 0, 2);
    __m512i w0 = _mm512_loadu_si512(weight), w1 = _mm512_loadu_si512(weight + 64);
    __m512i w2 = _mm512_loadu_si512(weight + 128), w3 = _mm512_loadu_si512(weight + 192);
    // Left alone the compiler reads the weights from memory again for each row, and loads become the limit.
    asm("" : "+v"(w0), "+v"(w1), "+v"(w2), "+v"(w3));
#pragma GCC unroll 6
    for (int r = 0; r < kCount; ++r) {
      const __m512i a = broadcast(x + r * stride + d * kDepth);
      acc[r][0] = _mm512_dpbusd_epi32(acc[r][0], a, w0);
      acc[r][1] = _mm512_dpbusd_epi32(acc[r][1], a, w1);
      acc[r][2] = _mm512_dpbusd_epi32(acc[r][2], a, w2);
      acc[r][3] = _mm512_dpbusd_epi32(acc[r][3], a, w3);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kCount; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) _mm512_store_si512(out + r * kColumns + c * 16, acc[r][c]);
}

inline void tile(int64_t rows, const uint8_t* x, int64_t stride, const int8_t* weight, int64_t depths, int32_t* out,
                 Ahead ahead) {
  switch (rows) {
    case 1: return tile_of<1>(x, stride, weight, depths, out, ahead);
    case 2: return tile_of<2>(x, stride, weight, depths, out, ahead);
    case 3: return tile_of<3>(x, stride, weight, depths, out, ahead);
    case 4: return tile_of<4>(x, stride, weight, depths, out, ahead);
    case 5: return tile_of<5>(x, stride, weight, depths, out, ahead);
    default: return tile_of<6>(x, stride, weight, depths, out, ahead);
  }
}

void linear(const Linear& op, int64_t row, int64_t row_end, int64_t block, int64_t block_end) {
  linear_with<6>(tile, op, row, row_end, block, block_end);
}

}  // namespace avx512_vnni_impl

const Isa avx512_vnni = {
    "avx512_vnni",
    avx512_vnni_impl::quantize_rows,
    avx512_vnni_impl::quantize_all,
    avx512_vnni_impl::row_range,
    avx512_vnni_impl::row_qparams,
    avx512_vnni_impl::quantize_ranged,
    avx512_vnni_impl::depthwise,
    avx512_vnni_impl::linear,
    avx512_vnni_impl::embedding,
    avx512_vnni_impl::norm,
    avx512_vnni_impl::add,
    avx512_vnni_impl::multiply,
    avx512_vnni_impl::activate_as,
    avx512_vnni_impl::weight_only_with<6>,
    avx512_vnni_impl::attention,
    avx512_vnni_impl::rotate,
    avx512_vnni_impl::decode,
};

}  // namespace fxq

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

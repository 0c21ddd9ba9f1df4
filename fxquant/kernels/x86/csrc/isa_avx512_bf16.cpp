// AVX-512 BF16: vdpbf16ps takes two bfloat16 products a lane into float32. Attention and weight-only linears; the rest is
// AVX-512 VNNI's.
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
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")
#endif

namespace fxq {
namespace avx512_bf16_impl {

#include "vec512.h"

#include "rows.h"

#include "epilogue.h"

#include "weight_only.h"

#include "lanes512.h"

#include "weight_only_bf16.h"

#include "factors_bf16.h"

#include "attention.h"

}  // namespace avx512_bf16_impl

void attention_avx512_bf16(const Attention& op, Tasks& tasks, int64_t part) {
  avx512_bf16_impl::attention(op, tasks, part);
}

void weight_only_avx512_bf16(const WeightOnly& op, int64_t row, int64_t row_end, int64_t block, int64_t block_end) {
  using namespace avx512_bf16_impl;
  weight_only_with<6, HalfBytes, HalfNibbles>(op, row, row_end, block, block_end);
}

}  // namespace fxq

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

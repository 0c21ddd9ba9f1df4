// The instruction sets of x86.
#pragma once

#include "core.h"

namespace fxq {

// Attention with bfloat16 factors, for CPUs that have avx512_vnni's instructions and these.
void attention_avx512_bf16(const Attention& op, Tasks& tasks, int64_t part);
void weight_only_avx512_bf16(const WeightOnly& op, int64_t row, int64_t row_end, int64_t block, int64_t block_end);

// The part of an instruction set that differs from a wider one's.
void linear_avx_vnni(const Linear& op, int64_t row, int64_t row_end, int64_t block, int64_t block_end);
void linear_avx512_vl(const Linear& op, int64_t row, int64_t row_end, int64_t block, int64_t block_end);

extern const Isa avx512_vnni;
extern const Isa avx2;

}  // namespace fxq

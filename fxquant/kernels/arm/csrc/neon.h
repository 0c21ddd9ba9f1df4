// The instruction sets of AArch64.
#pragma once

#include "core.h"

namespace fxq {

// The part that differs where the CPU has dot products, and products of matrices.
void linear_neon_dot(const Linear& op, int64_t row, int64_t row_end, int64_t block, int64_t block_end);
void linear_neon_i8mm(const Linear& op, int64_t row, int64_t row_end, int64_t block, int64_t block_end);

extern const Isa neon;

}  // namespace fxq

// The instruction sets of AArch64.
#pragma once

#include "core.h"

namespace fxq {

// The part that differs where the CPU has dot products, and products of matrices.
void linear_neon_dot(const Linear& op, int64_t row, int64_t row_end, int64_t block, int64_t block_end);
void linear_neon_i8mm(const Linear& op, int64_t row, int64_t row_end, int64_t block, int64_t block_end);

extern const Isa neon;

// Older Clangs have the intrinsics of matrix products only where all of the program may use them: Apple's before 15,
// others before 16.
#if defined(__apple_build_version__) && __clang_major__ < 15 && !defined(__ARM_FEATURE_MATMUL_INT8)
#define FXQ_HAS_I8MM 0
#elif defined(__clang__) && !defined(__apple_build_version__) && __clang_major__ < 16 && \
    !defined(__ARM_FEATURE_MATMUL_INT8)
#define FXQ_HAS_I8MM 0
#else
#define FXQ_HAS_I8MM 1
#endif

}  // namespace fxq

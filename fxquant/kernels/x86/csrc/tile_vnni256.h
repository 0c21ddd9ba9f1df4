// Tiles of 256-bit VNNI registers. Included inside the namespace of an instruction set that defines `dot_bytes`.
#pragma once

inline __m256i broadcast(const uint8_t* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  return _mm256_set1_epi32(four);
}

// Six rows by 16 columns keep 12 accumulators, two weights and a broadcast in the 16 registers.
template <int kCount>
inline void strip(const uint8_t* x, int64_t stride, const int8_t* weight, int64_t depths, int32_t* out,
                  const int8_t* ahead) {
  __m256i acc[kCount][2];
#pragma GCC unroll 6
  for (int r = 0; r < kCount; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_si256();
  for (int64_t d = 0; d < depths; ++d, weight += kColumns * kDepth) {
    if (ahead) __builtin_prefetch(ahead + d * 64, 0, 2);
    const __m256i w0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight));
    const __m256i w1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight + 32));
#pragma GCC unroll 6
    for (int r = 0; r < kCount; ++r) {
      const __m256i a = broadcast(x + r * stride + d * kDepth);
      acc[r][0] = dot_bytes(acc[r][0], a, w0);
      acc[r][1] = dot_bytes(acc[r][1], a, w1);
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kCount; ++r)
#pragma GCC unroll 2
    for (int c = 0; c < 2; ++c)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + r * kColumns + c * 8), acc[r][c]);
}

inline void tile(int64_t rows, const uint8_t* x, int64_t stride, const int8_t* weight, int64_t depths, int32_t* out,
                 Ahead ahead) {
  for (int64_t c = 0; c < kColumns; c += 16) {
    const int8_t* w = weight + c * kDepth;
    const int8_t* next = ahead.part(c / 16, depths);
    switch (rows) {
      case 1: strip<1>(x, stride, w, depths, out + c, next); break;
      case 2: strip<2>(x, stride, w, depths, out + c, next); break;
      case 3: strip<3>(x, stride, w, depths, out + c, next); break;
      case 4: strip<4>(x, stride, w, depths, out + c, next); break;
      case 5: strip<5>(x, stride, w, depths, out + c, next); break;
      default: strip<6>(x, stride, w, depths, out + c, next); break;
    }
  }
}

inline void linear(const Linear& op, int64_t row, int64_t row_end, int64_t block, int64_t block_end) {
  linear_with<6>(tile, op, row, row_end, block, block_end);
}

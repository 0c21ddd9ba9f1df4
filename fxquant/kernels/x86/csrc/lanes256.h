// What attention needs of eight lanes beyond V. Included inside the namespace of an instruction set, after vec256.h.
#pragma once

struct Lanes {
  // All bits set in the first n lanes.
  static __m256i first(int64_t n) {
    const int32_t count = n > 8 ? 8 : static_cast<int32_t>(n);
    return _mm256_cmpgt_epi32(V::seti(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  // The first n lanes from memory, zeros beyond.
  static V::F load_first(const float* p, int64_t n) { return _mm256_maskload_ps(p, first(n)); }
  static V::F load_first(const Half* p, int64_t n) {
    alignas(16) Half some[8] = {};
    if (n < 8) std::memcpy(some, p, n > 0 ? n * sizeof(Half) : 0);
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(n < 8 ? some : p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }
  static void store_first(float* p, V::F v, int64_t n) { _mm256_maskstore_ps(p, first(n), v); }
  // v in the first n lanes, −inf beyond.
  static V::F keep_first(V::F v, int64_t n) { return choose(v, first(n)); }
  // v where the bytes at p are true, −inf elsewhere.
  static V::F keep_true(V::F v, const bool* p) {
    const __m256i bytes = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    return choose(v, _mm256_cmpgt_epi32(bytes, _mm256_setzero_si256()));
  }
  // The float whose exponent is the lowest eight bits of v.
  static V::F exponent(V::F v) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(v), 23)); }
  // Each row's lanes combined by `op`, in one order whatever else is there.
  template <class Op>
  static void fold(const V::F (&r)[8], Op op, float (&out)[8]) {
    __m256 pairs[4], fours[2];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      pairs[i] = op(_mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]), _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]));
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i)
      fours[i] = op(_mm256_shuffle_ps(pairs[2 * i], pairs[2 * i + 1], 0x44),
                    _mm256_shuffle_ps(pairs[2 * i], pairs[2 * i + 1], 0xEE));
    _mm256_storeu_ps(out, op(_mm256_permute2f128_ps(fours[0], fours[1], 0x20),
                             _mm256_permute2f128_ps(fours[0], fours[1], 0x31)));
  }
  // Row i of the eight becomes lane i.
  static void transpose(V::F (&r)[8]) {
    __m256 t[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
      r[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
      r[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xEE);
      r[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
      r[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xEE);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      t[i] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x20);
      t[i + 4] = _mm256_permute2f128_ps(r[i], r[i + 4], 0x31);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) r[i] = t[i];
  }

 private:
  static V::F choose(V::F v, __m256i keep) {
    return _mm256_blendv_ps(V::set(-HUGE_VALF), v, _mm256_castsi256_ps(keep));
  }
};

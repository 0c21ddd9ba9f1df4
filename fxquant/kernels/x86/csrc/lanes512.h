// What attention needs of sixteen lanes beyond V. Included inside the namespace of an instruction set, after vec512.h.
#pragma once

struct Lanes {
  static __mmask16 first(int64_t n) { return n >= 16 ? 0xFFFF : n <= 0 ? 0 : static_cast<__mmask16>((1u << n) - 1); }
  // The first n lanes from memory, zeros beyond.
  static V::F load_first(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
  static V::F load_first(const Half* p, int64_t n) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
  }
  static void store_first(float* p, V::F v, int64_t n) { _mm512_mask_storeu_ps(p, first(n), v); }
  // v in the first n lanes, −inf beyond.
  static V::F keep_first(V::F v, int64_t n) { return _mm512_mask_mov_ps(V::set(-HUGE_VALF), first(n), v); }
  // v where the bytes at p are true, −inf elsewhere.
  static V::F keep_true(V::F v, const bool* p) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return _mm512_mask_mov_ps(V::set(-HUGE_VALF), _mm_test_epi8_mask(bytes, bytes), v);
  }
  // The float whose exponent is the lowest eight bits of v.
  static V::F exponent(V::F v) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(v), 23)); }
  // Each row's lanes combined by `op`, in one order whatever else is there.
  template <class Op>
  static void fold(const V::F (&r)[8], Op op, float (&out)[8]) {
    __m512 pairs[4], fours[2];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      pairs[i] = op(_mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]), _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]));
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i)
      fours[i] = op(pairs_low(pairs[2 * i], pairs[2 * i + 1]), pairs_high(pairs[2 * i], pairs[2 * i + 1]));
    const __m512 low = _mm512_shuffle_f32x4(fours[0], fours[1], 0x88);
    const __m512 high = _mm512_shuffle_f32x4(fours[0], fours[1], 0xDD);
    const __m512 halves = op(low, high);
    const __m512 whole = op(halves, _mm512_shuffle_f32x4(halves, halves, 0xB1));
    _mm_storeu_ps(out, _mm512_castps512_ps128(whole));
    _mm_storeu_ps(out + 4, _mm512_extractf32x4_ps(whole, 2));
  }
  // Row i of the sixteen becomes lane i.
  static void transpose(V::F (&r)[16]) {
    __m512 t[16];
#pragma GCC unroll 8
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
      t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
      r[i] = pairs_low(t[i], t[i + 2]);
      r[i + 1] = pairs_high(t[i], t[i + 2]);
      r[i + 2] = pairs_low(t[i + 1], t[i + 3]);
      r[i + 3] = pairs_high(t[i + 1], t[i + 3]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m512 a = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88), b = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xDD);
      const __m512 c = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88);
      const __m512 d = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xDD);
      t[i] = _mm512_shuffle_f32x4(a, c, 0x88);
      t[i + 8] = _mm512_shuffle_f32x4(a, c, 0xDD);
      t[i + 4] = _mm512_shuffle_f32x4(b, d, 0x88);
      t[i + 12] = _mm512_shuffle_f32x4(b, d, 0xDD);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) r[i] = t[i];
  }

 private:
  static __m512 pairs_low(__m512 a, __m512 b) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  }
  static __m512 pairs_high(__m512 a, __m512 b) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  }
};

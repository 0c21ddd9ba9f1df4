// Sixteen float lanes. Included inside the namespace of an instruction set.
#pragma once

struct V {
  static constexpr int64_t lanes = 16;
  using F = __m512;
  using I = __m512i;
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F v) { _mm512_storeu_ps(p, v); }
  static F set(float v) { return _mm512_set1_ps(v); }
  static I seti(int32_t v) { return _mm512_set1_epi32(v); }
  static I loadi(const int32_t* p) { return _mm512_loadu_si512(p); }
  static F bytes(const int8_t* p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
  }
  // The signed four bits from `bit` on of each of the words at p.
  template <int bit>
  static F nibbles(const int8_t* p) {
    I words = _mm512_loadu_si512(p);
    if constexpr (bit) words = _mm512_srli_epi32(words, bit);
    const F values = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1);
    return _mm512_permutexvar_ps(words, values);  // which looks at the low four bits of each lane
  }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F div(F a, F b) { return _mm512_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F fnma(F a, F b, F c) { return _mm512_fnmadd_ps(a, b, c); }  // c − a·b
  static F absolute(F v) { return _mm512_abs_ps(v); }
  // table[index mod 32]
  static F look_up(const float* table, I index) {
    return _mm512_permutex2var_ps(_mm512_load_ps(table), index, _mm512_load_ps(table + 16));
  }
  static F min(F a, F b) { return _mm512_min_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static I addi(I a, I b) { return _mm512_add_epi32(a, b); }
  // acc + a₀·b₀ + a₁·b₁ over the two halves of each lane, as s16
  static I dot(I acc, I a, I b) { return _mm512_dpwssd_epi32(acc, a, b); }
  static F to_float(I v) { return _mm512_cvtepi32_ps(v); }
  static I round(F v) { return _mm512_cvtps_epi32(v); }  // half to even
  static F power_of_two(I n) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(n, seti(127)), 23)); }
  static void store_bytes(uint8_t* p, I v) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(v));
  }
  // As bfloat16, rounded to the nearest, half to even.
  static void store_half(Half* p, F v) {
    const I x = bits(v), odd = _mm512_and_si512(_mm512_srli_epi32(x, 16), seti(1));
    I y = _mm512_srli_epi32(_mm512_add_epi32(x, _mm512_add_epi32(odd, seti(0x7FFF))), 16);
    y = _mm512_mask_mov_epi32(y, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), seti(0x7FC0));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(y));
  }
  static I bits(F v) { return _mm512_castps_si512(v); }
  static I andi(I a, I b) { return _mm512_and_si512(a, b); }
  static I maxi(I a, I b) { return _mm512_max_epi32(a, b); }
  // The bytes of four vectors, cut off at −128 and 127, with 128 added.
  static void store_saturated(uint8_t* p, I a, I b, I c, I d) {
    const I packed = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
    const I order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);  // they stand by quarters
    const I bytes = _mm512_permutexvar_epi32(order, packed);
    _mm512_storeu_si512(p, _mm512_xor_si512(bytes, _mm512_set1_epi8(-128)));
  }
  static float least(F v) { return _mm512_reduce_min_ps(v); }
  static float greatest(F v) { return _mm512_reduce_max_ps(v); }
  static int32_t greatesti(I v) { return _mm512_reduce_max_epi32(v); }
  static float sum(F v) { return _mm512_reduce_add_ps(v); }
  // Keep v in its register: left alone the compiler may load it again at each use.
  static void hold(F& v) { asm("" : "+v"(v)); }
};

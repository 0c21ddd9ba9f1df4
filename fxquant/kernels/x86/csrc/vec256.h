// Eight float lanes. Included inside the namespace of an instruction set.
#pragma once

struct V {
  static constexpr int64_t lanes = 8;
  using F = __m256;
  using I = __m256i;
  static F load(const float* p) { return _mm256_loadu_ps(p); }
  static void store(float* p, F v) { _mm256_storeu_ps(p, v); }
  static F set(float v) { return _mm256_set1_ps(v); }
  static I seti(int32_t v) { return _mm256_set1_epi32(v); }
  static I loadi(const int32_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static F bytes(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }
  // The signed four bits from `bit` on of each of the words at p.
  template <int bit>
  static F nibbles(const int8_t* p) {
    const I words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm256_cvtepi32_ps(_mm256_srai_epi32(_mm256_slli_epi32(words, 28 - bit), 28));
  }
  static F add(F a, F b) { return _mm256_add_ps(a, b); }
  static F sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F div(F a, F b) { return _mm256_div_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F fnma(F a, F b, F c) { return _mm256_fnmadd_ps(a, b, c); }  // c − a·b
  static F absolute(F v) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v); }
  // table[index mod 32]
  static F look_up(const float* table, I index) {
    return _mm256_i32gather_ps(table, _mm256_and_si256(index, _mm256_set1_epi32(31)), 4);
  }
  static F min(F a, F b) { return _mm256_min_ps(a, b); }
  static F max(F a, F b) { return _mm256_max_ps(a, b); }
  static I addi(I a, I b) { return _mm256_add_epi32(a, b); }
  // acc + a₀·b₀ + a₁·b₁ over the two halves of each lane, as s16
  static I dot(I acc, I a, I b) { return _mm256_add_epi32(acc, _mm256_madd_epi16(a, b)); }
  static F to_float(I v) { return _mm256_cvtepi32_ps(v); }
  static I round(F v) { return _mm256_cvtps_epi32(v); }  // half to even
  static F power_of_two(I n) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, seti(127)), 23)); }
  static void store_bytes(uint8_t* p, I v) {
    // The low byte of each lane: gather within the halves, then put the halves side by side.
    const __m256i low = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                         0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i packed = _mm256_shuffle_epi8(v, low);
    const __m128i both = _mm_unpacklo_epi32(_mm256_castsi256_si128(packed), _mm256_extracti128_si256(packed, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), both);
  }
  // As bfloat16, rounded to the nearest, half to even.
  static void store_half(Half* p, F v) {
    const I x = bits(v), odd = _mm256_and_si256(_mm256_srli_epi32(x, 16), seti(1));
    I y = _mm256_srli_epi32(_mm256_add_epi32(x, _mm256_add_epi32(odd, seti(0x7FFF))), 16);
    y = _mm256_blendv_epi8(y, seti(0x7FC0), _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q)));
    const __m256i halves = _mm256_permute4x64_epi64(_mm256_packus_epi32(y, y), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(halves));
  }
  static I bits(F v) { return _mm256_castps_si256(v); }
  static I andi(I a, I b) { return _mm256_and_si256(a, b); }
  static I maxi(I a, I b) { return _mm256_max_epi32(a, b); }
  // The bytes of four vectors, cut off at −128 and 127, with 128 added.
  static void store_saturated(uint8_t* p, I a, I b, I c, I d) {
    const I packed = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
    const I order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);  // they stand by halves
    const I bytes = _mm256_permutevar8x32_epi32(packed, order);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_xor_si256(bytes, _mm256_set1_epi8(-128)));
  }
  static float least(F v) { return fold(v, _mm_min_ps); }
  static float greatest(F v) { return fold(v, _mm_max_ps); }
  static int32_t greatesti(I v) {
    __m128i half = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    half = _mm_max_epi32(half, _mm_shuffle_epi32(half, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(half, _mm_shuffle_epi32(half, 0xb1)));
  }
  static float sum(F v) { return fold(v, _mm_add_ps); }
  // Keep v in its register: left alone the compiler may load it again at each use.
  static void hold(F& v) { asm("" : "+v"(v)); }

 private:
  template <class Op>
  static float fold(F v, Op op) {
    __m128 half = op(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = op(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(op(half, _mm_shuffle_ps(half, half, 1)));
  }
};

// The factors of attention's products in bfloat16, two a word, with sums in float32. Included after V and Lanes.
#pragma once

struct Factors {
  static constexpr int64_t each = 2;  // factors in a word of 32 bits
  static V::F multiply(V::F a, V::F b, V::F sum) {
    return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
  }
  // Words from `place` on of a row of `count` numbers, zeros beyond; times `scale`.
  static V::F words(const float* row, int64_t place, int64_t count) { return words(row, place, count, V::set(1.0f)); }
  static V::F words(const Half* row, int64_t place, int64_t count) {
    const int64_t left = count - place;
    const __mmask32 first = left >= 32 ? 0xFFFFFFFF : (1u << left) - 1;
    return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(first, row + place));
  }
  template <class Number>
  static V::F words(const Number* row, int64_t place, int64_t count, V::F scale) {
    const int64_t left = count - place;
    return pack(V::mul(Lanes::load_first(row + place, left), scale),
                V::mul(Lanes::load_first(row + place + 16, left - 16), scale));
  }
  // Words of the numbers at `place` of as many rows as a word has factors; a row that is null counts as zeros.
  static V::F across(const float* const* row, int64_t place, int64_t count) {
    const V::F other = row[1] ? Lanes::load_first(row[1] + place, count - place) : V::set(0.0f);
    const __m512i both = _mm512_castps_si512(pack(Lanes::load_first(row[0] + place, count - place), other));
    const __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(both));
    const __m512i high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(both, 1));
    return _mm512_castsi512_ps(_mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
  static V::F across(const Half* const* row, int64_t place, int64_t count) {
    const V::F low = Lanes::load_first(row[0] + place, count - place);
    const V::F high = row[1] ? Lanes::load_first(row[1] + place, count - place) : V::set(0.0f);
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_srli_epi32(V::bits(low), 16), V::bits(high)));
  }
  // 2ʳ for |r| ≤ 1/2, to 1e-4 of it; bfloat16 rounds to 4e-3.
  static V::F power(V::F r) {
    V::F p = V::set(0.0551716685295105f);
    for (const float c : {0.2426111251115799f, 0.6932609677314758f, 0.9999280571937561f}) p = V::fma(p, r, V::set(c));
    return p;
  }
  // Store the words of two vectors, or of one, at place t of a row, and add what they hold to `sum`.
  static V::F store(float* row, int64_t t, V::F a, V::F b, V::F sum) {
    const V::F both = pack(a, b);
    V::store(row + t / 2, both);
    return multiply(both, ones(), sum);
  }
  static V::F store(float* row, int64_t t, V::F a, V::F sum) { return store(row, t, a, V::set(0.0f), sum); }

 private:
  static V::F pack(V::F a, V::F b) { return (V::F)_mm512_cvtne2ps_pbh(b, a); }
  static V::F ones() { return _mm512_castsi512_ps(_mm512_set1_epi32(0x3F803F80)); }
};

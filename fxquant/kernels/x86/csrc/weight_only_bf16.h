// Rows rounded to bfloat16, in which weights of 8 and 4 bits are exact: a product takes two of each, and sums are float32.
// Included inside the namespace of an instruction set, after weight_only.h and Lanes.
#pragma once

struct HalfRows {
  using X = Half;
  static constexpr int64_t each = 2;
  static V::F read(const Half* x) {
    int32_t pair;
    std::memcpy(&pair, x, sizeof pair);
    return _mm512_castsi512_ps(_mm512_set1_epi32(pair));
  }
  static V::F multiply(V::F x, V::F q, V::F sum) { return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)q); }
  // Write the first of `left` values, up to 16, as they stand in v, and return what they became.
  static V::F round(V::F v, int64_t left, Half* to) {
    const __m256i halves = (__m256i)_mm512_cvtneps_pbh(v);
    _mm256_mask_storeu_epi16(to, left >= 16 ? 0xFFFF : (1u << left) - 1, halves);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
  }
};

struct HalfBytes : HalfRows {
  using Exact = Bytes;
  static constexpr int64_t depths = 4;
  template <int i>
  static V::F get(const int8_t* step, int64_t column) {
    const V::F low = V::bytes(step + 2 * i * kColumns + column), high = V::bytes(step + (2 * i + 1) * kColumns + column);
    return _mm512_castsi512_ps(_mm512_or_si512(_mm512_srli_epi32(V::bits(low), 16), V::bits(high)));
  }
  static V::F round(const float* x, int64_t left, Half* to) { return HalfRows::round(Lanes::load_first(x, left), left, to); }
};

// The two halves of a word shifted by 4·i bits begin with the weights of depths (0, 2), (4, 6), (1, 3) and (5, 7).
struct HalfNibbles : HalfRows {
  using Exact = Nibbles;
  static constexpr int64_t depths = 8;
  template <int i>
  static V::F get(const int8_t* step, int64_t column) {
    const __m512i words = _mm512_loadu_si512(step + 4 * column);
    return _mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_srli_epi32(words, 4 * i), table()));
  }
  static V::F round(const float* x, int64_t left, Half* to) {
    const __m512i order = _mm512_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
    return HalfRows::round(_mm512_permutexvar_ps(order, Lanes::load_first(x, left)), left, to);
  }

 private:
  // What four bits mean, by the lowest five bits of an index, of which the fifth is the next weight's.
  static __m512i table() {
    alignas(64) static constexpr Half values[32] = {
        0x0000, 0x3F80, 0x4000, 0x4040, 0x4080, 0x40A0, 0x40C0, 0x40E0,   //  0 …  7
        0xC100, 0xC0E0, 0xC0C0, 0xC0A0, 0xC080, 0xC040, 0xC000, 0xBF80,   // −8 … −1
        0x0000, 0x3F80, 0x4000, 0x4040, 0x4080, 0x40A0, 0x40C0, 0x40E0,   //
        0xC100, 0xC0E0, 0xC0C0, 0xC0A0, 0xC080, 0xC040, 0xC000, 0xBF80};
    return _mm512_load_si512(values);
  }
};

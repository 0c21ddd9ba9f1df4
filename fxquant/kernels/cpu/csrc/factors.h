// The factors of attention's products in float32: one a word. Included after V and Lanes.
#pragma once

struct Factors {
  static constexpr int64_t each = 1;  // factors in a word of 32 bits
  static V::F multiply(V::F a, V::F b, V::F sum) { return V::fma(a, b, sum); }
  // Words from `place` on of a row of `count` numbers, zeros beyond; times `scale`.
  template <class Number>
  static V::F words(const Number* row, int64_t place, int64_t count) {
    return Lanes::load_first(row + place, count - place);
  }
  template <class Number>
  static V::F words(const Number* row, int64_t place, int64_t count, V::F scale) {
    return V::mul(words(row, place, count), scale);
  }
  // Words of the numbers at `place` of as many rows as a word has factors, which is one.
  template <class Number>
  static V::F across(const Number* const* row, int64_t place, int64_t count) {
    return words(row[0], place, count);
  }
  // 2ʳ for |r| ≤ 1/2, to 2e-7 of it.
  static V::F power(V::F r) {
    V::F p = V::set(0.001326472731307149f);
    for (const float c : {0.009671512991189957f, 0.05550733581185341f, 0.24022242426872253f, 0.6931470036506653f, 1.0f})
      p = V::fma(p, r, V::set(c));
    return p;
  }
  // Store the words of two vectors, or of one, at place t of a row, and add what they hold to `sum`.
  static V::F store(float* row, int64_t t, V::F a, V::F b, V::F sum) {
    V::store(row + t, a);
    V::store(row + t + V::lanes, b);
    return V::add(sum, V::add(a, b));
  }
  static V::F store(float* row, int64_t t, V::F a, V::F sum) {
    V::store(row + t, a);
    return V::add(sum, a);
  }
};

// What attention needs of eight lanes beyond V. Included inside the namespace of an instruction set, after vec_neon.h.
#pragma once

struct Lanes {
  // The first n lanes from memory, zeros beyond.
  static V::F load_first(const float* p, int64_t n) {
    if (n >= V::lanes) return V::load(p);
    float some[V::lanes] = {};
    if (n > 0) std::memcpy(some, p, n * sizeof(float));
    return V::load(some);
  }
  static V::F load_first(const Half* p, int64_t n) {
    Half some[V::lanes] = {};
    if (n < V::lanes) std::memcpy(some, p, n > 0 ? n * sizeof(Half) : 0);
    const uint16x8_t halves = vld1q_u16(n < V::lanes ? some : p);
    return {vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(halves), 16)),
            vreinterpretq_f32_u32(vshll_high_n_u16(halves, 16))};
  }
  static void store_first(float* p, V::F v, int64_t n) {
    if (n >= V::lanes) return V::store(p, v);
    float some[V::lanes];
    V::store(some, v);
    if (n > 0) std::memcpy(p, some, n * sizeof(float));
  }
  // v in the first n lanes, −inf beyond.
  static V::F keep_first(V::F v, int64_t n) {
    const int32_t places[V::lanes] = {0, 1, 2, 3, 4, 5, 6, 7};
    const int32x4_t count = vdupq_n_s32(static_cast<int32_t>(n > V::lanes ? V::lanes : n));
    return choose(v, vcgtq_s32(count, vld1q_s32(places)), vcgtq_s32(count, vld1q_s32(places + 4)));
  }
  // v where the bytes at p are true, −inf elsewhere.
  static V::F keep_true(V::F v, const bool* p) {
    const uint16x8_t wide = vmovl_u8(vld1_u8(reinterpret_cast<const uint8_t*>(p)));
    const uint32x4_t low = vmovl_u16(vget_low_u16(wide)), high = vmovl_high_u16(wide);
    return choose(v, vtstq_u32(low, low), vtstq_u32(high, high));
  }
  // The float whose exponent is the lowest eight bits of v.
  static V::F exponent(V::F v) {
    const V::I bits = V::bits(v);
    return {vreinterpretq_f32_s32(vshlq_n_s32(bits.low, 23)), vreinterpretq_f32_s32(vshlq_n_s32(bits.high, 23))};
  }
  // Each row's lanes combined by `op`, in one order whatever else is there.
  template <class Op>
  static void fold(const V::F (&r)[8], Op op, float (&out)[8]) {
    V::F pairs[4], fours[2];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const V::F &a = r[2 * i], &b = r[2 * i + 1];
      pairs[i] = op({vzip1q_f32(a.low, b.low), vzip1q_f32(a.high, b.high)},
                    {vzip2q_f32(a.low, b.low), vzip2q_f32(a.high, b.high)});
    }
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const V::F &a = pairs[2 * i], &b = pairs[2 * i + 1];
      fours[i] = op({first_pairs(a.low, b.low), first_pairs(a.high, b.high)},
                    {last_pairs(a.low, b.low), last_pairs(a.high, b.high)});
    }
    V::store(out, op({fours[0].low, fours[1].low}, {fours[0].high, fours[1].high}));
  }
  // Row i of the eight becomes lane i.
  static void transpose(V::F (&r)[8]) {
    float32x4_t low[8], high[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) low[i] = r[i].low, high[i] = r[i].high;
    transpose_four(low), transpose_four(low + 4);
    transpose_four(high), transpose_four(high + 4);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      r[i] = {low[i], low[i + 4]};
      r[i + 4] = {high[i], high[i + 4]};
    }
  }

 private:
  static V::F choose(V::F v, uint32x4_t low, uint32x4_t high) {
    const float32x4_t beyond = vdupq_n_f32(-HUGE_VALF);
    return {vbslq_f32(low, v.low, beyond), vbslq_f32(high, v.high, beyond)};
  }
  static float32x4_t first_pairs(float32x4_t a, float32x4_t b) {
    return vreinterpretq_f32_f64(vzip1q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
  }
  static float32x4_t last_pairs(float32x4_t a, float32x4_t b) {
    return vreinterpretq_f32_f64(vzip2q_f64(vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b)));
  }
  static void transpose_four(float32x4_t* r) {
    const float32x4_t a = vzip1q_f32(r[0], r[1]), b = vzip2q_f32(r[0], r[1]);
    const float32x4_t c = vzip1q_f32(r[2], r[3]), d = vzip2q_f32(r[2], r[3]);
    r[0] = first_pairs(a, c);
    r[1] = last_pairs(a, c);
    r[2] = first_pairs(b, d);
    r[3] = last_pairs(b, d);
  }
};

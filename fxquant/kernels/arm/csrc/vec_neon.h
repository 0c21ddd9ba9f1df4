// Eight float lanes in two registers: the lanes, and the order of every sum over them, of the 256-bit vectors. Included
// inside the namespace of an instruction set.
#pragma once

struct V {
  static constexpr int64_t lanes = 8;
  struct F {
    float32x4_t low, high;
  };
  struct I {
    int32x4_t low, high;
  };
  static F load(const float* p) { return {vld1q_f32(p), vld1q_f32(p + 4)}; }
  static void store(float* p, F v) { vst1q_f32(p, v.low), vst1q_f32(p + 4, v.high); }
  static F set(float v) { return {vdupq_n_f32(v), vdupq_n_f32(v)}; }
  static I seti(int32_t v) { return {vdupq_n_s32(v), vdupq_n_s32(v)}; }
  static I loadi(const int32_t* p) { return {vld1q_s32(p), vld1q_s32(p + 4)}; }
  static F bytes(const int8_t* p) {
    const int16x8_t wide = vmovl_s8(vld1_s8(p));
    return to_float({vmovl_s16(vget_low_s16(wide)), vmovl_high_s16(wide)});
  }
  // The signed four bits from `bit` on of each of the words at p.
  template <int bit>
  static F nibbles(const int8_t* p) {
    const int32x4_t low = vreinterpretq_s32_s8(vld1q_s8(p)), high = vreinterpretq_s32_s8(vld1q_s8(p + 16));
    return to_float({vshrq_n_s32(vshlq_n_s32(low, 28 - bit), 28), vshrq_n_s32(vshlq_n_s32(high, 28 - bit), 28)});
  }
  static F add(F a, F b) { return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)}; }
  static F sub(F a, F b) { return {vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)}; }
  static F mul(F a, F b) { return {vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)}; }
  static F div(F a, F b) { return {vdivq_f32(a.low, b.low), vdivq_f32(a.high, b.high)}; }
  static F fma(F a, F b, F c) { return {vfmaq_f32(c.low, a.low, b.low), vfmaq_f32(c.high, a.high, b.high)}; }
  static F fnma(F a, F b, F c) {  // c − a·b
    return {vfmsq_f32(c.low, a.low, b.low), vfmsq_f32(c.high, a.high, b.high)};
  }
  static F absolute(F v) { return {vabsq_f32(v.low), vabsq_f32(v.high)}; }
  // table[index mod 32]
  static F look_up(const float* table, I index) {
    uint8x16x4_t first, last;
    for (int i = 0; i < 4; ++i) {
      first.val[i] = vld1q_u8(reinterpret_cast<const uint8_t*>(table + 4 * i));
      last.val[i] = vld1q_u8(reinterpret_cast<const uint8_t*>(table + 16 + 4 * i));
    }
    return {look_up(first, last, index.low), look_up(first, last, index.high)};
  }
  // The lesser, and b where a or b is NaN: so which order keeps a NaN is the same on every CPU.
  static F min(F a, F b) { return {least_of(a.low, b.low), least_of(a.high, b.high)}; }
  static F max(F a, F b) { return {greatest_of(a.low, b.low), greatest_of(a.high, b.high)}; }
  static I addi(I a, I b) { return {vaddq_s32(a.low, b.low), vaddq_s32(a.high, b.high)}; }
  // acc + a₀·b₀ + a₁·b₁ over the two halves of each lane, as s16
  static I dot(I acc, I a, I b) { return {dot(acc.low, a.low, b.low), dot(acc.high, a.high, b.high)}; }
  static F to_float(I v) { return {vcvtq_f32_s32(v.low), vcvtq_f32_s32(v.high)}; }
  static I round(F v) { return {vcvtnq_s32_f32(v.low), vcvtnq_s32_f32(v.high)}; }  // half to even
  static F power_of_two(I n) {
    const int32x4_t bias = vdupq_n_s32(127);
    return {vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n.low, bias), 23)),
            vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(n.high, bias), 23))};
  }
  static void store_bytes(uint8_t* p, I v) {  // the low byte of each lane
    const int16x8_t words = vcombine_s16(vmovn_s32(v.low), vmovn_s32(v.high));
    vst1_u8(p, vreinterpret_u8_s8(vmovn_s16(words)));
  }
  // As bfloat16, rounded to the nearest, half to even.
  static void store_half(Half* p, F v) { vst1q_u16(p, vcombine_u16(half(v.low), half(v.high))); }
  static I bits(F v) { return {vreinterpretq_s32_f32(v.low), vreinterpretq_s32_f32(v.high)}; }
  static I andi(I a, I b) { return {vandq_s32(a.low, b.low), vandq_s32(a.high, b.high)}; }
  static I maxi(I a, I b) { return {vmaxq_s32(a.low, b.low), vmaxq_s32(a.high, b.high)}; }
  // The bytes of four vectors, cut off at −128 and 127, with 128 added.
  static void store_saturated(uint8_t* p, I a, I b, I c, I d) {
    const uint8x16_t sign = vdupq_n_u8(128);
    vst1q_u8(p, veorq_u8(saturated(a, b), sign));
    vst1q_u8(p + 16, veorq_u8(saturated(c, d), sign));
  }
  static float least(F v) { return fold(v, least_of); }
  static float greatest(F v) { return fold(v, greatest_of); }
  static int32_t greatesti(I v) { return vmaxvq_s32(vmaxq_s32(v.low, v.high)); }
  static float sum(F v) {
    return fold(v, [](float32x4_t a, float32x4_t b) { return vaddq_f32(a, b); });
  }
  // Keep v in its registers: left alone the compiler may load it again at each use.
  static void hold(F& v) { asm("" : "+w"(v.low), "+w"(v.high)); }

 private:
  static float32x4_t least_of(float32x4_t a, float32x4_t b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
  static float32x4_t greatest_of(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static int32x4_t dot(int32x4_t acc, int32x4_t a, int32x4_t b) {
    const int16x8_t x = vreinterpretq_s16_s32(a), y = vreinterpretq_s16_s32(b);
    const int32x4_t low = vmull_s16(vget_low_s16(x), vget_low_s16(y)), high = vmull_high_s16(x, y);
    return vaddq_s32(acc, vpaddq_s32(low, high));
  }
  static float32x4_t look_up(const uint8x16x4_t& first, const uint8x16x4_t& last, int32x4_t index) {
    // Byte 4·i + (0, 1, 2, 3) of the table; places outside of the 64 that an instruction reads change nothing.
    const uint32x4_t place = vmulq_n_u32(vandq_u32(vreinterpretq_u32_s32(index), vdupq_n_u32(31)), 0x04040404);
    const uint8x16_t byte = vreinterpretq_u8_u32(vaddq_u32(place, vdupq_n_u32(0x03020100)));
    return vreinterpretq_f32_u8(vqtbx4q_u8(vqtbl4q_u8(first, byte), last, vsubq_u8(byte, vdupq_n_u8(64))));
  }
  static uint16x4_t half(float32x4_t v) {
    const uint32x4_t x = vreinterpretq_u32_f32(v), odd = vandq_u32(vshrq_n_u32(x, 16), vdupq_n_u32(1));
    const uint16x4_t rounded = vshrn_n_u32(vaddq_u32(x, vaddq_u32(odd, vdupq_n_u32(0x7FFF))), 16);
    return vbsl_u16(vmovn_u32(vceqq_f32(v, v)), rounded, vdup_n_u16(0x7FC0));
  }
  static uint8x16_t saturated(I a, I b) {
    const int16x8_t first = vcombine_s16(vqmovn_s32(a.low), vqmovn_s32(a.high));
    const int16x8_t last = vcombine_s16(vqmovn_s32(b.low), vqmovn_s32(b.high));
    return vreinterpretq_u8_s8(vcombine_s8(vqmovn_s16(first), vqmovn_s16(last)));
  }
  template <class Op>
  static float fold(F v, Op op) {
    const float32x4_t four = op(v.low, v.high), two = op(four, vextq_f32(four, four, 2));
    return vgetq_lane_f32(op(two, vdupq_laneq_f32(two, 1)), 0);
  }
};

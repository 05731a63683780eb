// NEON (aarch64): 16 bytes, 4 floats, 32 registers.
#include <arm_neon.h>

#include "codes.h"
#include "gemm.h"
#include "lut.h"
#include "pool.h"
#include "winograd.h"

namespace nasb {
namespace {

struct Floats {
  static constexpr int kLanes = 4;
  float32x4_t v;
  static Floats load(const float* p) { return {vld1q_f32(p)}; }
  static Floats fill(float x) { return {vdupq_n_f32(x)}; }
  static Floats load_part(const float* p, int n) {
    float part[4] = {0, 0, 0, 0};
    for (int i = 0; i < 4 && i < n; ++i) part[i] = p[i];
    return load(part);
  }
  void store(float* p) const { vst1q_f32(p, v); }
  void store_part(float* p, int n) const {
    float part[4];
    store(part);
    for (int i = 0; i < 4 && i < n; ++i) p[i] = part[i];
  }
  Floats operator+(Floats o) const { return {vaddq_f32(v, o.v)}; }
  Floats operator*(Floats o) const { return {vmulq_f32(v, o.v)}; }
  static Floats multiply_add(Floats a, Floats b, Floats c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
  static Floats max(Floats y, Floats x) { return {vmaxq_f32(y.v, x.v)}; }  // NaN in either gives NaN
  static Floats relu(Floats x) { return {vbslq_f32(vcltq_f32(x.v, vdupq_n_f32(0)), vdupq_n_f32(0), x.v)}; }
  static Floats clip(Floats x, Floats low, Floats high) {
    const float32x4_t y = vbslq_f32(vcltq_f32(x.v, low.v), low.v, x.v);
    return {vbslq_f32(vcgtq_f32(y, high.v), high.v, y)};
  }
  static Floats negative_or(Floats x, Floats y) { return {vbslq_f32(vcltq_f32(x.v, vdupq_n_f32(0)), y.v, x.v)}; }
  static Floats dots(const uint16_t* counts, float base) {
    return {vfmsq_f32(vdupq_n_f32(base), vdupq_n_f32(2), vcvtq_f32_u32(vmovl_u16(vld1_u16(counts))))};
  }
  static uint32_t below(const Floats* x, const Floats* t) {
    const uint32_t weights[4] = {1, 2, 4, 8};
    uint32_t bits = 0;
    for (int g = 0; g < 8; ++g)
      bits |= vaddvq_u32(vandq_u32(vmvnq_u32(vcgeq_f32(x[g].v, t[g].v)), vld1q_u32(weights))) << (4 * g);
    return bits;
  }
};

struct Bytes {
  static constexpr int kBytes = 16;
  uint8x16_t v;
  static uint16x8_t wide(uint8x16_t x) { return vreinterpretq_u16_u8(x); }
  static Bytes narrow(uint16x8_t x) { return {vreinterpretq_u8_u16(x)}; }
  static Bytes zero() { return {vdupq_n_u8(0)}; }
  static Bytes load(const uint8_t* p) { return {vld1q_u8(p)}; }
  static Bytes table(const uint8_t* p) { return {vld1q_u8(p)}; }
  static void keep(Bytes& b) { asm("" : "+w"(b.v)); }
  Bytes shuffle(Bytes indices) const { return {vqtbl1q_u8(v, indices.v)}; }
  Bytes add8(Bytes o) const { return {vaddq_u8(v, o.v)}; }
  Bytes sub8(Bytes o) const { return {vsubq_u8(v, o.v)}; }
  Bytes add16(Bytes o) const { return narrow(vaddq_u16(wide(v), wide(o.v))); }
  Bytes sub16(Bytes o) const { return narrow(vsubq_u16(wide(v), wide(o.v))); }
  Bytes low_bytes() const { return narrow(vandq_u16(wide(v), vdupq_n_u16(255))); }
  Bytes high_nibbles() const { return {vandq_u8(v, vdupq_n_u8(240))}; }
  template <int n>
  Bytes shift_right_16() const {
    return narrow(vshrq_n_u16(wide(v), n));
  }
  template <int n>
  Bytes shift_left_16() const {
    return narrow(vshlq_n_u16(wide(v), n));
  }
  void store(uint8_t* p) const { vst1q_u8(p, v); }
};

void lut_tile(const LutLayer& layer, const LutTile& tile, int block, const Epilogue& e, int channel,
              int channel_count) {
  if (channel_count > 2 * Bytes::kBytes)
    lut_block<Bytes, Floats, 2, 4>(layer, tile, block, e, channel, channel_count);
  else if (channel_count > Bytes::kBytes)
    lut_block<Bytes, Floats, 4, 2>(layer, tile, block, e, channel, channel_count);
  else
    lut_block<Bytes, Floats, 4, 1>(layer, tile, block, e, channel, channel_count);
}

}  // namespace

const Isa& isa_neon() {
  static const Isa isa = {"neon",
                          epilogue<Floats>,
                          pair_codes,
                          1,
                          lut_tile,
                          nullptr,
                          lut_lane<Bytes>,
                          8,
                          gemm_tile<Floats, 8, 2>,
                          winograd_inputs<Floats>,
                          winograd_tile<Floats, 6, 2>,
                          pool<Floats>,
                          depthwise<Floats>};
  return isa;
}

}  // namespace nasb

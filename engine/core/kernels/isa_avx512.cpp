// AVX-512 (F, BW, VL, DQ): 64 bytes, 16 floats, 32 registers.
#include <immintrin.h>

#include "codes.h"
#include "floats_avx512.h"
#include "gemm.h"
#include "lut.h"
#include "pool.h"
#include "winograd.h"

namespace nasb {
namespace {

struct Bytes {
  static constexpr int kBytes = 64;
  __m512i v;
  static Bytes zero() { return {_mm512_setzero_si512()}; }
  static Bytes load(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
  static Bytes table(const uint8_t* p) {
    return {_mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  // Tells the compiler that the value is used here: without it gcc reorders the unrolled loop and spills accumulators.
  static void keep(Bytes& b) { asm("" : "+v"(b.v)); }
  Bytes shuffle(Bytes indices) const { return {_mm512_shuffle_epi8(v, indices.v)}; }
  Bytes add8(Bytes o) const { return {_mm512_add_epi8(v, o.v)}; }
  Bytes sub8(Bytes o) const { return {_mm512_sub_epi8(v, o.v)}; }
  Bytes add16(Bytes o) const { return {_mm512_add_epi16(v, o.v)}; }
  Bytes sub16(Bytes o) const { return {_mm512_sub_epi16(v, o.v)}; }
  Bytes low_bytes() const { return {_mm512_and_si512(v, _mm512_set1_epi16(255))}; }
  Bytes high_nibbles() const { return {_mm512_and_si512(v, _mm512_set1_epi8(-16))}; }
  template <int n>
  Bytes shift_right_16() const {
    return {_mm512_srli_epi16(v, n)};
  }
  template <int n>
  Bytes shift_left_16() const {
    return {_mm512_slli_epi16(v, n)};
  }
  void store(uint8_t* p) const { _mm512_storeu_si512(p, v); }
};

void lut_tile(const LutLayer& layer, const LutTile& tile, int block, const Epilogue& e, int channel,
              int channel_count) {
  if (channel_count > kBlock)
    lut_block<Bytes, Floats, 4, 2>(layer, tile, block, e, channel, channel_count);
  else
    lut_block<Bytes, Floats, 6, 1>(layer, tile, block, e, channel, channel_count);
}

}  // namespace

const Isa& isa_avx512() {
  static const Isa isa = {"avx512",
                          epilogue<Floats>,
                          pair_codes,
                          2,
                          lut_tile,
                          nullptr,
                          lut_lane<Bytes>,
                          32,
                          gemm_tile<Floats, 12, 2>,
                          winograd_inputs<Floats>,
                          winograd_tile<Floats, 12, 2>,
                          pool<Floats>,
                          depthwise<Floats>};
  return isa;
}

}  // namespace nasb

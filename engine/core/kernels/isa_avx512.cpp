// AVX-512 (F, BW, VL, DQ): 64 bytes, 16 floats, 32 registers.
#include <immintrin.h>

#include "floats_avx512.h"
#include "gemm.h"
#include "lut.h"
#include "pool.h"

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

// 16 nibbles of 8 bytes, one a byte.
__m128i nibbles(const uint8_t* bits) {
  const __m128i x = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bits)), low = _mm_set1_epi8(15);
  return _mm_unpacklo_epi8(_mm_and_si128(x, low), _mm_and_si128(_mm_srli_epi16(x, 4), low));
}

void pair_codes(const uint32_t* first, const uint32_t* second, const uint8_t* outside, uint16_t* codes, int count) {
  const uint8_t* a = reinterpret_cast<const uint8_t*>(first);
  const uint8_t* b = reinterpret_cast<const uint8_t*>(second);
  const auto state = [&](const uint8_t* bits, int at) {
    return bits ? nibbles(bits + at / 2) : _mm_loadu_si128(reinterpret_cast<const __m128i*>(outside + at));
  };
  int i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m256i x = _mm256_cvtepu8_epi16(state(a, i)), y = _mm256_cvtepu8_epi16(state(b, i));
    const __m256i code = _mm256_or_si256(_mm256_slli_epi16(x, 4), _mm256_slli_epi16(y, 9));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + i), code);
  }
  for (; i < count; ++i) {
    const int x = a ? a[i / 2] >> (i % 2 * 4) & 15 : outside[i], y = b ? b[i / 2] >> (i % 2 * 4) & 15 : outside[i];
    codes[i] = static_cast<uint16_t>(x << 4 | y << 9);
  }
}

}  // namespace

const Isa& isa_avx512() {
  static const Isa isa = {
      "avx512",     epilogue<Floats>, pair_codes, 2, lut_tile, nullptr, lut_lane<Bytes>, 32, gemm_tile<Floats, 12, 2>,
      pool<Floats>, depthwise<Floats>};
  return isa;
}

}  // namespace nasb

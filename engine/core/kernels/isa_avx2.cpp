// AVX2 and FMA: 32 bytes, 8 floats, 16 registers.
#include <immintrin.h>

#include "codes.h"
#include "gemm.h"
#include "lut.h"
#include "pool.h"
#include "winograd.h"

namespace nasb {
namespace {

struct Floats {
  static constexpr int kLanes = 8;
  __m256 v;
  static Floats load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Floats fill(float x) { return {_mm256_set1_ps(x)}; }
  static __m256i lanes(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Floats load_part(const float* p, int n) { return {_mm256_maskload_ps(p, lanes(n))}; }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store_part(float* p, int n) const { _mm256_maskstore_ps(p, lanes(n), v); }
  Floats operator+(Floats o) const { return {_mm256_add_ps(v, o.v)}; }
  Floats operator*(Floats o) const { return {_mm256_mul_ps(v, o.v)}; }
  static Floats multiply_add(Floats a, Floats b, Floats c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  static Floats max(Floats y, Floats x) {  // NaN in either gives NaN
    const __m256 greater = _mm256_max_ps(y.v, x.v);
    return {_mm256_blendv_ps(greater, y.v, _mm256_cmp_ps(y.v, y.v, _CMP_UNORD_Q))};
  }
  static Floats relu(Floats x) { return {_mm256_max_ps(_mm256_setzero_ps(), x.v)}; }
  static Floats clip(Floats x, Floats low, Floats high) { return {_mm256_min_ps(high.v, _mm256_max_ps(low.v, x.v))}; }
  static Floats negative_or(Floats x, Floats y) {
    return {_mm256_blendv_ps(x.v, y.v, _mm256_cmp_ps(x.v, _mm256_setzero_ps(), _CMP_LT_OQ))};
  }
  static Floats dots(const uint16_t* counts, float base) {
    const __m256i n = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(counts)));
    return {_mm256_fnmadd_ps(_mm256_set1_ps(2), _mm256_cvtepi32_ps(n), _mm256_set1_ps(base))};
  }
  static uint32_t below(const Floats* x, const Floats* t) {
    const auto mask = [&](int g) { return _mm256_castps_si256(_mm256_cmp_ps(x[g].v, t[g].v, _CMP_NGE_UQ)); };
    // Packing takes 4 lanes of each vector in turn, for either half of the result.
    const __m256i packed =
        _mm256_packs_epi16(_mm256_packs_epi32(mask(0), mask(1)), _mm256_packs_epi32(mask(2), mask(3)));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_permutevar8x32_epi32(packed, order)));
  }
};

struct Bytes {
  static constexpr int kBytes = 32;
  __m256i v;
  static Bytes zero() { return {_mm256_setzero_si256()}; }
  static Bytes load(const uint8_t* p) { return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))}; }
  static Bytes table(const uint8_t* p) {
    return {_mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  // Tells the compiler that the value is used here: without it gcc reorders the unrolled loop and spills accumulators.
  static void keep(Bytes& b) { asm("" : "+x"(b.v)); }
  Bytes shuffle(Bytes indices) const { return {_mm256_shuffle_epi8(v, indices.v)}; }
  Bytes add8(Bytes o) const { return {_mm256_add_epi8(v, o.v)}; }
  Bytes sub8(Bytes o) const { return {_mm256_sub_epi8(v, o.v)}; }
  Bytes add16(Bytes o) const { return {_mm256_add_epi16(v, o.v)}; }
  Bytes sub16(Bytes o) const { return {_mm256_sub_epi16(v, o.v)}; }
  Bytes low_bytes() const { return {_mm256_and_si256(v, _mm256_set1_epi16(255))}; }
  Bytes high_nibbles() const { return {_mm256_and_si256(v, _mm256_set1_epi8(-16))}; }
  template <int n>
  Bytes shift_right_16() const {
    return {_mm256_srli_epi16(v, n)};
  }
  template <int n>
  Bytes shift_left_16() const {
    return {_mm256_slli_epi16(v, n)};
  }
  void store(uint8_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
};

void lut_tile(const LutLayer& layer, const LutTile& tile, int block, const Epilogue& e, int channel,
              int channel_count) {
  if (channel_count > kBlock + Bytes::kBytes)
    lut_block<Bytes, Floats, 1, 4>(layer, tile, block, e, channel, channel_count);
  else if (channel_count > kBlock)
    lut_block<Bytes, Floats, 1, 3>(layer, tile, block, e, channel, channel_count);
  else if (channel_count > Bytes::kBytes)
    lut_block<Bytes, Floats, 2, 2>(layer, tile, block, e, channel, channel_count);
  else
    lut_block<Bytes, Floats, 4, 1>(layer, tile, block, e, channel, channel_count);
}

}  // namespace

const Isa& isa_avx2() {
  static const Isa isa = {"avx2",
                          epilogue<Floats>,
                          pair_codes,
                          2,
                          lut_tile,
                          nullptr,
                          lut_lane<Bytes>,
                          16,
                          gemm_tile<Floats, 6, 2>,
                          winograd_inputs<Floats>,
                          winograd_tile<Floats, 6, 2>,
                          pool<Floats>,
                          depthwise<Floats>};
  return isa;
}

}  // namespace nasb

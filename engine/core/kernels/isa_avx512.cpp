// AVX-512 (F, BW, VL, DQ): 64 bytes, 16 floats, 32 registers.
#include <immintrin.h>

#include "gemm.h"
#include "lut.h"

namespace nasb {
namespace {

struct Floats {
  static constexpr int kLanes = 16;
  __m512 v;
  static Floats load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Floats fill(float x) { return {_mm512_set1_ps(x)}; }
  static __mmask16 lanes(int n) { return n >= 16 ? 0xFFFF : n <= 0 ? 0 : (1u << n) - 1; }
  static Floats load_part(const float* p, int n) { return {_mm512_maskz_loadu_ps(lanes(n), p)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store_part(float* p, int n) const { _mm512_mask_storeu_ps(p, lanes(n), v); }
  Floats operator+(Floats o) const { return {_mm512_add_ps(v, o.v)}; }
  Floats operator*(Floats o) const { return {_mm512_mul_ps(v, o.v)}; }
  static Floats multiply_add(Floats a, Floats b, Floats c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static Floats max(Floats y, Floats x) {  // NaN in either gives NaN
    return {_mm512_mask_max_ps(y.v, _mm512_cmp_ps_mask(y.v, y.v, _CMP_ORD_Q), y.v, x.v)};
  }
  static Floats relu(Floats x) { return {_mm512_max_ps(_mm512_setzero_ps(), x.v)}; }
  static Floats negative_or(Floats x, Floats y) {
    return {_mm512_mask_mov_ps(x.v, _mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_LT_OQ), y.v)};
  }
  static int below(Floats x, Floats t) { return _mm512_cmp_ps_mask(x.v, t.v, _CMP_NGE_UQ); }
};

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
  Bytes add16(Bytes o) const { return {_mm512_add_epi16(v, o.v)}; }
  Bytes sub16(Bytes o) const { return {_mm512_sub_epi16(v, o.v)}; }
  Bytes low_bytes() const { return {_mm512_and_si512(v, _mm512_set1_epi16(255))}; }
  template <int n>
  Bytes shift_right_16() const {
    return {_mm512_srli_epi16(v, n)};
  }
  template <int n>
  Bytes shift_left_16() const {
    return {_mm512_slli_epi16(v, n)};
  }
  void store(uint8_t* p) const { _mm512_storeu_si512(p, v); }
  // 32 counts n to floats base - 2 n.
  void store_dots(float* to, float base) const {
    const __m512 b = _mm512_set1_ps(base);
    const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(v)));
    const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(v, 1)));
    _mm512_store_ps(to, _mm512_fnmadd_ps(_mm512_set1_ps(2), low, b));
    _mm512_store_ps(to + 16, _mm512_fnmadd_ps(_mm512_set1_ps(2), high, b));
  }
};

void lut_tile(const LutLayer& layer, const LutTile& tile, int block, const Epilogue& e, int channel, int channel_count) {
  const uint8_t* weights = layer.weights + static_cast<size_t>(block) * layer.nibbles * kBlock;
  lut_block<Bytes, Floats, 6, 1>(layer, tile, weights, e, channel, channel_count);
}

void pair_codes(const uint8_t* first, const uint8_t* second, uint16_t* codes, int count) {
  int i = 0;
  for (; i + 16 <= count; i += 16) {
    const __m256i a = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(first + i)));
    const __m256i b = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(second + i)));
    const __m256i code = _mm256_or_si256(_mm256_slli_epi16(a, 4), _mm256_slli_epi16(b, 9));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + i), code);
  }
  for (; i < count; ++i) codes[i] = first[i] << 4 | second[i] << 9;
}

}  // namespace

const Isa& isa_avx512() {
  static const Isa isa = {"avx512",  epilogue<Floats>, pair_codes,           lut_tile,        lut_lane<Bytes>,
                          32,      gemm_tile<Floats, 12, 2>, pool<Floats>, depthwise<Floats>};
  return isa;
}

}  // namespace nasb

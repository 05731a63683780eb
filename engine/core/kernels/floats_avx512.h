// A vector of 16 floats. Included by the AVX-512 files only.
#pragma once

#include <immintrin.h>

#include <cstdint>

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
  static Floats clip(Floats x, Floats low, Floats high) { return {_mm512_min_ps(high.v, _mm512_max_ps(low.v, x.v))}; }
  static Floats negative_or(Floats x, Floats y) {
    return {_mm512_mask_mov_ps(x.v, _mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_LT_OQ), y.v)};
  }
  static Floats dots(const uint16_t* counts, float base) {
    const __m512i n = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(counts)));
    return {_mm512_fnmadd_ps(_mm512_set1_ps(2), _mm512_cvtepi32_ps(n), _mm512_set1_ps(base))};
  }
  static uint32_t below(const Floats* x, const Floats* t) {
    const __mmask16 low = _mm512_cmp_ps_mask(x[0].v, t[0].v, _CMP_NGE_UQ);
    return _mm512_kunpackw(_mm512_cmp_ps_mask(x[1].v, t[1].v, _CMP_NGE_UQ), low);
  }
};

}  // namespace
}  // namespace nasb

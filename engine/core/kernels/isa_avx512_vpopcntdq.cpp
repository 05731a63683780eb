// AVX-512 with VPOPCNTDQ (Ice Lake, Zen 4 and later): binary convolutions by xor and popcount of 16 channels x 32 inputs.
//
// Two words at a time go through a carry-save adder that takes the xor in: with x1 = a1 ^ w1, x2 = a2 ^ w2
//     s1 = ones ^ a1 ^ w1,  s2 = s1 ^ a2 ^ w2            one ternary operation each
//     carry = majority(ones, x1, x2) = s1 ? ~s2 : ones    one more: where s1 = 0, ones = x1; else x2 = ~s2 decides
// and only the carries are counted: 5 operations for two words instead of 6. count = popcount(ones) + 2 sum popcount(carry).
#include <immintrin.h>

#include "floats_avx512.h"
#include "gemm.h"

namespace nasb {
namespace {

#define NASB_UNROLL _Pragma("GCC unroll 16")

constexpr int kLanes = 16;
constexpr int kXor3 = 0x96, kCarry = 0x3A;  // truth tables of (a, b, c): a ^ b ^ c, and a ? ~b : c

// Dots of P pixels and V vectors of channels into acc [P][kBlock].
template <int P, int V>
inline void word_micro(const WordLayer& layer, const uint32_t* const* pixels, const uint32_t* weights, const float* base,
                       const float* const* corrections, int lane, float* acc) {
  __m512i ones[P][V], twos[P][V];
  NASB_UNROLL for (int p = 0; p < P; ++p)
    NASB_UNROLL for (int v = 0; v < V; ++v) ones[p][v] = twos[p][v] = _mm512_setzero_si512();
  const uint32_t* x[P];
  NASB_UNROLL for (int p = 0; p < P; ++p) x[p] = pixels[p];
  const int32_t* offset = layer.offsets;
  int i = 0;
  for (; i + 2 <= layer.words; i += 2, weights += 2 * kBlock) {
    const intptr_t at1 = offset[i], at2 = offset[i + 1];
    __m512i w1[V], w2[V];
    NASB_UNROLL for (int v = 0; v < V; ++v) {
      w1[v] = _mm512_loadu_si512(weights + v * kLanes);
      w2[v] = _mm512_loadu_si512(weights + kBlock + v * kLanes);
    }
    NASB_UNROLL for (int p = 0; p < P; ++p) {
      const __m512i a1 = _mm512_set1_epi32(static_cast<int>(x[p][at1])), a2 = _mm512_set1_epi32(static_cast<int>(x[p][at2]));
      NASB_UNROLL for (int v = 0; v < V; ++v) {
        const __m512i s1 = _mm512_ternarylogic_epi32(ones[p][v], a1, w1[v], kXor3);
        const __m512i s2 = _mm512_ternarylogic_epi32(s1, a2, w2[v], kXor3);
        const __m512i carry = _mm512_ternarylogic_epi32(s1, s2, ones[p][v], kCarry);
        twos[p][v] = _mm512_add_epi32(twos[p][v], _mm512_popcnt_epi32(carry));
        ones[p][v] = s2;
      }
    }
  }
  if (i < layer.words) {
    NASB_UNROLL for (int p = 0; p < P; ++p) {
      const __m512i a = _mm512_set1_epi32(static_cast<int>(x[p][offset[i]]));
      NASB_UNROLL for (int v = 0; v < V; ++v) {
        const __m512i differ = _mm512_xor_si512(a, _mm512_loadu_si512(weights + v * kLanes));
        const __m512i carry = _mm512_and_si512(ones[p][v], differ);
        twos[p][v] = _mm512_add_epi32(twos[p][v], _mm512_popcnt_epi32(carry));
        ones[p][v] = _mm512_xor_si512(ones[p][v], differ);
      }
    }
  }
  NASB_UNROLL for (int p = 0; p < P; ++p)
    NASB_UNROLL for (int v = 0; v < V; ++v) {
      const __m512i count = _mm512_add_epi32(_mm512_popcnt_epi32(ones[p][v]), _mm512_add_epi32(twos[p][v], twos[p][v]));
      __m512 dot = _mm512_fnmadd_ps(_mm512_set1_ps(2), _mm512_cvtepi32_ps(count), _mm512_set1_ps(base[p]));
      if (corrections[p]) dot = _mm512_add_ps(dot, _mm512_loadu_ps(corrections[p] + lane + v * kLanes));
      _mm512_storeu_ps(acc + p * kBlock + v * kLanes, dot);
    }
}

template <int V>
void word_slice(const WordLayer& layer, const WordTile& tile, const uint32_t* weights, const Epilogue& e, int lane,
                int channel, int channel_count) {
  constexpr int P = 4;
  float acc[P * kBlock];
  int p = 0;
  for (; p + P <= tile.pixel_count; p += P) {
    word_micro<P, V>(layer, tile.pixels + p, weights, tile.base + p, tile.corrections + p, lane, acc);
    epilogue<Floats>(e, acc, tile.first_pixel + p, P, channel, channel_count);
  }
  for (; p < tile.pixel_count; ++p) {
    word_micro<1, V>(layer, tile.pixels + p, weights, tile.base + p, tile.corrections + p, lane, acc);
    epilogue<Floats>(e, acc, tile.first_pixel + p, 1, channel, channel_count);
  }
}

void word_tile(const WordLayer& layer, const WordTile& tile, int block, const Epilogue& e, int channel, int channel_count) {
  const uint32_t* weights = layer.weights + static_cast<size_t>(block) * layer.words * kBlock;
  // Two vectors of channels at a time: their weights stay in the first cache while the tile's pixels pass.
  for (int lane = 0; lane < channel_count; lane += 2 * kLanes) {
    const int count = channel_count - lane < 2 * kLanes ? channel_count - lane : 2 * kLanes;
    if (count > kLanes)
      word_slice<2>(layer, tile, weights + lane, e, lane, channel + lane, count);
    else
      word_slice<1>(layer, tile, weights + lane, e, lane, channel + lane, count);
  }
}

}  // namespace

const Isa& isa_avx512_vpopcntdq() {
  static const Isa isa = [] {
    Isa made = isa_avx512();
    made.name = "avx512_vpopcntdq";
    made.word_tile = word_tile;
    return made;
  }();
  return isa;
}

}  // namespace nasb

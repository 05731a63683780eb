// AVX-512 with VPOPCNTDQ (Ice Lake, Zen 4 and later): binary convolutions by xor and popcount, 16 channels x 32 inputs
// at a time. Words one by one take 3 operations for 512 MACs, triples (isa.h) 8 for 1536: at most 384 MACs a cycle
// where two operations are done in a cycle (Zen 4), 768 where four are (Zen 5).
#include <immintrin.h>

#include "floats_avx512.h"
#include "gemm.h"

namespace nasb {
namespace {

constexpr int kLanes = 16;

// Dots of P pixels from pixel p on and V vectors of channels from `lane` on into acc [P][kSlice]. kFetch: the next
// slice's weights, which stand behind this one's, are called into the cache by the way.
template <int P, int V, bool kFetch>
inline void word_micro(const WordLayer& layer, const WordTile& tile, const uint32_t* weights, int p, int lane,
                       float* acc) {
  const __m512i zero = _mm512_setzero_si512();
  __m512i ones[P][V], twos[P][V];  // bits set, and those that count twice
  NASB_UNROLL for (int i = 0; i < P; ++i) NASB_UNROLL for (int v = 0; v < V; ++v) ones[i][v] = twos[i][v] = zero;
  const uint32_t* x[P];
  NASB_UNROLL for (int i = 0; i < P; ++i) x[i] = tile.pixels[p + i];
  const auto load = [&](__m512i* w, int word) {
    const uint32_t* from = weights + word * kSlice;
    if (kFetch) {
      const char* next = reinterpret_cast<const char*>(from + static_cast<size_t>(layer.words) * kSlice);
      _mm_prefetch(next, _MM_HINT_T0);
      _mm_prefetch(next + 64, _MM_HINT_T0);
    }
    NASB_UNROLL for (int v = 0; v < V; ++v) w[v] = _mm512_load_si512(from + v * kLanes);
  };
  const auto add_bits = [](__m512i& sum, __m512i bits) { sum = _mm512_add_epi32(sum, _mm512_popcnt_epi32(bits)); };
  const int32_t* offset = layer.offsets;
  for (const int32_t* const end = offset + 3 * layer.triples; offset < end; offset += 3, weights += 3 * kSlice) {
    const intptr_t at[3] = {offset[0], offset[1], offset[2]};
    __m512i w[3][V];
    NASB_UNROLL for (int t = 0; t < 3; ++t) load(w[t], t);
    NASB_UNROLL for (int i = 0; i < P; ++i) {
      const auto word = [&](int t) { return _mm512_set1_epi32(static_cast<int>(x[i][at[t]])); };
      const __m512i first = word(0), second = word(1), parity = word(2);
      NASB_UNROLL for (int v = 0; v < V; ++v) {
        const __m512i a = _mm512_xor_si512(first, w[0][v]), b = _mm512_xor_si512(second, w[1][v]);
        const __m512i odd = _mm512_xor_si512(parity, w[2][v]);
        add_bits(ones[i][v], odd);
        add_bits(twos[i][v], _mm512_ternarylogic_epi32(a, b, odd, 0xD4));  // (a & b) | ((a ^ b) & ~odd)
        asm("" : "+v"(ones[i][v]), "+v"(twos[i][v]));  // used here, lest gcc reorders the unrolled loop and spills
      }
    }
  }
  for (const int32_t* const end = layer.offsets + layer.words; offset < end; ++offset, weights += kSlice) {
    const intptr_t at = *offset;
    __m512i w[V];
    load(w, 0);
    NASB_UNROLL for (int i = 0; i < P; ++i) {
      const __m512i a = _mm512_set1_epi32(static_cast<int>(x[i][at]));
      NASB_UNROLL for (int v = 0; v < V; ++v) add_bits(ones[i][v], _mm512_xor_si512(a, w[v]));
    }
  }
  NASB_UNROLL for (int i = 0; i < P; ++i) {
    const float* correction = tile.corrections[p + i];
    NASB_UNROLL for (int v = 0; v < V; ++v) {
      const __m512i count = _mm512_add_epi32(ones[i][v], _mm512_add_epi32(twos[i][v], twos[i][v]));
      __m512 dot = _mm512_fnmadd_ps(_mm512_set1_ps(2), _mm512_cvtepi32_ps(count), _mm512_set1_ps(tile.base));
      if (correction) dot = _mm512_add_ps(dot, _mm512_loadu_ps(correction + lane + v * kLanes));
      _mm512_store_ps(acc + i * kSlice + v * kLanes, dot);
    }
  }
}

template <int V>
void word_slice(const WordLayer& layer, const WordTile& tile, const uint32_t* weights, const Epilogue& e, int lane,
                int channel, int channel_count) {
  alignas(64) float acc[kTilePixels * kSlice];
  int p = 0;
  if (tile.pixel_count >= 4) word_micro<4, V, true>(layer, tile, weights, p, lane, acc), p = 4;
  for (; p + 4 <= tile.pixel_count; p += 4) word_micro<4, V, false>(layer, tile, weights, p, lane, acc + p * kSlice);
  for (; p < tile.pixel_count; ++p) word_micro<1, V, false>(layer, tile, weights, p, lane, acc + p * kSlice);
  epilogue_slice<Floats>(e, acc, tile.first_pixel, tile.pixel_count, channel, channel_count);
}

void word_tile(const WordLayer& layer, const WordTile& tile, int block, const Epilogue& e, int channel,
               int channel_count) {
  // A slice's weights stay in the first cache while the tile's pixels pass.
  for (int lane = 0; lane < channel_count; lane += kSlice) {
    const uint32_t* weights = layer.weights + static_cast<size_t>(block * kBlock + lane) * layer.words;
    const int count = channel_count - lane < kSlice ? channel_count - lane : kSlice;
    if (count > kLanes)
      word_slice<2>(layer, tile, weights, e, lane, channel + lane, count);
    else
      word_slice<1>(layer, tile, weights, e, lane, channel + lane, count);
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

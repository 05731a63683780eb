// AVX-512 with VPOPCNTDQ (Ice Lake, Zen 4 and later): binary convolutions by xor and popcount, 16 channels x 32 inputs
// at a time. 3 operations for 512 MACs: at most 341 MACs a cycle where two of them are done in a cycle (Zen 4), 683
// where four are (Zen 5; the loop reaches 650). A carry-save adder of ternary operations gives no more: it saves
// popcounts and costs as many operations, of which a cycle does fewer.
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
  __m512i sum[P][V];
  NASB_UNROLL for (int i = 0; i < P; ++i) NASB_UNROLL for (int v = 0; v < V; ++v) sum[i][v] = _mm512_setzero_si512();
  const uint32_t* x[P];
  NASB_UNROLL for (int i = 0; i < P; ++i) x[i] = tile.pixels[p + i];
  const int32_t* const end = layer.offsets + layer.words;
  for (const int32_t* offset = layer.offsets; offset < end; ++offset, weights += kSlice) {
    const intptr_t at = *offset;
    if (kFetch) {
      const char* next = reinterpret_cast<const char*>(weights + static_cast<size_t>(layer.words) * kSlice);
      _mm_prefetch(next, _MM_HINT_T0);
      _mm_prefetch(next + 64, _MM_HINT_T0);
    }
    __m512i w[V];
    NASB_UNROLL for (int v = 0; v < V; ++v) w[v] = _mm512_load_si512(weights + v * kLanes);
    NASB_UNROLL for (int i = 0; i < P; ++i) {
      const __m512i a = _mm512_set1_epi32(static_cast<int>(x[i][at]));
      NASB_UNROLL for (int v = 0; v < V; ++v) sum[i][v] =
          _mm512_add_epi32(sum[i][v], _mm512_popcnt_epi32(_mm512_xor_si512(a, w[v])));
    }
  }
  NASB_UNROLL for (int i = 0; i < P; ++i) {
    const float* correction = tile.corrections[p + i];
    NASB_UNROLL for (int v = 0; v < V; ++v) {
      __m512 dot = _mm512_fnmadd_ps(_mm512_set1_ps(2), _mm512_cvtepi32_ps(sum[i][v]), _mm512_set1_ps(tile.base));
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
  if (tile.pixel_count >= 8) word_micro<8, V, true>(layer, tile, weights, p, lane, acc), p = 8;
  for (; p + 8 <= tile.pixel_count; p += 8) word_micro<8, V, false>(layer, tile, weights, p, lane, acc + p * kSlice);
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

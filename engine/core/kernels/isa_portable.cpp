// Plain C++: works everywhere, and is what the other instruction sets are checked against. It has no look-up: a machine
// without a byte shuffle is served better by xor and popcount (binary_conv_words.cpp).
#include "gemm.h"
#include "pool.h"
#include "winograd.h"

namespace nasb {
namespace {

struct Floats {
  static constexpr int kLanes = 8;
  float v[8];
  static Floats load(const float* p) { return load_part(p, 8); }
  static Floats load_part(const float* p, int n) {
    Floats r;
    for (int i = 0; i < 8; ++i) r.v[i] = i < n ? p[i] : 0;
    return r;
  }
  static Floats fill(float x) {
    Floats r;
    for (int i = 0; i < 8; ++i) r.v[i] = x;
    return r;
  }
  void store(float* p) const { store_part(p, 8); }
  void store_part(float* p, int n) const {
    for (int i = 0; i < 8 && i < n; ++i) p[i] = v[i];
  }
  Floats operator+(Floats o) const {
    for (int i = 0; i < 8; ++i) o.v[i] = v[i] + o.v[i];
    return o;
  }
  Floats operator*(Floats o) const {
    for (int i = 0; i < 8; ++i) o.v[i] = v[i] * o.v[i];
    return o;
  }
  static Floats multiply_add(Floats a, Floats b, Floats c) { return a * b + c; }
  static Floats max(Floats y, Floats x) {
    for (int i = 0; i < 8; ++i) y.v[i] = x.v[i] > y.v[i] || x.v[i] != x.v[i] ? x.v[i] : y.v[i];
    return y;
  }
  static Floats relu(Floats x) {
    for (int i = 0; i < 8; ++i) x.v[i] = x.v[i] < 0 ? 0 : x.v[i];
    return x;
  }
  static Floats clip(Floats x, Floats low, Floats high) {
    for (int i = 0; i < 8; ++i) {
      const float y = x.v[i] < low.v[i] ? low.v[i] : x.v[i];
      x.v[i] = y > high.v[i] ? high.v[i] : y;
    }
    return x;
  }
  static Floats negative_or(Floats x, Floats y) {
    for (int i = 0; i < 8; ++i) y.v[i] = x.v[i] < 0 ? y.v[i] : x.v[i];
    return y;
  }
  static uint32_t below(const Floats* x, const Floats* t) {
    uint32_t bits = 0;
    for (int i = 0; i < 32; ++i) bits |= static_cast<uint32_t>(!(x[i / 8].v[i % 8] >= t[i / 8].v[i % 8])) << i;
    return bits;
  }
};

// Bits of a word by adding neighbours, so that a compiler makes vectors of the loop over channels.
inline uint32_t bits_set(uint32_t x) {
  x -= x >> 1 & 0x55555555u;
  x = (x & 0x33333333u) + (x >> 2 & 0x33333333u);
  x = (x + (x >> 4)) & 0x0F0F0F0Fu;
  x += x >> 8;
  return (x + (x >> 16)) & 63;
}

void word_tile(const WordLayer& layer, const WordTile& tile, int block, const Epilogue& e, int channel,
               int channel_count) {
  float acc[kBlock];
  uint32_t count[kSlice];
  for (int lane = 0; lane < channel_count; lane += kSlice) {
    const uint32_t* weights = layer.weights + static_cast<size_t>(block * kBlock + lane) * layer.words;
    for (int p = 0; p < tile.pixel_count; ++p) {
      for (int c = 0; c < kSlice; ++c) count[c] = 0;
      const auto pixel = [&](int i) { return tile.pixels[p][layer.offsets[i]]; };
      int i = 0;
      for (; i < 3 * layer.triples; i += 3) {
        const uint32_t first = pixel(i), second = pixel(i + 1), parity = pixel(i + 2), *w = weights + i * kSlice;
        for (int c = 0; c < kSlice; ++c) {
          const uint32_t a = first ^ w[c], b = second ^ w[kSlice + c], odd = parity ^ w[2 * kSlice + c];
          count[c] += bits_set(odd) + 2 * bits_set((a & b) | ((a ^ b) & ~odd));
        }
      }
      for (; i < layer.words; ++i) {
        const uint32_t a = pixel(i);
        for (int c = 0; c < kSlice; ++c) count[c] += bits_set(a ^ weights[i * kSlice + c]);
      }
      const float* correction = tile.corrections[p];
      for (int c = 0; c < kSlice; ++c)
        acc[c] = tile.base - 2.0f * static_cast<float>(count[c]) + (correction ? correction[lane + c] : 0.0f);
      const int channels = channel_count - lane < kSlice ? channel_count - lane : kSlice;
      epilogue<Floats>(e, acc, tile.first_pixel + p, 1, channel + lane, channels);
    }
  }
}

}  // namespace

const Isa& isa_portable() {
  static const Isa isa = {"portable",
                          epilogue<Floats>,
                          nullptr,
                          0,
                          nullptr,
                          word_tile,
                          nullptr,
                          16,
                          gemm_tile<Floats, 2, 2>,
                          winograd_inputs<Floats>,
                          winograd_tile<Floats, 4, 2>,
                          pool<Floats>,
                          depthwise<Floats>};
  return isa;
}

}  // namespace nasb

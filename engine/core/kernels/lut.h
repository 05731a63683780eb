// Binary convolution by table look-up, for any instruction set with a byte shuffle. Included by isa_*.cpp only.
//
// The activations choose a table, the weights index it. Four channels' sign bits of a pixel are a nibble a (bit 1: -1);
// a nibble of weights is i. For a pair of output pixels with nibbles a1, a2 the table of 16 bytes is
//     T[i] = popcount(a1 ^ i) + 16 * popcount(a2 ^ i),
// so that one shuffle counts the differing bits of 2 pixels x 4 inputs for as many outputs as the vector has bytes, and
// no sum across lanes is ever needed. State 16 of a pixel, outside of the image, counts 2 whatever the weights are: 4
// inputs of which 2 differ add 0 to the sum, which is exact zero padding.
//
// Sums. Fields are nibbles: low l (pixel 1), high h (pixel 2); three look-ups add up to at most 12 in each, so that no
// carry crosses. With S such a sum of three, 16-bit lanes of an even byte (le, he) and an odd byte (lo, ho) keep
//     T += S            bytewise:  T_even = le + 16 he,  T_odd = lo + 16 ho        (mod 256)
//     H += S >> 4       16-bit shift, bytewise sum:  H_odd = ho,  H_even = he + 16 lo  (mod 256)
// As long as each of le, he, lo, ho stays below 256 (63 nibbles of at most 4) they follow exactly:
//     ho = H_odd;  lo = T_odd - 16 H_odd;  le = T_even - 16 H_even;  he = H_even - 16 lo      (mod 256),
// the second of which needs no he, since 16 H_even = 16 he + 256 lo.
// With n differing bits, dot = base - 2 n.
//
// B is a vector of bytes: kBytes, load, table(p): 16 bytes repeated, shuffle(table, indices), add8, sub8,
// shift_right_16<n>, shift_left_16<n>, add16, sub16, low_bytes: & 255 in 16-bit lanes, high_nibbles: & 240, store.
#pragma once

#include "epilogue.h"
#include "isa.h"

namespace nasb {
namespace {

constexpr int kLutChunk = 63;  // nibbles between two decodings, 21 sums of three

// Fields of one accumulator after a chunk, in 16-bit lanes: counts of [pixel 1, 2] for even and odd bytes.
template <class B>
struct LutCounts {
  B even[2], odd[2];
};

template <class B>
inline LutCounts<B> lut_decode(B t, B h) {
  LutCounts<B> n;
  const B low = t.sub8(h.template shift_left_16<4>().high_nibbles());  // le and lo
  n.even[0] = low.low_bytes();
  n.odd[0] = low.template shift_right_16<8>();
  n.even[1] = h.sub16(n.odd[0].template shift_left_16<4>()).low_bytes();
  n.odd[1] = h.template shift_right_16<8>();
  return n;
}

// Vectors of channels go through blocks of kBlock: the block of vector v, and its first byte there.
template <class B>
constexpr int lut_block_of(int v) {
  return v * B::kBytes / kBlock;
}
template <class B>
constexpr int lut_byte_of(int v) {
  return v * B::kBytes % kBlock;
}

// What is summed between two decodings: nibbles [begin, end), at most kLutChunk, as pieces of runs.
struct LutChunk {
  LutChunk(const LutLayer& layer, int begin, int end) {
    for (int n = begin; n < end; n += count[pieces++]) {
      const int run = n / layer.run_length, at = n % layer.run_length;
      offset[pieces] = layer.runs[run] + at;
      count[pieces] = layer.run_length - at < end - n ? layer.run_length - at : end - n;
    }
  }
  int pieces = 0;
  int32_t offset[kLutChunk], count[kLutChunk];
  const uint8_t* weights;  // of the first nibble, first block
  bool first;
};

// Counts of a chunk for P pairs and V vectors (of one block or of several). `pairs`: codes of each pair. The first
// chunk sets `counts`, the others add to them; `stride`: from a block's counts to the next one's.
template <class B, int P, int V>
inline void lut_micro(const LutLayer& layer, const LutChunk& chunk, const uint16_t* const* pairs, uint16_t* counts,
                      size_t stride) {
  B t[P][V], h[P][V];
  NASB_UNROLL for (int p = 0; p < P; ++p) NASB_UNROLL for (int v = 0; v < V; ++v) t[p][v] = h[p][v] = B::zero();
  const uint8_t* table = layer.table;
  const size_t block = static_cast<size_t>(layer.nibbles) * kBlock;
  const uint8_t* weights = chunk.weights;
  for (int piece = 0; piece < chunk.pieces; ++piece) {
    const uint16_t* code[P];
    NASB_UNROLL for (int p = 0; p < P; ++p) code[p] = pairs[p] + chunk.offset[piece];
    const intptr_t count = chunk.count[piece];
    intptr_t i = 0;
    for (; i + 3 <= count; i += 3, weights += 3 * kBlock) {
      NASB_UNROLL for (int p = 0; p < P; ++p) {
        const B entry[3] = {B::table(table + code[p][i]), B::table(table + code[p][i + 1]),
                            B::table(table + code[p][i + 2])};
        NASB_UNROLL for (int v = 0; v < V; ++v) {
          const uint8_t* w = weights + lut_block_of<B>(v) * block + lut_byte_of<B>(v);
          const B sum = entry[0]
                            .shuffle(B::load(w))
                            .add8(entry[1].shuffle(B::load(w + kBlock)))
                            .add8(entry[2].shuffle(B::load(w + 2 * kBlock)));
          t[p][v] = t[p][v].add8(sum);
          h[p][v] = h[p][v].add8(sum.template shift_right_16<4>());
          B::keep(t[p][v]);
          B::keep(h[p][v]);
        }
      }
    }
    for (; i < count; ++i, weights += kBlock) NASB_UNROLL for (int p = 0; p < P; ++p) {
        const B entry = B::table(table + code[p][i]);
        NASB_UNROLL for (int v = 0; v < V; ++v) {
          const B look = entry.shuffle(B::load(weights + lut_block_of<B>(v) * block + lut_byte_of<B>(v)));
          t[p][v] = t[p][v].add8(look);
          h[p][v] = h[p][v].add8(look.template shift_right_16<4>());
        }
      }
  }
  constexpr int kHalf = B::kBytes / 2;  // 16-bit lanes
  NASB_UNROLL for (int p = 0; p < P; ++p) NASB_UNROLL for (int v = 0; v < V; ++v) {
    const LutCounts<B> n = lut_decode(t[p][v], h[p][v]);
    for (int pixel = 0; pixel < 2; ++pixel) {
      uint16_t* row = counts + lut_block_of<B>(v) * stride + (2 * p + pixel) * kBlock + lut_byte_of<B>(v);
      B even = n.even[pixel], odd = n.odd[pixel];
      if (!chunk.first) {
        even = even.add16(B::load(reinterpret_cast<const uint8_t*>(row)));
        odd = odd.add16(B::load(reinterpret_cast<const uint8_t*>(row + kHalf)));
      }
      even.store(reinterpret_cast<uint8_t*>(row));
      odd.store(reinterpret_cast<uint8_t*>(row + kHalf));
    }
  }
}

// V vectors of output channels, one block or several, for a tile of pixel pairs: P pairs at a time as long as there are
// as many. What follows the sums comes last, for the whole tile, with its parameters in registers.
template <class B, class F, int P, int V>
void lut_block(const LutLayer& layer, const LutTile& tile, int block, const Epilogue& e, int channel,
               int channel_count) {
  const int chunks = (layer.nibbles + kLutChunk - 1) / kLutChunk;
  const int triples = (layer.nibbles + 2) / 3;
  const size_t stride = static_cast<size_t>(2) * tile.pair_count * kBlock;
  for (int i = 0; i < chunks; ++i) {
    const int chunk_begin = triples * i / chunks * 3;
    const int chunk_end = i + 1 == chunks ? layer.nibbles : triples * (i + 1) / chunks * 3;
    for (int z = 0; z < tile.zone_count; ++z) {
      const LutZone& zone = tile.zones[z];
      const int begin = chunk_begin > zone.begin ? chunk_begin : zone.begin;
      const int end = chunk_end < zone.end ? chunk_end : zone.end;
      if (begin >= end) continue;
      LutChunk chunk(layer, begin, end);
      chunk.weights = layer.weights + (static_cast<size_t>(block) * layer.nibbles + begin) * kBlock;
      chunk.first = begin == zone.begin;
      int p = zone.first_pair;
      for (; p + P <= zone.pair_end; p += P)
        lut_micro<B, P, V>(layer, chunk, tile.pairs + p, tile.counts + 2 * p * kBlock, stride);
      for (; p < zone.pair_end; ++p)
        lut_micro<B, 1, V>(layer, chunk, tile.pairs + p, tile.counts + 2 * p * kBlock, stride);
    }
  }
  const bool runs = tile.second_pixel >= 0;
  const size_t rows = runs ? 2 : 1;  // from a pixel to the next one of its run
  for (int c = 0; c < channel_count; c += kBlock) {
    const uint16_t* counts = tile.counts + c / kBlock * stride;
    const int count = channel_count - c < kBlock ? channel_count - c : kBlock;
    epilogue_counts<F>(e, counts, rows, tile.base, tile.first_pixel, tile.pixel_count, channel + c, count);
    if (runs)
      epilogue_counts<F>(e, counts + kBlock, rows, tile.base + 1, tile.second_pixel, tile.second_count, channel + c,
                         count);
  }
}

// Weight bytes of a block in the order that makes even and odd bytes of each vector two runs of channels.
template <class B>
int lut_lane(int position) {
  const int vector = position / B::kBytes, byte = position % B::kBytes;
  return vector * B::kBytes + (byte % 2) * (B::kBytes / 2) + byte / 2;
}

}  // namespace
}  // namespace nasb

// Real convolution and linear layers: sums over segments of contiguous inputs, for any instruction set. Included by
// isa_*.cpp only. F as in epilogue.h, with multiply_add(a, b, c) = a * b + c and fill(x).
//
// One micro-kernel call keeps kRows pixels x kVectors vectors of channels in registers and walks the whole depth; each
// channel's sum is made in the order of the inputs, whatever the tile is.
#pragma once

#include "epilogue.h"
#include "isa.h"

namespace nasb {
namespace {

template <class F, int kRows, int kVectors>
inline void gemm_micro(const GemmLayer& layer, const float* const* inputs, const float* weights, float* acc) {
  F sum[kRows][kVectors];
  NASB_UNROLL for (int r = 0; r < kRows; ++r) NASB_UNROLL for (int v = 0; v < kVectors; ++v) sum[r][v] = F::fill(0);
  for (int s = 0; s < layer.segment_count; ++s) {
    const float* x[kRows];
    NASB_UNROLL for (int r = 0; r < kRows; ++r) x[r] = inputs[r] + layer.segments[s];
    for (int i = 0; i < layer.segment_length; ++i, weights += kVectors * F::kLanes) {
      F w[kVectors];
      NASB_UNROLL for (int v = 0; v < kVectors; ++v) w[v] = F::load(weights + v * F::kLanes);
      NASB_UNROLL for (int r = 0; r < kRows; ++r) {
        const F a = F::fill(x[r][i]);
        NASB_UNROLL for (int v = 0; v < kVectors; ++v) sum[r][v] = F::multiply_add(a, w[v], sum[r][v]);
      }
    }
  }
  NASB_UNROLL for (int r = 0; r < kRows; ++r) NASB_UNROLL for (int v = 0; v < kVectors; ++v) sum[r][v].store(
      acc + r * kBlock + v * F::kLanes);
}

// One pixel and kPanels panels of columns at once: as many sums as hide the time of a multiply-add. `stride`: from a
// panel's weights to the next one's.
template <class F, int kVectors, int kPanels>
inline void gemm_row(const GemmLayer& layer, const float* input, const float* weights, size_t stride, float* acc) {
  F sum[kPanels][kVectors];
  NASB_UNROLL for (int q = 0; q < kPanels; ++q) NASB_UNROLL for (int v = 0; v < kVectors; ++v) sum[q][v] = F::fill(0);
  for (int s = 0; s < layer.segment_count; ++s) {
    const float* x = input + layer.segments[s];
    for (int i = 0; i < layer.segment_length; ++i, weights += kVectors * F::kLanes) {
      const F a = F::fill(x[i]);
      NASB_UNROLL for (int q = 0; q < kPanels; ++q) NASB_UNROLL for (int v = 0; v < kVectors; ++v) sum[q][v] =
          F::multiply_add(a, F::load(weights + q * stride + v * F::kLanes), sum[q][v]);
    }
  }
  NASB_UNROLL for (int q = 0; q < kPanels; ++q) NASB_UNROLL for (int v = 0; v < kVectors; ++v) sum[q][v].store(
      acc + (q * kVectors + v) * F::kLanes);
}

// What is left of a tile goes through 4 rows, then through single ones.
template <class F, int kRows, int kVectors>
void gemm_tile(const GemmLayer& layer, const float* const* inputs, int first_pixel, int pixel_count, int first_channel,
               int channel_count, const Epilogue& e, float* scratch) {
  constexpr int kColumns = kVectors * F::kLanes, kPanels = kBlock / kColumns;
  const size_t depth = static_cast<size_t>(layer.segment_count) * layer.segment_length;
  for (int c = first_channel; c < first_channel + channel_count; c += kBlock) {
    const int count = first_channel + channel_count - c < kBlock ? first_channel + channel_count - c : kBlock;
    const float* block = layer.weights + c / kColumns * depth * kColumns;
    int rest = 0;
    for (int n = 0; n < count; n += kColumns) {
      const float* weights = block + n * depth;
      int p = 0;
      for (; p + kRows <= pixel_count; p += kRows)
        gemm_micro<F, kRows, kVectors>(layer, inputs + p, weights, scratch + p * kBlock + n);
      for (; p + 4 <= pixel_count; p += 4)
        gemm_micro<F, 4, kVectors>(layer, inputs + p, weights, scratch + p * kBlock + n);
      rest = p;
    }
    const int panels = (count + kColumns - 1) / kColumns;
    for (int p = rest; p < pixel_count; ++p) {
      int q = 0;
      if (panels == kPanels)
        gemm_row<F, kVectors, kPanels>(layer, inputs[p], block, depth * kColumns, scratch + p * kBlock), q = kPanels;
      for (; q < panels; ++q)
        gemm_row<F, kVectors, 1>(layer, inputs[p], block + q * depth * kColumns, 0,
                                 scratch + p * kBlock + q * kColumns);
    }
    epilogue<F>(e, scratch, first_pixel, pixel_count, layer.first_output + c, count);
  }
}

template <class F>
void depthwise(const float* const* taps, const float* weights, int stride, int tap_count, int count, float* acc) {
  for (int c = 0; c < count; c += F::kLanes) {
    const int n = count - c;
    F y = F::fill(0);
    for (int t = 0; t < tap_count; ++t) {
      const F x = n >= F::kLanes ? F::load(taps[t] + c) : F::load_part(taps[t] + c, n);
      y = F::multiply_add(x, F::load(weights + static_cast<size_t>(t) * stride + c), y);
    }
    y.store(acc + c);
  }
}

}  // namespace
}  // namespace nasb

// Real convolutions with 7 columns of taps and stride 2, the stem of most networks for 224x224, with less than half of
// the multiplications (S. Winograd, Arithmetic Complexity of Computations, 1980; for convolutions: Lavin and Gray,
// arXiv 1509.09308), for any instruction set. Included by isa_*.cpp only. F as in epilogue.h, with multiply_add and
// fill(x).
//
// Even and odd columns are two convolutions of stride 1, with 4 and with 3 taps. kWinogradOutputs outputs of a row by
// either are coefficients of a product of polynomials, which its values at 7 (6) points determine: 0, 1, -1, 2, -2,
// infinity and, for the even columns alone, 1/2. So values of inputs (winograd_inputs) times values of weights
// (core/winograd.cpp) are summed over rows of taps, channels and both kinds of columns, 13 products instead of 28, and
// only the sums are turned back into outputs (winograd_outputs).
#pragma once

#include "epilogue.h"
#include "isa.h"

namespace nasb {
namespace {

// What each column of a tile adds to the values at the points, in their order above: first those of the even columns,
// then from kWinogradOdd on those of the odd ones.
alignas(64) constexpr float kFactors[13][kWinogradValues] = {
    {-4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},      {0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0},
    {8, 4, -4, 2, -2, -4, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0},    {0, 0, 0, 0, 0, 0, 0, 0, 0, -4, 4, -2, 2, 4, 0, 0},
    {5, -4, 12, -3, 5, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},    {0, 0, 0, 0, 0, 0, 0, 0, -5, -4, -4, -1, -1, 0, 0, 0},
    {-10, -9, -7, -4, 0, 5, -5, 0, 0, 0, 0, 0, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 0, 0, 0, 0, 1, -1, 2, -2, -5, 0, 0},
    {-1, 1, -3, 3, -5, -10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},  {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 0, 0, 0},
    {2, 2, 2, 2, 2, -1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0},      {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0},
    {0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0},
};

template <class F>
void winograd_inputs(const float* line, int tiles, float* values) {
  constexpr int kVectors = kWinogradValues / F::kLanes;
  for (int t = 0; t < tiles; ++t, line += 2 * kWinogradOutputs, values += kWinogradValues) {
    F sum[kVectors];
    NASB_UNROLL for (int v = 0; v < kVectors; ++v) sum[v] = F::fill(0);
    NASB_UNROLL for (int i = 0; i < 13; ++i) {
      const F x = F::fill(line[i]);
      NASB_UNROLL for (int v = 0; v < kVectors; ++v) {
        const bool all = F::kLanes > kWinogradOdd, odd = v * F::kLanes >= kWinogradOdd;
        if (all || odd == (i % 2 == 1)) sum[v] = F::multiply_add(x, F::load(kFactors[i] + v * F::kLanes), sum[v]);
      }
    }
    NASB_UNROLL for (int v = 0; v < kVectors; ++v) sum[v].store(values + v * F::kLanes);
  }
}

// Sums of one point for kRows tiles; x: its value of the first tile's even columns.
template <class F, int kRows, int kVectors, bool kOdd>
inline void winograd_micro(const WinogradLayer& layer, const float* x, const float* weights, float* sums) {
  F sum[kRows][kVectors];
  NASB_UNROLL for (int r = 0; r < kRows; ++r) NASB_UNROLL for (int v = 0; v < kVectors; ++v) sum[r][v] = F::fill(0);
  const auto add = [&](const float* values) {
    F w[kVectors];
    NASB_UNROLL for (int v = 0; v < kVectors; ++v) w[v] = F::load(weights + v * F::kLanes);
    NASB_UNROLL for (int r = 0; r < kRows; ++r) {
      const F a = F::fill(values[r * kWinogradValues]);
      NASB_UNROLL for (int v = 0; v < kVectors; ++v) sum[r][v] = F::multiply_add(a, w[v], sum[r][v]);
    }
    weights += kVectors * F::kLanes;
  };
  const size_t step = static_cast<size_t>(kWinogradValues) * layer.tiles;
  for (int d = 0; d < layer.depth; ++d, x += step) {
    add(x);
    if (kOdd) add(x + kWinogradOdd);
  }
  NASB_UNROLL for (int r = 0; r < kRows; ++r) NASB_UNROLL for (int v = 0; v < kVectors; ++v) sum[r][v].store(
      sums + (r * kVectors + v) * F::kLanes);
}

template <class F, int kRows, int kVectors, bool kOdd>
inline void winograd_point(const WinogradLayer& layer, const float* x, const float* weights, int tiles, float* sums) {
  const auto at = [&](int t) { return x + t * kWinogradValues; };
  constexpr int kColumns = kVectors * F::kLanes;
  if (tiles % kRows == 0)
    for (int t = 0; t < tiles; t += kRows)
      winograd_micro<F, kRows, kVectors, kOdd>(layer, at(t), weights, sums + t * kColumns);
  else
    for (int t = 0; t < tiles; t += kWinogradStep)
      winograd_micro<F, kWinogradStep, kVectors, kOdd>(layer, at(t), weights, sums + t * kColumns);
}

// The outputs of a tile from its sums at the points.
template <class F>
inline void winograd_outputs(const float* sums, size_t step, float* acc) {
  const auto at = [&](int p) { return F::load(sums + p * step); };
  const F one = at(1) + at(2), two = at(3) + at(4), half = at(6), minus = F::fill(-1);
  const F one_odd = F::multiply_add(minus, at(2), at(1)), two_odd = F::multiply_add(minus, at(4), at(3));
  const auto sum = [&](F first, float two_by, F second, float half_by) {
    return F::multiply_add(F::fill(half_by), half, F::multiply_add(F::fill(two_by), second, first));
  };
  (at(0) + sum(one, 1, two, 1)).store(acc);
  sum(one_odd, 2, two_odd, 0.5f).store(acc + kBlock);
  sum(one, 4, two, 0.25f).store(acc + 2 * kBlock);
  (at(5) + sum(one_odd, 8, two_odd, 0.125f)).store(acc + 3 * kBlock);
}

template <class F, int kRows, int kVectors>
void winograd_tile(const WinogradLayer& layer, const float* values, int first_pixel, int pixel_count, int channels,
                   const Epilogue& e, float* scratch) {
  constexpr int kColumns = kVectors * F::kLanes;
  constexpr size_t kStep = size_t{kWinogradTiles} * kColumns;  // from a point's sums to the next one's
  float *sums = scratch, *acc = scratch + kWinogradPoints * kStep;
  constexpr int kPixels = kWinogradOutputs * kWinogradStep;
  const int tiles = (pixel_count + kPixels - 1) / kPixels * kWinogradStep;
  const size_t depth = static_cast<size_t>(layer.depth) * kColumns;
  const float* weights = layer.weights;
  for (int c = 0; c < channels; c += kBlock) {
    const int count = channels - c < kBlock ? channels - c : kBlock;
    for (int n = 0; n < count; n += kColumns) {
      for (int p = 0; p < kWinogradPoints; ++p) {
        const float* x = values + p;
        float* to = sums + p * kStep;
        const bool odd = p + 1 < kWinogradPoints;
        if (odd)
          winograd_point<F, kRows, kVectors, true>(layer, x, weights, tiles, to);
        else
          winograd_point<F, kRows, kVectors, false>(layer, x, weights, tiles, to);
        weights += (odd ? 2 : 1) * depth;
      }
      for (int t = 0; t < tiles; ++t)
        for (int v = 0; v < kVectors; ++v)
          winograd_outputs<F>(sums + t * kColumns + v * F::kLanes, kStep,
                              acc + t * kWinogradOutputs * kBlock + n + v * F::kLanes);
    }
    epilogue<F>(e, acc, first_pixel, pixel_count, c, count);
  }
}

}  // namespace
}  // namespace nasb

#include "winograd.h"

#include <algorithm>
#include <cmath>

namespace nasb {
namespace {

constexpr int kMostDepth = 896;

// Where polynomials are evaluated, in kernels/winograd.h's order (infinity: the highest coefficient alone), and what
// the values of weights are divided by, even and odd columns: the inputs' factors there are made whole by it.
struct Point {
  double at;
  bool infinite;
  double even, odd;
};
constexpr Point kPoints[kWinogradPoints] = {
    {0, false, -4, 4},     {1, false, -6, -6}, {-1, false, 18, -6},        {2, false, 72, 24},
    {-2, false, -120, 24}, {0, true, 2, 1},    {0.5, false, 45.0 / 32, 0},
};

// The value of the polynomial whose coefficients are every second one of 7 taps.
float value(const Point& point, const float* taps, bool odd) {
  double y = 0;
  for (int j = odd ? 5 : 6; j >= 0; j -= 2) {
    y = y * point.at + taps[j];
    if (point.infinite) break;
  }
  return static_cast<float>(y / (odd ? point.odd : point.even));
}

}  // namespace

bool Winograd::fits(const Layer& layer) {
  const ConvShape& s = layer.shape;
  const bool possible =
      s.groups == 1 && s.kernel_width == 7 && s.stride_width == 2 && s.dilation_width == 1 && s.dilation_height == 1;
  // Shorter rows would not fill a micro-kernel; deeper sums would read more weights than a row of outputs repays.
  const bool faster = s.out_width >= kWinogradOutputs * kWinogradStep && s.in_channels * s.kernel_height <= kMostDepth;
  return possible && faster &&
         std::any_of(layer.weights.begin(), layer.weights.end(), [](float w) { return w != std::trunc(w); });
}

Winograd::Winograd(const Layer& layer, const Isa& isa) : s_(layer.shape), isa_(isa) {
  constexpr int kPixels = kWinogradOutputs * kWinogradStep;
  tiles_ = (s_.out_width + kPixels - 1) / kPixels * kWinogradStep;
  rows_ = (s_.out_height - 1) * s_.stride_height + s_.kernel_height;
  const int columns = isa.gemm_columns, taps = s_.taps();
  const int panels = (s_.out_channels + columns - 1) / columns;
  weights_.assign(size_t{1} * panels * columns * 13 * s_.kernel_height * s_.in_channels, 0);
  float* to = weights_.data();
  for (int panel = 0; panel < panels; ++panel)
    for (const Point& point : kPoints)
      for (int ky = 0; ky < s_.kernel_height; ++ky)
        for (int c = 0; c < s_.in_channels; ++c)
          for (int odd = 0; odd < (point.odd != 0 ? 2 : 1); ++odd, to += columns)
            for (int o = panel * columns; o < std::min(s_.out_channels, (panel + 1) * columns); ++o)
              to[o - panel * columns] =
                  value(point, layer.weights.data() + (size_t{1} * o * s_.in_channels + c) * taps + ky * 7, odd);
}

size_t Winograd::shared_bytes() const {
  return aligned(sizeof(float) * rows_ * s_.in_channels * kWinogradValues * tiles_);
}

size_t Winograd::thread_bytes() const {
  const size_t sums = kWinogradTiles * (kWinogradPoints * isa_.gemm_columns + kWinogradOutputs * kBlock);
  return aligned(sizeof(float) * std::max(line_floats(), sums));
}

// A row with what lies outside of the image, as far as its tiles reach.
size_t Winograd::line_floats() const { return (tiles_ - 1) * size_t{2 * kWinogradOutputs} + 13; }

void Winograd::transform(const float* x, const float* image, float* values, uint8_t* scratch, size_t scratch_step,
                         ThreadPool& pool) const {
  const int inside = std::min(s_.in_width, (s_.out_width - 1) * 2 + 7 - s_.pad_left);  // that an output reads
  const size_t plane = size_t{1} * s_.in_height * s_.in_width, row_floats = size_t{1} * kWinogradValues * tiles_;
  constexpr int kRows = 4;
  pool.parallel((rows_ + kRows - 1) / kRows, [&](int item, int thread) {
    float* line = reinterpret_cast<float*>(scratch + scratch_step * thread);
    std::fill_n(line, line_floats(), 0.0f);
    for (int r = item * kRows; r < std::min(rows_, (item + 1) * kRows); ++r) {
      const int y = r - s_.pad_top;
      float* to = values + r * s_.in_channels * row_floats;
      if (y < 0 || y >= s_.in_height) {
        std::fill_n(to, s_.in_channels * row_floats, 0.0f);
        continue;
      }
      const size_t pixel = size_t{1} * y * s_.in_width;
      for (int c = 0; c < s_.in_channels; ++c, to += row_floats) {
        if (image)
          std::copy_n(image + c * plane + pixel, inside, line + s_.pad_left);
        else
          for (int i = 0; i < inside; ++i) line[s_.pad_left + i] = x[(pixel + i) * s_.in_channels + c];
        isa_.winograd_inputs(line, tiles_, to);
      }
    }
  });
}

void Winograd::sum(const float* values, int row, int column, int first_pixel, int count, const Epilogue& e,
                   uint8_t* scratch) const {
  const WinogradLayer layer{weights_.data(), s_.kernel_height * s_.in_channels, tiles_};
  const size_t first = size_t{1} * row * s_.stride_height * s_.in_channels * kWinogradValues * tiles_;
  isa_.winograd_tile(layer, values + first + column / kWinogradOutputs * kWinogradValues, first_pixel, count,
                     s_.out_channels, e, reinterpret_cast<float*>(scratch));
}

}  // namespace nasb

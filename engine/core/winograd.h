// Real convolutions with 7 columns of taps and stride 2 by Winograd's method: kernels/winograd.h derives it.
#pragma once

#include <cstdint>

#include "binary_conv.h"
#include "graph.h"
#include "kernels/isa.h"
#include "memory.h"
#include "thread_pool.h"

namespace nasb {

class Winograd {
 public:
  // Whether the method can be had there, is faster, and loses nothing: whole numbers are summed exactly without it.
  static bool fits(const Layer& layer);
  Winograd(const Layer& layer, const Isa& isa);

  size_t shared_bytes() const;
  size_t thread_bytes() const;
  // The values of an input, channels first (`image`) or last (`x`): one of them is null.
  void transform(const float* x, const float* image, float* values, uint8_t* scratch, size_t scratch_step,
                 ThreadPool& pool) const;
  // Outputs (row, column) to (row, column + count) into e's pixels from `first_pixel` on; column: a multiple of
  // kWinogradOutputs, count: at most kWinogradTiles of them.
  void sum(const float* values, int row, int column, int first_pixel, int count, const Epilogue& e,
           uint8_t* scratch) const;

 private:
  size_t line_floats() const;

  ConvShape s_;
  const Isa& isa_;
  int tiles_;  // of a row
  int rows_;   // of the input that are read, with those outside of it
  AlignedVector<float> weights_;
};

}  // namespace nasb

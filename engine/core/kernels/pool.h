// Pooling of rows that lie in memory as they are, for any instruction set. Included by isa_*.cpp only. F as in
// epilogue.h, with max(x, y): NaN where either is.
#pragma once

#include "epilogue.h"
#include "isa.h"

namespace nasb {
namespace {

template <class F, bool kLargest, int kTaps>  // kTaps 0: as many as the run says
void pool_rows(const PoolRun& run, float* to) {
  const int tap_count = kTaps ? kTaps : run.tap_count;
  size_t rows = run.rows, count = run.count;
  if (run.step == count && run.to_step == count) count *= rows, rows = 1;
  const F factor = F::fill(run.factor);
  const auto pooled = [&](auto read) {
    F y = read(0);
    NASB_UNROLL for (int t = 1; t < tap_count; ++t) y = kLargest ? F::max(y, read(t)) : y + read(t);
    return kLargest ? y : y * factor;
  };
  for (size_t row = 0; row < rows; ++row, to += run.to_step) {
    const float* from[kTaps ? kTaps : 1];
    for (int t = 0; t < kTaps; ++t) from[t] = run.taps[t] + row * run.step;
    const auto tap = [&](int t) { return kTaps ? from[t] : run.taps[t] + row * run.step; };
    size_t i = 0;
    for (; i + F::kLanes <= count; i += F::kLanes) pooled([&](int t) { return F::load(tap(t) + i); }).store(to + i);
    const int rest = static_cast<int>(count - i);
    if (rest > 0) pooled([&](int t) { return F::load_part(tap(t) + i, rest); }).store_part(to + i, rest);
  }
}

template <class F, bool kLargest>
void pool_taps(const PoolRun& run, float* to) {
  switch (run.tap_count) {
    case 2:
      return pool_rows<F, kLargest, 2>(run, to);
    case 3:
      return pool_rows<F, kLargest, 3>(run, to);
    case 9:
      return pool_rows<F, kLargest, 9>(run, to);
    default:
      return pool_rows<F, kLargest, 0>(run, to);
  }
}

template <class F>
void pool(const PoolRun& run, float* to) {
  if (run.largest) return pool_taps<F, true>(run, to);
  pool_taps<F, false>(run, to);
}

}  // namespace
}  // namespace nasb

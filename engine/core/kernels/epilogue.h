// What follows a sum, for any instruction set: scale and bias, residual, activation, then the float output and the
// packed signs of every reader, all from registers. Included by isa_*.cpp only. F is a vector of floats:
//   kLanes, load, store, load_part(p, n), store_part(p, v, n), +, *, negative_or(x, y): y where x < 0, else x,
//   relu(x), clip(x, low, high): NaN stays NaN, below(x, t): a word from 32 / kLanes vectors, bit 1 where not x >= t;
//   dots(counts, base): base - 2 n of 16-bit counts n.
#pragma once

#include "isa.h"

namespace nasb {
namespace {

enum { kNoScale, kBias, kScaleBias };

// Where sums come from, pixel by pixel: floats, or counts of differing bits.
template <class F>
struct Sums {
  const float* acc;
  size_t stride;  // from a pixel to the next one
  F at(int lane) const { return F::load(acc + lane); }
  Sums from(int lane) const { return {acc + lane, stride}; }
  void next() { acc += stride; }
};
template <class F>
struct Counts {
  const uint16_t* counts;  // [pixels][kBlock]
  size_t rows;             // from a pixel to the next one
  const float* base;       // [pixels]: the sum where no bit differs
  F at(int lane) const { return F::dots(counts + lane, *base); }
  Counts from(int lane) const { return {counts + lane, rows, base}; }
  void next() { counts += rows * kBlock, base += rows; }
};

constexpr int kKept = 8;  // pixels whose values wait for more_signs

// The signs of `pixel_count` pixels' values [pixel_count][32] for the second reader and those behind it. Apart, so that
// the loop over all pixels, which mostly have one reader, keeps its registers.
template <class F>
__attribute__((noinline)) void more_signs(const Epilogue& e, const float* values, size_t first_pixel, int pixel_count,
                                          int k, uint32_t used) {
  constexpr int kVectors = 32 / F::kLanes;
  for (int s = 1; s < e.sign_outputs; ++s) {
    const SignOutput& sign = e.signs[s];
    F threshold[kVectors], v[kVectors];
    NASB_UNROLL for (int g = 0; g < kVectors; ++g) threshold[g] = F::load(sign.threshold + k + g * F::kLanes);
    uint32_t* word = sign.words + first_pixel * sign.stride + k / 32;
    for (int p = 0; p < pixel_count; ++p, word += sign.stride) {
      NASB_UNROLL for (int g = 0; g < kVectors; ++g) v[g] = F::load(values + p * 32 + g * F::kLanes);
      *word = F::below(v, threshold) & used;
    }
  }
}

// Up to 32 channels, of which the first kUsed vectors hold all that there are.
template <class F, int kAffine, bool kResidual, int kRectify, int kUsed, class Source>
void epilogue_channels(const Epilogue& e, Source source, int first_pixel, int pixel_count, int k, int rest) {
  constexpr int kLanes = F::kLanes, kVectors = 32 / kLanes;
  constexpr bool kScales = kAffine == kScaleBias, kShifts = kRectify == static_cast<int>(Rectify::kShiftedPrelu);
  constexpr bool kClips = kRectify == static_cast<int>(Rectify::kClip);
  constexpr bool kSlopes = kShifts || kRectify == static_cast<int>(Rectify::kPrelu);
  const bool full = rest >= kUsed * kLanes;
  const int first = kResidual ? k % e.residual_channels : 0;
  // Parameters stay in registers, where there are enough of them, while the pixels pass.
  F scale[kUsed], bias[kUsed], shift_in[kUsed], slope[kUsed], shift_out[kUsed], threshold[kVectors], v[kVectors];
  NASB_UNROLL for (int g = 0; g < kUsed; ++g) {
    const int lane = k + g * kLanes;
    if (kScales) scale[g] = F::load(e.scale + lane);
    if (kAffine != kNoScale) bias[g] = F::load(e.bias + lane);
    if (kShifts) shift_in[g] = F::load(e.shift_in + lane);
    if (kSlopes) slope[g] = F::load(e.slope + lane);
    if (kShifts) shift_out[g] = F::load(e.shift_out + lane);
  }
  NASB_UNROLL for (int g = 0; g < kVectors; ++g) {
    threshold[g] = g < kUsed && e.sign_outputs ? F::load(e.signs[0].threshold + k + g * kLanes) : F::fill(0);
    v[g] = F::fill(0);
  }
  // Copies, so that what is stored cannot change them.
  const F low = F::fill(kClips ? e.low : 0), high = F::fill(kClips ? e.high : 0);
  const size_t pixel = static_cast<size_t>(first_pixel);
  const size_t residual_step = e.residual_channels, output_step = e.output_stride;
  const float* residual = kResidual ? e.residual + pixel * residual_step + first : nullptr;
  float* output = e.output ? e.output + pixel * output_step + k : nullptr;
  const int sign_outputs = e.sign_outputs;
  const size_t word_step = sign_outputs > 0 ? e.signs[0].stride : 0;
  uint32_t* word = sign_outputs > 0 ? e.signs[0].words + pixel * word_step + k / 32 : nullptr;
  float values[kKept * 32];
  const uint32_t used = rest < 32 ? (1u << rest) - 1 : ~0u;
  for (int p = 0; p < pixel_count; source.next(), ++p) {
    NASB_UNROLL for (int g = 0; g < kUsed; ++g) {
      const int lane = g * kLanes;
      F y = source.at(lane);
      if (kScales) y = y * scale[g];
      if (kAffine != kNoScale) y = y + bias[g];
      if (kResidual) y = y + (full ? F::load(residual + lane) : F::load_part(residual + lane, rest - lane));
      if (kShifts) y = y + shift_in[g];
      if (kRectify == static_cast<int>(Rectify::kRelu)) y = F::relu(y);
      if (kClips) y = F::clip(y, low, high);
      if (kSlopes) y = F::negative_or(y, y * slope[g]);
      if (kShifts) y = y + shift_out[g];
      v[g] = y;
    }
    if (kResidual) residual += residual_step;
    if (output) {
      NASB_UNROLL for (int g = 0; g < kUsed; ++g) {
        if (full)
          v[g].store(output + g * kLanes);
        else
          v[g].store_part(output + g * kLanes, rest - g * kLanes);
      }
      output += output_step;
    }
    if (!word) continue;
    *word = F::below(v, threshold) & used;
    word += word_step;
    if (sign_outputs == 1) continue;
    const int kept = p % kKept;
    NASB_UNROLL for (int g = 0; g < kVectors; ++g) v[g].store(values + kept * 32 + g * kLanes);
    if (kept + 1 == kKept || p + 1 == pixel_count) more_signs<F>(e, values, pixel + p - kept, kept + 1, k, used);
  }
}

template <class F, int kAffine, bool kResidual, int kRectify, class Source>
void epilogue_rows(const Epilogue& e, const Source source, int first_pixel, int pixel_count, int channel,
                   int channel_count) {
  constexpr int kAll = 32 / F::kLanes, kHalf = 16 / F::kLanes;
  for (int c = 0; c < channel_count; c += 32) {
    const int rest = channel_count - c, k = channel + c;
    if (rest > 16)
      epilogue_channels<F, kAffine, kResidual, kRectify, kAll>(e, source.from(c), first_pixel, pixel_count, k, rest);
    else
      epilogue_channels<F, kAffine, kResidual, kRectify, kHalf>(e, source.from(c), first_pixel, pixel_count, k, rest);
  }
}

template <class F, int kAffine, bool kResidual, class Source>
void epilogue_rectify(const Epilogue& e, const Source& source, int first_pixel, int pixel_count, int channel,
                      int count) {
  switch (e.rectify) {
    case Rectify::kNone:
      return epilogue_rows<F, kAffine, kResidual, 0>(e, source, first_pixel, pixel_count, channel, count);
    case Rectify::kRelu:
      return epilogue_rows<F, kAffine, kResidual, 1>(e, source, first_pixel, pixel_count, channel, count);
    case Rectify::kPrelu:
      return epilogue_rows<F, kAffine, kResidual, 2>(e, source, first_pixel, pixel_count, channel, count);
    case Rectify::kShiftedPrelu:
      return epilogue_rows<F, kAffine, kResidual, 3>(e, source, first_pixel, pixel_count, channel, count);
    case Rectify::kClip:
      return epilogue_rows<F, kAffine, kResidual, 4>(e, source, first_pixel, pixel_count, channel, count);
  }
}

template <class F, int kAffine, class Source>
void epilogue_residual(const Epilogue& e, const Source& source, int first_pixel, int pixel_count, int channel,
                       int count) {
  if (e.residual) return epilogue_rectify<F, kAffine, true>(e, source, first_pixel, pixel_count, channel, count);
  epilogue_rectify<F, kAffine, false>(e, source, first_pixel, pixel_count, channel, count);
}

constexpr uintptr_t kAhead = 1536;  // bytes

// The signs of kBlock channels, where nothing else is read of them, pixel by pixel: as they stand in memory where these
// are all channels, which is what is called ahead.
template <class F>
void epilogue_signs(const Epilogue& e, const float* acc, int first_pixel, int pixel_count, int channel) {
  constexpr int kVectors = 32 / F::kLanes;
  const SignOutput& sign = e.signs[0];
  F threshold[2][kVectors];
  NASB_UNROLL for (int half = 0; half < 2; ++half) NASB_UNROLL for (int g = 0; g < kVectors; ++g) threshold[half][g] =
      F::load(sign.threshold + channel + half * 32 + g * F::kLanes);
  const size_t step = e.acc_stride, word_step = sign.stride;
  uint32_t* word = sign.words + first_pixel * word_step + channel / 32;
  for (int p = 0; p < pixel_count; ++p, acc += step, word += word_step)
    NASB_UNROLL for (int half = 0; half < 2; ++half) {
      F v[kVectors];
      NASB_UNROLL for (int g = 0; g < kVectors; ++g) v[g] = F::load(acc + half * 32 + g * F::kLanes);
      // A map too large for the second cache is read as fast as the third one gives it.
      const uintptr_t ahead = reinterpret_cast<uintptr_t>(acc + half * 32) + kAhead;
      __builtin_prefetch(reinterpret_cast<const void*>(ahead));
      __builtin_prefetch(reinterpret_cast<const void*>(ahead + 64));
      word[half] = F::below(v, threshold[half]);
    }
}

template <class F>
void epilogue(const Epilogue& e, const float* acc, int first_pixel, int pixel_count, int channel, int count) {
  const Sums<F> sums{acc, static_cast<size_t>(e.acc_stride)};
  if (e.scale) return epilogue_residual<F, kScaleBias>(e, sums, first_pixel, pixel_count, channel, count);
  if (e.bias) return epilogue_residual<F, kBias>(e, sums, first_pixel, pixel_count, channel, count);
  if (!e.residual && e.rectify == Rectify::kNone && !e.output && e.sign_outputs == 1 && count == kBlock)
    return epilogue_signs<F>(e, acc, first_pixel, pixel_count, channel);
  epilogue_residual<F, kNoScale>(e, sums, first_pixel, pixel_count, channel, count);
}

// The same from a binary convolution's sums [pixel_count][kSlice]; it has scale and bias always.
template <class F>
void epilogue_slice(const Epilogue& e, const float* sums, int first_pixel, int pixel_count, int channel, int count) {
  epilogue_residual<F, kScaleBias>(e, Sums<F>{sums, kSlice}, first_pixel, pixel_count, channel, count);
}

// The same from counts [pixel_count * rows][kBlock] of differing bits.
template <class F>
void epilogue_counts(const Epilogue& e, const uint16_t* counts, size_t rows, const float* base, int first_pixel,
                     int pixel_count, int channel, int count) {
  epilogue_residual<F, kScaleBias>(e, Counts<F>{counts, rows, base}, first_pixel, pixel_count, channel, count);
}

}  // namespace
}  // namespace nasb

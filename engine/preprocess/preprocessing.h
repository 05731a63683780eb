// From an image's pixels to the network's input: the C++ twin of nasb's Preprocessing
// (src/nasb/data/_preprocessing.py).
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "preprocess/resize.h"

namespace nasb {

struct Preprocessing {
  int channels = 0;              // 1 (grey) or 3 (RGB)
  int size = 0;                  // side of the input in pixels
  int resize = 0;                // shorter side before the centre is cut out; equal to size: both sides become size
  std::vector<float> mean, std;  // per channel, of pixels in [0, 1]

  // Reads the JSON of the metadata key nasb.preprocessing. Raises Error (kFile) by key.
  static Preprocessing parse(const std::string& json);

  // Raises Error (kArgument) for an image that is empty or enormous, has neither 1 nor 3 channels, or would be enormous
  // when it is resized.
  void check(int64_t width, int64_t height, int image_channels) const;

  // Resized, cropped, normalized; writes fp32 [channels][size][size]. Checks the image.
  void apply(const Image& image, float* out) const;

 private:
  // Width and height, before the centre is cut out.
  std::pair<int64_t, int64_t> resized(int64_t width, int64_t height) const;
};

}  // namespace nasb

// From an image's pixels to the network's input: the C++ twin of nasb's Preprocessing
// (src/nasb/data/_preprocessing.py).
#pragma once

#include <cstdint>
#include <string>
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

  // Resized, cropped, normalized; writes fp32 [channels][size][size]. Raises Error (kArgument) for an empty or enormous
  // image.
  void apply(const Image& image, float* out) const;
};

}  // namespace nasb

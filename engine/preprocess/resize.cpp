// Separable, columns first, each pass rounded to 8 bits. When shrinking by s, the triangle filter is s times as wide
// (antialiasing). Coefficients are computed in fp64, normalized to the sum 1, and rounded to 22 bits after the point;
// sums are exact in 32 bits. Documented in Pillow's handbook (concepts, filters) as "bilinear"; the tests compare with
// Pillow itself.
#include "preprocess/resize.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

namespace nasb {
namespace {

constexpr int kBits = 22;

struct Window {  // which inputs an output is made of, and how much of each
  int first = 0;
  std::vector<int32_t> weights;
};

std::vector<Window> windows(int from, int to) {
  const double scale = static_cast<double>(from) / to;
  const double radius = std::max(scale, 1.0);
  std::vector<Window> result(static_cast<size_t>(to));
  std::vector<double> weights;
  for (int i = 0; i < to; ++i) {
    const double center = (i + 0.5) * scale;
    const int first = std::max(static_cast<int>(center - radius + 0.5), 0);
    const int end = std::min(static_cast<int>(center + radius + 0.5), from);
    weights.clear();
    double sum = 0;
    for (int x = first; x < end; ++x) {
      const double distance = std::abs((x - center + 0.5) * (1.0 / radius));
      weights.push_back(distance < 1.0 ? 1.0 - distance : 0.0);
      sum += weights.back();
    }
    Window& window = result[static_cast<size_t>(i)];
    window.first = first;
    for (const double weight : weights) {
      window.weights.push_back(static_cast<int32_t>((sum != 0 ? weight / sum : weight) * (1 << kBits) + 0.5));
    }
  }
  return result;
}

uint8_t rounded(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> kBits, 0, 255)); }

Image resize_columns(const Image& image, int width) {
  const int channels = image.channels;
  Image result{width, image.height, channels, {}};
  result.pixels.resize(static_cast<size_t>(width) * image.height * channels);
  const std::vector<Window> all = windows(image.width, width);
  uint8_t* out = result.pixels.data();
  for (int y = 0; y < image.height; ++y) {
    const uint8_t* row = image.pixels.data() + static_cast<size_t>(y) * image.width * channels;
    for (const Window& window : all) {
      for (int c = 0; c < channels; ++c) {
        const uint8_t* in = row + static_cast<size_t>(window.first) * channels + c;
        int32_t sum = 1 << (kBits - 1);
        for (const int32_t weight : window.weights) {
          sum += weight * *in;
          in += channels;
        }
        *out++ = rounded(sum);
      }
    }
  }
  return result;
}

Image resize_rows(const Image& image, int height) {
  const size_t stride = static_cast<size_t>(image.width) * image.channels;
  Image result{image.width, height, image.channels, {}};
  result.pixels.resize(stride * height);
  const std::vector<Window> all = windows(image.height, height);
  std::vector<int32_t> sums(stride);
  for (int y = 0; y < height; ++y) {
    const Window& window = all[static_cast<size_t>(y)];
    std::fill(sums.begin(), sums.end(), 1 << (kBits - 1));
    const uint8_t* row = image.pixels.data() + stride * window.first;
    for (const int32_t weight : window.weights) {
      for (size_t x = 0; x < stride; ++x) sums[x] += weight * row[x];
      row += stride;
    }
    uint8_t* out = result.pixels.data() + stride * y;
    for (size_t x = 0; x < stride; ++x) out[x] = rounded(sums[x]);
  }
  return result;
}

}  // namespace

Image resize_bilinear(const Image& image, int width, int height) {
  if (width == image.width) return height == image.height ? image : resize_rows(image, height);
  if (height == image.height) return resize_columns(image, width);
  const bool rows_first = height < image.height && image.height - height > 2 * (image.width - width);
  return rows_first ? resize_columns(resize_rows(image, height), width)
                    : resize_rows(resize_columns(image, width), height);
}

}  // namespace nasb

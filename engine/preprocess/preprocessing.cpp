#include "preprocess/preprocessing.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/error.h"
#include "preprocess/json.h"

namespace nasb {
namespace {

constexpr int kMaxSide = 1 << 16;
constexpr int64_t kMaxBytes = int64_t{1} << 30;  // of a resized image, and of what is between the two passes

[[noreturn]] void fail(const std::string& problem) {
  throw Error(ErrorCode::kFile, "metadata \"nasb.preprocessing\": " + problem);
}

const json::Value& member(const json::Value& table, const std::string& key) {
  const json::Value* found = table.find(key);
  if (found == nullptr) fail("lacks \"" + key + "\"");
  return *found;
}

int integer(const json::Value& table, const std::string& key) {
  const json::Value& value = member(table, key);
  if (value.kind != json::Kind::kNumber || value.number < 1 || value.number > kMaxSide ||
      value.number != std::floor(value.number)) {
    fail("\"" + key + "\" is not a whole number from 1 to " + std::to_string(kMaxSide));
  }
  return static_cast<int>(value.number);
}

std::vector<float> per_channel(const json::Value& table, const std::string& key, int channels) {
  const json::Value& value = member(table, key);
  if (value.kind != json::Kind::kList || value.items.size() != static_cast<size_t>(channels)) {
    fail("\"" + key + "\" is not a list of " + std::to_string(channels) + " numbers");
  }
  std::vector<float> result;
  for (const json::Value& item : value.items) {
    if (item.kind != json::Kind::kNumber)
      fail("\"" + key + "\" is not a list of " + std::to_string(channels) + " numbers");
    if (!std::isfinite(static_cast<float>(item.number))) fail("\"" + key + "\" holds a number that fp32 does not");
    result.push_back(static_cast<float>(item.number));
  }
  return result;
}

Image to_channels(const Image& image, int channels) {
  if (image.channels == channels) return image;
  const size_t count = static_cast<size_t>(image.width) * image.height;
  Image result{image.width, image.height, channels, {}};
  result.pixels.resize(count * channels);
  for (size_t i = 0; i < count; ++i) {
    if (channels == 3) {
      for (size_t c = 0; c < 3; ++c) result.pixels[3 * i + c] = image.pixels[i];
    } else {  // ITU-R 601 luma, in 16 bits after the point, as Pillow has it
      const uint8_t* rgb = image.pixels.data() + 3 * i;
      result.pixels[i] = static_cast<uint8_t>((rgb[0] * 19595u + rgb[1] * 38470u + rgb[2] * 7471u + 0x8000u) >> 16);
    }
  }
  return result;
}

// Half of a difference, a half itself going to the even neighbour, as Python's round().
int half(int difference) {
  const int down = difference / 2;
  return difference % 2 != 0 && down % 2 != 0 ? down + 1 : down;
}

}  // namespace

Preprocessing Preprocessing::parse(const std::string& text) {
  json::Value table;
  try {
    table = json::parse(text);
  } catch (const Error& error) {
    fail(error.what());
  }
  if (table.kind != json::Kind::kTable) fail("is not a table");
  Preprocessing result;
  result.channels = integer(table, "channels");
  result.size = integer(table, "size");
  result.resize = integer(table, "resize");
  if (result.channels != 1 && result.channels != 3) fail("\"channels\" is neither 1 nor 3");
  if (result.resize < result.size) fail("\"resize\" is smaller than \"size\"");
  result.mean = per_channel(table, "mean", result.channels);
  result.std = per_channel(table, "std", result.channels);
  for (const float value : result.std) {
    if (!(value > 0)) fail("a value of \"std\" is not above 0");
  }
  return result;
}

std::pair<int64_t, int64_t> Preprocessing::resized(int64_t width, int64_t height) const {
  if (resize == size) return {size, size};
  const int64_t shorter = std::min(width, height);
  return {resize * width / shorter, resize * height / shorter};
}

void Preprocessing::check(int64_t width, int64_t height, int image_channels) const {
  const std::string what = "an image of " + std::to_string(width) + " x " + std::to_string(height) + " pixels";
  const bool fits = width >= 1 && height >= 1 && width <= kMaxSide && height <= kMaxSide;
  if (!fits || (image_channels != 1 && image_channels != 3)) {
    throw Error(ErrorCode::kArgument, what + " with " + std::to_string(image_channels) +
                                          " channels cannot be used; give sides of 1 to " + std::to_string(kMaxSide) +
                                          " pixels, and 1 or 3 channels");
  }
  const auto [new_width, new_height] = resized(width, height);
  if (std::max(width, new_width) * std::max(height, new_height) * channels > kMaxBytes) {
    throw Error(ErrorCode::kArgument, what + " cannot be resized to " + std::to_string(new_width) + " x " +
                                          std::to_string(new_height) + ", which takes more than 1 GiB");
  }
}

void Preprocessing::apply(const Image& given, float* out) const {
  check(given.width, given.height, given.channels);
  const auto [new_width, new_height] = resized(given.width, given.height);
  const Image image =
      resize_bilinear(to_channels(given, channels), static_cast<int>(new_width), static_cast<int>(new_height));
  const size_t left = static_cast<size_t>(half(image.width - size)),
               top = static_cast<size_t>(half(image.height - size));
  for (int c = 0; c < channels; ++c) {
    for (int y = 0; y < size; ++y) {
      const uint8_t* row = image.pixels.data() + ((top + y) * image.width + left) * channels + c;
      for (int x = 0; x < size; ++x) *out++ = (static_cast<float>(row[x * channels]) / 255.0f - mean[c]) / std[c];
    }
  }
}

}  // namespace nasb

// Pillow's bilinear resize of 8-bit images, bit for bit (of Pillow 13; see resize.cpp).
#pragma once

#include <cstdint>
#include <vector>

namespace nasb {

struct Image {  // 8-bit pixels [height][width][channels]
  int width = 0, height = 0, channels = 0;
  std::vector<uint8_t> pixels;
};

Image resize_bilinear(const Image& image, int width, int height);

}  // namespace nasb

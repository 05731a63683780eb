// The two image formats that need no library: .npy (NumPy) and .ppm / .pgm (binary, 8 bits).
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace nasb {

// One line for the user; nasb-run ends with 2.
class UserError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct ImageFile {
  // Either pixels of one image, 8 bits, [height][width][channels] ...
  int width = 0, height = 0, channels = 0;
  std::vector<uint8_t> pixels;
  // ... or images that are the network's input already: [batch, C, H, W].
  std::vector<int64_t> shape;
  std::vector<float> values;

  bool is_pixels() const { return shape.empty(); }
};

// Raises UserError.
ImageFile read_image_file(const std::string& path);

}  // namespace nasb

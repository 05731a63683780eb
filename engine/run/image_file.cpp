#include "image_file.h"

#include <cctype>
#include <cstring>

#include "core/error.h"
#include "preprocess/file.h"

namespace nasb {
namespace {

constexpr int64_t kMaxBytes = int64_t{1} << 31;
constexpr int64_t kMaxSide = 1 << 16;

[[noreturn]] void refuse(const std::string& path, const std::string& problem) {
  throw UserError(path + ": " + problem);
}

std::string read_bytes(const std::string& path) {
  try {
    return read_file(path);
  } catch (const Error& error) {
    refuse(path, error.what());
  }
}

// Netpbm: "P6" (RGB) or "P5" (grey), width, height, largest value (255), one white space, pixels. "#" begins a comment.
class Netpbm {
 public:
  Netpbm(const std::string& path, const std::string& bytes) : path_(path), bytes_(bytes) {}

  ImageFile read() {
    ImageFile image;
    image.channels = bytes_[1] == '6' ? 3 : 1;
    at_ = 2;
    image.width = static_cast<int>(number("width", kMaxSide));
    image.height = static_cast<int>(number("height", kMaxSide));
    if (number("largest value", 65535) != 255) refuse(path_, "has more or less than 8 bits per channel");
    if (!more() || std::isspace(static_cast<unsigned char>(bytes_[at_])) == 0)
      refuse(path_, "its largest value, 255, is not followed by one white space and the pixels");
    ++at_;
    const size_t size = static_cast<size_t>(image.width) * image.height * image.channels;
    if (at_ > bytes_.size() || bytes_.size() - at_ < size) {
      refuse(path_, std::to_string(size) + " bytes of pixels expected, " +
                        std::to_string(bytes_.size() - std::min(at_, bytes_.size())) + " found");
    }
    image.pixels.assign(bytes_.begin() + static_cast<std::ptrdiff_t>(at_),
                        bytes_.begin() + static_cast<std::ptrdiff_t>(at_ + size));
    return image;
  }

 private:
  bool more() const { return at_ < bytes_.size(); }

  int64_t number(const char* what, int64_t most) {
    while (more() && (std::isspace(static_cast<unsigned char>(bytes_[at_])) || bytes_[at_] == '#')) {
      if (bytes_[at_] == '#') {
        while (more() && bytes_[at_] != '\n') ++at_;
      } else {
        ++at_;
      }
    }
    int64_t value = 0;
    const size_t begin = at_;
    for (; more() && std::isdigit(static_cast<unsigned char>(bytes_[at_])); ++at_) {
      value = value * 10 + (bytes_[at_] - '0');
      if (value > most) break;
    }
    if (at_ == begin || value < 1 || value > most)
      refuse(path_, std::string("its ") + what + " is not a number from 1 to " + std::to_string(most));
    return value;
  }

  const std::string& path_;
  const std::string& bytes_;
  size_t at_ = 0;
};

// NumPy's format: magic, version, length of the header, the header as the text of a Python dict, the data.
class Npy {
 public:
  Npy(const std::string& path, const std::string& bytes) : path_(path), bytes_(bytes) {}

  ImageFile read() {
    if (bytes_.size() < 12) refuse(path_, "is cut off");
    const auto byte = [&](size_t i) { return static_cast<size_t>(static_cast<unsigned char>(bytes_[i])); };
    const bool first = byte(6) == 1;
    const size_t length = byte(8) | byte(9) << 8 | (first ? 0 : byte(10) << 16 | byte(11) << 24);
    const size_t begin = first ? 10 : 12;
    if (length > bytes_.size() - begin) refuse(path_, "is cut off");
    header_ = bytes_.substr(begin, length);
    const size_t data = begin + length;

    const std::string type = quoted_after("'descr':");
    if (after("'fortran_order':").compare(0, 4, "True") == 0)
      refuse(path_, "is in Fortran order; save numpy.ascontiguousarray(array)");
    const std::vector<int64_t> shape = read_shape();
    if (type == "<f4") return floats(shape, data);
    if (type == "|u1") return pixels(shape, data);
    refuse(path_, "its dtype is " + type +
                      "; give float32 [C, H, W] or [N, C, H, W] (normalized), or uint8 [H, W, 3] (pixels)");
  }

 private:
  std::string after(const std::string& key) const {
    size_t at = header_.find(key);
    if (at == std::string::npos) refuse(path_, "its header lacks " + key);
    at += key.size();
    while (at < header_.size() && header_[at] == ' ') ++at;
    return header_.substr(at);
  }

  std::string quoted_after(const std::string& key) const {
    const std::string text = after(key);
    const size_t end = text.empty() || text[0] != '\'' ? std::string::npos : text.find('\'', 1);
    if (end == std::string::npos) refuse(path_, "its header is damaged after " + key);
    return text.substr(1, end - 1);
  }

  std::vector<int64_t> read_shape() const {
    const std::string text = after("'shape':");
    const size_t end = text.find(')');
    if (text.empty() || text[0] != '(' || end == std::string::npos)
      refuse(path_, "its header is damaged after 'shape':");
    std::vector<int64_t> shape;
    bool in_number = false;
    for (size_t i = 1; i < end; ++i) {
      const bool digit = std::isdigit(static_cast<unsigned char>(text[i])) != 0;
      if (digit) {
        if (!in_number) shape.push_back(0);
        shape.back() = shape.back() * 10 + (text[i] - '0');
        if (shape.back() > kMaxBytes || shape.size() > 8) refuse(path_, "is too large");
      }
      in_number = digit;
    }
    return shape;
  }

  // Elements, checked against the bytes that are there.
  size_t checked_size(const std::vector<int64_t>& shape, size_t data, int64_t element) const {
    int64_t size = element;
    for (const int64_t side : shape) {
      if (side == 0) refuse(path_, "is empty");
      if (size > kMaxBytes / side) refuse(path_, "is too large");
      size *= side;
    }
    if (bytes_.size() - data != static_cast<size_t>(size)) {
      refuse(path_,
             std::to_string(size) + " bytes of data expected, " + std::to_string(bytes_.size() - data) + " found");
    }
    return static_cast<size_t>(size / element);
  }

  ImageFile floats(std::vector<int64_t> shape, size_t data) const {
    if (shape.size() == 3) shape.insert(shape.begin(), 1);
    if (shape.size() != 4)
      refuse(path_, "is float32 with " + std::to_string(shape.size()) + " axes; give [C, H, W] or [N, C, H, W]");
    ImageFile image;
    image.values.resize(checked_size(shape, data, sizeof(float)));
    std::memcpy(image.values.data(), bytes_.data() + data, image.values.size() * sizeof(float));
    image.shape = std::move(shape);
    return image;
  }

  ImageFile pixels(std::vector<int64_t> shape, size_t data) const {
    if (shape.size() == 2) shape.push_back(1);
    if (shape.size() != 3 || (shape[2] != 1 && shape[2] != 3) || shape[0] > kMaxSide || shape[1] > kMaxSide) {
      refuse(path_, "is uint8, but not [H, W], [H, W, 1] or [H, W, 3] with sides up to " + std::to_string(kMaxSide));
    }
    ImageFile image;
    const size_t size = checked_size(shape, data, 1);
    image.height = static_cast<int>(shape[0]);
    image.width = static_cast<int>(shape[1]);
    image.channels = static_cast<int>(shape[2]);
    image.pixels.resize(size);
    std::memcpy(image.pixels.data(), bytes_.data() + data, size);
    return image;
  }

  const std::string& path_;
  const std::string& bytes_;
  std::string header_;
};

}  // namespace

ImageFile read_image_file(const std::string& path) {
  const std::string bytes = read_bytes(path);
  if (bytes.compare(0, 6, "\x93NUMPY") == 0) return Npy(path, bytes).read();
  if (bytes.compare(0, 2, "P6") == 0 || bytes.compare(0, 2, "P5") == 0) return Netpbm(path, bytes).read();
  refuse(path, "is neither .npy (NumPy) nor .ppm / .pgm (binary, P6 / P5); other formats: nasb-engine predict");
}

}  // namespace nasb

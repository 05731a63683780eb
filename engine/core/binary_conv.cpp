#include "binary_conv.h"

#include <algorithm>

namespace nasb {

BinaryConv::BinaryConv(const ConvShape& shape, int pad_value, const uint8_t* weights, BinaryKernel kernel,
                       const Isa& isa)
    : shape_(shape), flat_(shape), pad_value_(pad_value), kernel_(kernel), isa_(isa) {
  const int inputs = shape.group_inputs();
  group_words_ = (inputs + 31) / 32;
  group_nibbles_ = (inputs + 3) / 4;
  ragged_groups_ = shape.groups > 1 && inputs % 32 != 0;
  blocks_ = (shape.group_outputs() + kBlock - 1) / kBlock;
  // Counts are kept in 16 bits there.
  if (kernel_ == BinaryKernel::kLookup && (!isa.lut_tile || 4 * group_nibbles_ * shape.taps() > 65535))
    kernel_ = BinaryKernel::kWords;
  if (kernel_ == BinaryKernel::kWords && !isa.word_tile) kernel_ = BinaryKernel::kPortable;
  const size_t bytes = static_cast<size_t>(shape.out_channels) * shape.taps() * ((inputs + 7) / 8);
  file_weights_.assign(weights, weights + bytes);
  // A 1x1 over the whole image is one long row: no odd pixel at the end of each row.
  if (shape.taps() == 1 && shape.stride_height == 1 && shape.stride_width == 1 && shape.pad_top == 0 &&
      shape.pad_left == 0 && shape.out_height == shape.in_height && shape.out_width == shape.in_width) {
    flat_.in_width = flat_.out_width = shape.in_width * shape.in_height;
    flat_.in_height = flat_.out_height = 1;
  }
  if (ragged_groups_)
    shared_bytes_ = aligned(sizeof(uint32_t) * shape.in_height * shape.in_width * shape.groups * group_words_);
  grouped_bytes_ = shared_bytes_;
  if (kernel_ == BinaryKernel::kReference) {
    thread_bytes_ = aligned(sizeof(float) * kTilePixels * kBlock);
    return;
  }
  if (kernel_ == BinaryKernel::kLookup)
    pack_for_lookup();
  else
    pack_for_words();
  std::vector<uint8_t>().swap(file_weights_);
}

bool BinaryConv::weight_bit(int output, int tap, int input) const {
  const int bytes = (shape_.group_inputs() + 7) / 8;
  const uint8_t byte = file_weights_[(static_cast<size_t>(output) * shape_.taps() + tap) * bytes + input / 8];
  return byte >> (input % 8) & 1;
}

std::string BinaryConv::kernel_name() const {
  if (kernel_ == BinaryKernel::kReference) return "reference";
  if (kernel_ == BinaryKernel::kLookup) return std::string("lut_") + isa_.name;
  return std::string("popcount_") + (kernel_ == BinaryKernel::kWords ? isa_.name : "portable");
}

void BinaryConv::run(const uint32_t* signs, const Epilogue& epilogue, ThreadPool& pool, uint8_t* shared,
                     uint8_t* threads) const {
  if (ragged_groups_) {
    regroup(signs, reinterpret_cast<uint32_t*>(shared), pool);
    signs = reinterpret_cast<const uint32_t*>(shared);
    shared += grouped_bytes_;
  }
  switch (kernel_) {
    case BinaryKernel::kReference:
      return run_reference(signs, epilogue, pool, threads);
    case BinaryKernel::kPortable:
    case BinaryKernel::kWords:
      return run_words(signs, epilogue, pool, shared, threads);
    case BinaryKernel::kLookup:
      return run_lookup(signs, epilogue, pool, shared, threads);
  }
}

// Gives each group words of its own.
void BinaryConv::regroup(const uint32_t* signs, uint32_t* grouped, ThreadPool& pool) const {
  const int inputs = shape_.group_inputs(), stride = (shape_.in_channels + 31) / 32,
            wanted = shape_.groups * group_words_;
  pool.parallel(shape_.in_height, [&](int y, int) {
    for (int x = 0; x < shape_.in_width; ++x) {
      const size_t pixel = static_cast<size_t>(y) * shape_.in_width + x;
      uint32_t* to = grouped + pixel * wanted;
      std::fill(to, to + wanted, 0);
      for (int c = 0; c < shape_.in_channels; ++c) {
        const uint32_t bit = signs[pixel * stride + c / 32] >> (c % 32) & 1;
        const int own = c % inputs;
        to[c / inputs * group_words_ + own / 32] |= bit << (own % 32);
      }
    }
  });
}

int BinaryConv::taps_inside(int pixel) const {
  const auto inside = [](int out, int stride, int pad, int kernel, int dilation, int size) {
    int n = 0;
    for (int k = 0; k < kernel; ++k) {
      const int in = out * stride - pad + k * dilation;
      n += in >= 0 && in < size;
    }
    return n;
  };
  const ConvShape& s = shape_;
  return inside(pixel / s.out_width, s.stride_height, s.pad_top, s.kernel_height, s.dilation_height, s.in_height) *
         inside(pixel % s.out_width, s.stride_width, s.pad_left, s.kernel_width, s.dilation_width, s.in_width);
}

// The oracle: the definition, one product after the other.
void BinaryConv::run_reference(const uint32_t* signs, const Epilogue& epilogue, ThreadPool& pool,
                               uint8_t* threads) const {
  const ConvShape& s = shape_;
  const int inputs = s.group_inputs(), outputs = s.group_outputs(), pixel_words = s.groups * group_words_;
  pool.parallel((s.pixels() + kTilePixels - 1) / kTilePixels, [&](int item, int thread) {
    float* acc = reinterpret_cast<float*>(threads + thread_bytes_ * thread);
    const int begin = item * kTilePixels, count = std::min(kTilePixels, s.pixels() - begin);
    for (int g = 0; g < s.groups; ++g)
      for (int block = 0; block < outputs; block += kBlock) {
        const int channels = std::min(kBlock, outputs - block);
        for (int p = 0; p < count; ++p)
          for (int c = 0; c < channels; ++c) {
            int64_t dot = 0;
            for (int t = 0; t < s.taps(); ++t) {
              const int y =
                  (begin + p) / s.out_width * s.stride_height - s.pad_top + t / s.kernel_width * s.dilation_height;
              const int x =
                  (begin + p) % s.out_width * s.stride_width - s.pad_left + t % s.kernel_width * s.dilation_width;
              const bool inside = y >= 0 && y < s.in_height && x >= 0 && x < s.in_width;
              for (int i = 0; i < inputs; ++i) {
                const int weight = weight_bit(g * outputs + block + c, t, i) ? -1 : 1;
                int value = pad_value_;
                if (inside) {
                  const size_t pixel = static_cast<size_t>(y) * s.in_width + x;
                  value = signs[pixel * pixel_words + g * group_words_ + i / 32] >> (i % 32) & 1 ? -1 : 1;
                }
                dot += weight * value;
              }
            }
            acc[p * kBlock + c] = static_cast<float>(dot);
          }
        isa_.epilogue(epilogue, acc, begin, count, g * outputs + block, channels);
      }
  });
}

}  // namespace nasb

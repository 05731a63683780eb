#include "binary_conv.h"

#include <algorithm>
#include <cstring>

namespace nasb {
namespace {

constexpr int kOutside = 16;   // a pixel's state outside of the image
constexpr int kTilePairs = 28;  // codes, weights and partial sums of a chunk stay in the first cache
constexpr int kWordTile = 16;  // pixels of a work item of the reference and portable kernels

size_t align(size_t bytes) { return (bytes + 63) & ~size_t{63}; }

// T[first][second][i], see kernels/lut.h.
struct Table {
  alignas(64) uint8_t bytes[17 * 32 * 16];
  Table() {
    for (int b = 0; b < 17; ++b)
      for (int a = 0; a < 32; ++a)
        for (int i = 0; i < 16; ++i) {
          const int low = a >= kOutside ? 2 : __builtin_popcount(a ^ i);
          const int high = b == kOutside ? 2 : __builtin_popcount(b ^ i);
          bytes[(b * 32 + a) * 16 + i] = static_cast<uint8_t>(low + 16 * high);
        }
  }
};

const Table& table() {
  static const Table t;
  return t;
}

}  // namespace

BinaryConv::BinaryConv(const ConvShape& shape, int pad_value, const uint8_t* weights, BinaryKernel kernel, const Isa& isa)
    : shape_(shape), flat_(shape), pad_value_(pad_value), kernel_(kernel), isa_(isa) {
  const int inputs = shape.group_inputs();
  group_nibbles_ = (inputs + 3) / 4;
  ragged_groups_ = shape.groups > 1 && inputs % 4 != 0;
  // Counts are kept in 16 bits there.
  if (kernel_ == BinaryKernel::kLookup && (!isa.lut_tile || 4 * group_nibbles_ * shape.taps() > 65535))
    kernel_ = BinaryKernel::kPortable;
  const size_t bytes = static_cast<size_t>(shape.out_channels) * shape.taps() * ((inputs + 7) / 8);
  file_weights_.assign(weights, weights + bytes);
  grouped_bytes_ = ragged_groups_ ? align(static_cast<size_t>(shape.in_height) * shape.in_width * shape.groups * group_nibbles_) : 0;
  shared_bytes_ = grouped_bytes_;
  if (kernel_ == BinaryKernel::kLookup) {
    pack_for_lookup(weights);
    file_weights_.clear();
    file_weights_.shrink_to_fit();
    return;
  }
  thread_bytes_ = align(sizeof(float) * kWordTile * kBlock);
  if (kernel_ == BinaryKernel::kPortable) {
    const int words = (inputs + 63) / 64;
    words_.assign(static_cast<size_t>(shape.out_channels) * shape.taps() * words, 0);
    for (int o = 0; o < shape.out_channels; ++o)
      for (int t = 0; t < shape.taps(); ++t)
        for (int c = 0; c < inputs; ++c)
          if (weight_bit(o, t, c))
            words_[(static_cast<size_t>(o) * shape.taps() + t) * words + c / 64] |= uint64_t{1} << (c % 64);
    shared_bytes_ += align(sizeof(uint64_t) * shape.in_height * shape.in_width * shape.groups * words);
  }
}

bool BinaryConv::weight_bit(int output, int tap, int input) const {
  const int bytes = (shape_.group_inputs() + 7) / 8;
  const uint8_t byte = file_weights_[(static_cast<size_t>(output) * shape_.taps() + tap) * bytes + input / 8];
  return byte >> (input % 8) & 1;
}

std::string BinaryConv::kernel_name() const {
  if (kernel_ == BinaryKernel::kReference) return "reference";
  if (kernel_ == BinaryKernel::kPortable) return "portable";
  return std::string("lut_") + isa_.name;
}

void BinaryConv::run(const uint8_t* signs, const Epilogue& epilogue, ThreadPool& pool, uint8_t* shared,
                     uint8_t* threads) const {
  if (ragged_groups_) {
    regroup(signs, shared, pool);
    signs = shared;
    shared += grouped_bytes_;
  }
  switch (kernel_) {
    case BinaryKernel::kReference: return run_reference(signs, epilogue, pool, threads);
    case BinaryKernel::kPortable: return run_words(signs, epilogue, pool, shared, threads);
    case BinaryKernel::kLookup: return run_lookup(signs, epilogue, pool, shared, threads);
  }
}

// Gives each group nibbles of its own.
void BinaryConv::regroup(const uint8_t* signs, uint8_t* grouped, ThreadPool& pool) const {
  const int inputs = shape_.group_inputs(), stride = (shape_.in_channels + 3) / 4;
  pool.parallel(shape_.in_height, [&](int y, int) {
    for (int x = 0; x < shape_.in_width; ++x) {
      const size_t pixel = static_cast<size_t>(y) * shape_.in_width + x;
      uint8_t* to = grouped + pixel * shape_.groups * group_nibbles_;
      std::memset(to, 0, static_cast<size_t>(shape_.groups) * group_nibbles_);
      for (int c = 0; c < shape_.in_channels; ++c) {
        const int bit = signs[pixel * stride + c / 4] >> (c % 4) & 1, own = c % inputs;
        to[c / inputs * group_nibbles_ + own / 4] |= static_cast<uint8_t>(bit << (own % 4));
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

// The sum where no bit differs. A tap outside counts 2 a nibble, which is a sum of 0 for 4 ceil(inputs / 4) channels.
float BinaryConv::base(int pixel) const {
  const int inside = pad_value_ || group_nibbles_ * 4 == shape_.group_inputs() ? shape_.taps() : taps_inside(pixel);
  return static_cast<float>(shape_.group_inputs() * inside + 4 * group_nibbles_ * (shape_.taps() - inside));
}

void BinaryConv::pack_for_lookup(const uint8_t*) {
  const ConvShape& s = shape_;
  const int outputs = s.group_outputs(), inputs = s.group_inputs(), nibbles = s.taps() * group_nibbles_;
  blocks_ = (outputs + kBlock - 1) / kBlock;
  lookup_.assign(static_cast<size_t>(s.groups) * blocks_ * nibbles * kBlock, 0);
  for (int g = 0; g < s.groups; ++g)
    for (int b = 0; b < blocks_; ++b)
      for (int position = 0; position < kBlock; ++position) {
        const int output = b * kBlock + isa_.lut_lane(position);
        if (output >= outputs) continue;
        uint8_t* to = lookup_.data() + (static_cast<size_t>(g) * blocks_ + b) * nibbles * kBlock + position;
        for (int t = 0; t < s.taps(); ++t)
          for (int c = 0; c < inputs; ++c)
            if (weight_bit(g * outputs + output, t, c))
              to[static_cast<size_t>(t * group_nibbles_ + c / 4) * kBlock] |= static_cast<uint8_t>(1 << (c % 4));
      }
  // A 1x1 over the whole image is one long row: no odd pixel at the end of each row.
  if (s.taps() == 1 && s.stride_height == 1 && s.stride_width == 1 && s.pad_top == 0 && s.pad_left == 0 &&
      s.out_height == s.in_height && s.out_width == s.in_width) {
    flat_.in_width = flat_.out_width = s.in_width * s.in_height;
    flat_.in_height = flat_.out_height = 1;
  }
  const ConvShape& f = flat_;
  // Columns of codes: pairs of neighbours for every column that a tap reads; then, where rows are odd, the pairs of a
  // row's last and the next row's first pixel.
  const bool odd = f.out_width % 2;
  entry_step_ = f.kernel_width > 1 ? 1 : odd ? f.stride_width : 2 * f.stride_width;
  const int reach = (f.kernel_width - 1) * f.dilation_width;
  const int width = (f.out_width - 1) * f.stride_width + reach + 1;
  for (int x = 0; x < width; x += entry_step_) entries_.push_back({x - f.pad_left, x - f.pad_left + f.stride_width, 0});
  if (odd) {
    wrap_ = static_cast<int>(entries_.size());
    for (int x = 0; x <= reach; ++x)
      entries_.push_back({(f.out_width - 1) * f.stride_width + x - f.pad_left, x - f.pad_left, f.stride_height});
  }
  code_rows_ = (f.out_height - 1) * f.stride_height + (f.kernel_height - 1) * f.dilation_height + 1;
  const int row = static_cast<int>(entries_.size()), pixel_nibbles = f.groups * group_nibbles_;
  for (int ky = 0; ky < f.kernel_height; ++ky)
    for (int kx = 0; kx < f.kernel_width; ++kx)
      for (int n = 0; n < group_nibbles_; ++n)
        offsets_.push_back((ky * f.dilation_height * row + kx * f.dilation_width) * pixel_nibbles + n);
  shared_bytes_ += align(sizeof(uint16_t) * code_rows_ * row * pixel_nibbles) + align(2 * static_cast<size_t>(pixel_nibbles));
  const int pairs = (f.pixels() + 1) / 2, tiles = (pairs + kTilePairs - 1) / kTilePairs;
  tile_ = (pairs + tiles - 1) / tiles;
  tile_ += tile_ % 2 && tiles > 1;
  thread_bytes_ = align(sizeof(void*) * tile_) + align(sizeof(float) * 2 * tile_) + align(sizeof(uint16_t) * 2 * tile_ * kBlock);
}

void BinaryConv::run_lookup(const uint8_t* signs, const Epilogue& epilogue, ThreadPool& pool, uint8_t* shared,
                            uint8_t* threads) const {
  const ConvShape& f = flat_;
  const int row = static_cast<int>(entries_.size()), pixel_nibbles = f.groups * group_nibbles_;
  uint16_t* codes = reinterpret_cast<uint16_t*>(shared);
  uint8_t* outside = shared + align(sizeof(uint16_t) * code_rows_ * row * pixel_nibbles);
  const int tail = f.group_inputs() % 4;
  for (int n = 0; n < pixel_nibbles; ++n) {
    const bool last = (n + 1) % group_nibbles_ == 0;
    outside[n] = static_cast<uint8_t>(pad_value_ == 0 ? kOutside : pad_value_ > 0 ? 0 : last && tail ? (1 << tail) - 1 : 15);
  }
  const auto pixel = [&](int y, int x) {
    const bool inside = y >= 0 && y < f.in_height && x >= 0 && x < f.in_width;
    return inside ? signs + (static_cast<size_t>(y) * f.in_width + x) * pixel_nibbles : outside;
  };
  const int per_item = std::max(1, 4096 / pixel_nibbles), items_a_row = (row + per_item - 1) / per_item;
  const int pixels = f.pixels(), pairs = (pixels + 1) / 2, tiles = (pairs + tile_ - 1) / tile_;
  const auto fill = [&](int item, int) {
    const int r = item / items_a_row, begin = item % items_a_row * per_item, end = std::min(row, begin + per_item);
    const int y = r - f.pad_top;
    for (int i = begin; i < end; ++i) {
      const Entry& entry = entries_[i];
      isa_.pair_codes(pixel(y, entry.first), pixel(y + entry.second_row, entry.second),
                      codes + (static_cast<size_t>(r) * row + i) * pixel_nibbles, pixel_nibbles);
    }
  };
  pool.parallel(code_rows_ * items_a_row, fill);

  // Few tiles: split the output channels too, so that every thread has work.
  const int all_blocks = f.groups * blocks_;
  const int splits = std::min(all_blocks, std::max(1, pool.threads() == 1 ? 1 : (3 * pool.threads() + tiles - 1) / tiles));
  const auto compute = [&](int item, int thread) {
    const int t = item / splits, split = item % splits;
    uint8_t* scratch = threads + thread_bytes_ * thread;
    const uint16_t** first = reinterpret_cast<const uint16_t**>(scratch);
    float* bases = reinterpret_cast<float*>(scratch + align(sizeof(void*) * tile_));
    LutTile tile;
    tile.partial = reinterpret_cast<uint16_t*>(scratch + align(sizeof(void*) * tile_) + align(sizeof(float) * 2 * tile_));
    tile.pairs = first;
    tile.base = bases;
    tile.first_pixel = 2 * t * tile_;
    tile.pair_count = std::min(tile_, pairs - t * tile_);
    tile.pixel_count = std::min(2 * tile.pair_count, pixels - tile.first_pixel);
    const bool uniform = pad_value_ || group_nibbles_ * 4 == f.group_inputs();
    for (int i = 0; i < 2 * tile.pair_count; ++i)
      bases[i] = base(uniform ? 0 : std::min(tile.first_pixel + i, pixels - 1));
    LutLayer layer;
    layer.table = table().bytes;
    layer.offsets = offsets_.data();
    layer.nibbles = static_cast<int>(offsets_.size());
    layer.channel_blocks = blocks_;
    int group = -1;
    for (int b = all_blocks * split / splits; b < all_blocks * (split + 1) / splits; ++b) {
      if (group != b / blocks_) {
        group = b / blocks_;
        for (int p = 0; p < tile.pair_count; ++p) {
          const int at = tile.first_pixel + 2 * p, y = at / f.out_width, x = at % f.out_width;
          const int entry = x + 1 == f.out_width ? wrap_ : x * f.stride_width / entry_step_;
          first[p] = codes + (static_cast<size_t>(y) * f.stride_height * row + entry) * pixel_nibbles + group * group_nibbles_;
        }
        layer.weights = lookup_.data() + static_cast<size_t>(group) * blocks_ * layer.nibbles * kBlock;
      }
      const int block = b % blocks_, channel = group * f.group_outputs() + block * kBlock;
      isa_.lut_tile(layer, tile, block, epilogue, channel, std::min(kBlock, f.group_outputs() - block * kBlock));
    }
  };
  pool.parallel(tiles * splits, compute);
}

// Portable: xor and popcount of 64-bit words. dot = sum over the taps inside of inputs - 2 popcount.
void BinaryConv::run_words(const uint8_t* signs, const Epilogue& epilogue, ThreadPool& pool, uint8_t* shared,
                           uint8_t* threads) const {
  const ConvShape& s = shape_;
  const int inputs = s.group_inputs(), words = (inputs + 63) / 64, outputs = s.group_outputs();
  const int pixel_nibbles = s.groups * group_nibbles_;
  uint64_t* packed = reinterpret_cast<uint64_t*>(shared);
  pool.parallel(s.in_height, [&](int y, int) {
    for (int x = 0; x < s.in_width; ++x) {
      const size_t pixel = static_cast<size_t>(y) * s.in_width + x;
      for (int g = 0; g < s.groups; ++g) {
        uint64_t* to = packed + (pixel * s.groups + g) * words;
        std::fill(to, to + words, 0);
        for (int n = 0; n < group_nibbles_; ++n)
          to[n / 16] |= uint64_t{signs[pixel * pixel_nibbles + g * group_nibbles_ + n]} << (4 * (n % 16));
      }
    }
  });
  const int items = (s.pixels() + kWordTile - 1) / kWordTile;
  pool.parallel(items, [&](int item, int thread) {
    float* acc = reinterpret_cast<float*>(threads + thread_bytes_ * thread);
    const int begin = item * kWordTile, count = std::min(kWordTile, s.pixels() - begin);
    for (int g = 0; g < s.groups; ++g)
      for (int block = 0; block < outputs; block += kBlock) {
        const int channels = std::min(kBlock, outputs - block);
        for (int p = 0; p < count; ++p) {
          const int oy = (begin + p) / s.out_width, ox = (begin + p) % s.out_width;
          for (int c = 0; c < channels; ++c) {
            const uint64_t* w = words_.data() + static_cast<size_t>(g * outputs + block + c) * s.taps() * words;
            int64_t dot = 0;
            for (int ky = 0; ky < s.kernel_height; ++ky)
              for (int kx = 0; kx < s.kernel_width; ++kx, w += words) {
                const int y = oy * s.stride_height - s.pad_top + ky * s.dilation_height;
                const int x = ox * s.stride_width - s.pad_left + kx * s.dilation_width;
                const bool inside = y >= 0 && y < s.in_height && x >= 0 && x < s.in_width;
                if (!inside && pad_value_ == 0) continue;
                int differ = 0;
                if (inside) {
                  const uint64_t* a = packed + ((static_cast<size_t>(y) * s.in_width + x) * s.groups + g) * words;
                  for (int i = 0; i < words; ++i) differ += __builtin_popcountll(a[i] ^ w[i]);
                } else {
                  for (int i = 0; i < words; ++i) differ += __builtin_popcountll(w[i]);
                  if (pad_value_ < 0) differ = inputs - differ;
                }
                dot += inputs - 2 * differ;
              }
            acc[p * kBlock + c] = static_cast<float>(dot);
          }
        }
        isa_.epilogue(epilogue, acc, begin, count, g * outputs + block, channels);
      }
  });
}

// The oracle: the definition, one product after the other.
void BinaryConv::run_reference(const uint8_t* signs, const Epilogue& epilogue, ThreadPool& pool, uint8_t* threads) const {
  const ConvShape& s = shape_;
  const int inputs = s.group_inputs(), outputs = s.group_outputs(), pixel_nibbles = s.groups * group_nibbles_;
  pool.parallel((s.pixels() + kWordTile - 1) / kWordTile, [&](int item, int thread) {
    float* acc = reinterpret_cast<float*>(threads + thread_bytes_ * thread);
    const int begin = item * kWordTile, count = std::min(kWordTile, s.pixels() - begin);
    for (int g = 0; g < s.groups; ++g)
      for (int block = 0; block < outputs; block += kBlock) {
        const int channels = std::min(kBlock, outputs - block);
        for (int p = 0; p < count; ++p)
          for (int c = 0; c < channels; ++c) {
            int64_t dot = 0;
            for (int t = 0; t < s.taps(); ++t) {
              const int y = (begin + p) / s.out_width * s.stride_height - s.pad_top + t / s.kernel_width * s.dilation_height;
              const int x = (begin + p) % s.out_width * s.stride_width - s.pad_left + t % s.kernel_width * s.dilation_width;
              const bool inside = y >= 0 && y < s.in_height && x >= 0 && x < s.in_width;
              for (int i = 0; i < inputs; ++i) {
                const int weight = weight_bit(g * outputs + block + c, t, i) ? -1 : 1;
                int value = pad_value_;
                if (inside) {
                  const size_t pixel = static_cast<size_t>(y) * s.in_width + x;
                  value = signs[pixel * pixel_nibbles + g * group_nibbles_ + i / 4] >> (i % 4) & 1 ? -1 : 1;
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

#include "binary_conv.h"

#include <algorithm>
#include <cstring>
#include <map>

namespace nasb {
namespace {

constexpr int kOutside = 16;   // a pixel's state outside of the image
constexpr int kTilePairs = 28;  // codes, weights and partial sums of a chunk stay in the first cache
constexpr int kTilePixels = 32;  // of a work item of the other kernels

size_t align(size_t bytes) { return (bytes + 63) & ~size_t{63}; }

// Few tiles: the output channels are split too, so that every thread has work.
int split(int tiles, int blocks, const ThreadPool& pool) {
  return pool.threads() == 1 ? 1 : std::min(blocks, std::max(1, (3 * pool.threads() + tiles - 1) / tiles));
}

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
    shared_bytes_ = align(sizeof(uint32_t) * shape.in_height * shape.in_width * shape.groups * group_words_);
  grouped_bytes_ = shared_bytes_;
  if (kernel_ == BinaryKernel::kReference) {
    thread_bytes_ = align(sizeof(float) * kTilePixels * kBlock);
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
    case BinaryKernel::kReference: return run_reference(signs, epilogue, pool, threads);
    case BinaryKernel::kPortable:
    case BinaryKernel::kWords: return run_words(signs, epilogue, pool, shared, threads);
    case BinaryKernel::kLookup: return run_lookup(signs, epilogue, pool, shared, threads);
  }
}

// Gives each group words of its own.
void BinaryConv::regroup(const uint32_t* signs, uint32_t* grouped, ThreadPool& pool) const {
  const int inputs = shape_.group_inputs(), stride = (shape_.in_channels + 31) / 32, wanted = shape_.groups * group_words_;
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

// The sum where no bit differs. A tap outside counts 2 a nibble, which is a sum of 0 for 4 ceil(inputs / 4) channels.
float BinaryConv::base(int pixel) const {
  const int inside = pad_value_ || group_nibbles_ * 4 == shape_.group_inputs() ? shape_.taps() : taps_inside(pixel);
  return static_cast<float>(shape_.group_inputs() * inside + 4 * group_nibbles_ * (shape_.taps() - inside));
}

void BinaryConv::pack_for_lookup() {
  const ConvShape& s = shape_;
  const int outputs = s.group_outputs(), inputs = s.group_inputs(), nibbles = s.taps() * group_nibbles_;
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
  shared_bytes_ += align(sizeof(uint16_t) * code_rows_ * row * pixel_nibbles) + align(group_nibbles_);
  const int pairs = (f.pixels() + 1) / 2, tiles = (pairs + kTilePairs - 1) / kTilePairs;
  tile_ = (pairs + tiles - 1) / tiles;
  tile_ += tile_ % 2 && tiles > 1;
  thread_bytes_ = align(sizeof(void*) * tile_) + align(sizeof(float) * 2 * tile_) + align(sizeof(uint16_t) * 2 * tile_ * kBlock * isa_.lut_blocks);
}

void BinaryConv::run_lookup(const uint32_t* signs, const Epilogue& epilogue, ThreadPool& pool, uint8_t* shared,
                            uint8_t* threads) const {
  const ConvShape& f = flat_;
  const int row = static_cast<int>(entries_.size()), pixel_nibbles = f.groups * group_nibbles_;
  uint16_t* codes = reinterpret_cast<uint16_t*>(shared);
  uint8_t* outside = shared + align(sizeof(uint16_t) * code_rows_ * row * pixel_nibbles);
  const int tail = f.group_inputs() % 4;
  for (int n = 0; n < group_nibbles_; ++n) {
    const bool last = n + 1 == group_nibbles_;
    outside[n] = static_cast<uint8_t>(pad_value_ == 0 ? kOutside : pad_value_ > 0 ? 0 : last && tail ? (1 << tail) - 1 : 15);
  }
  const auto pixel = [&](int y, int x, int group) -> const uint32_t* {
    const bool inside = y >= 0 && y < f.in_height && x >= 0 && x < f.in_width;
    return inside ? signs + ((static_cast<size_t>(y) * f.in_width + x) * f.groups + group) * group_words_ : nullptr;
  };
  const int per_item = std::max(1, 4096 / pixel_nibbles), items_a_row = (row + per_item - 1) / per_item;
  const int pixels = f.pixels(), pairs = (pixels + 1) / 2, tiles = (pairs + tile_ - 1) / tile_;
  const auto fill = [&](int item, int) {
    const int r = item / items_a_row, begin = item % items_a_row * per_item, end = std::min(row, begin + per_item);
    const int y = r - f.pad_top;
    for (int i = begin; i < end; ++i) {
      const Entry& entry = entries_[i];
      uint16_t* to = codes + (static_cast<size_t>(r) * row + i) * pixel_nibbles;
      for (int g = 0; g < f.groups; ++g, to += group_nibbles_)
        isa_.pair_codes(pixel(y, entry.first, g), pixel(y + entry.second_row, entry.second, g), outside, to, group_nibbles_);
    }
  };
  pool.parallel(code_rows_ * items_a_row, fill);

  const int all_blocks = f.groups * blocks_, splits = split(tiles, all_blocks, pool);
  const auto compute = [&](int item, int thread) {
    const int t = item / splits, part = item % splits;
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
    const int end = all_blocks * (part + 1) / splits;
    for (int b = all_blocks * part / splits; b < end;) {
      if (group != b / blocks_) {
        group = b / blocks_;
        for (int p = 0; p < tile.pair_count; ++p) {
          const int at = tile.first_pixel + 2 * p, y = at / f.out_width, x = at % f.out_width;
          const int entry = x + 1 == f.out_width ? wrap_ : x * f.stride_width / entry_step_;
          first[p] = codes + (static_cast<size_t>(y) * f.stride_height * row + entry) * pixel_nibbles + group * group_nibbles_;
        }
        layer.weights = lookup_.data() + static_cast<size_t>(group) * blocks_ * layer.nibbles * kBlock;
      }
      const int block = b % blocks_, count = std::min({isa_.lut_blocks, end - b, blocks_ - block});
      const int channel = group * f.group_outputs() + block * kBlock;
      isa_.lut_tile(layer, tile, block, epilogue, channel, std::min(count * kBlock, f.group_outputs() - block * kBlock));
      b += count;
    }
  };
  pool.parallel(tiles * splits, compute);
}

// Where an output's first word stands.
size_t BinaryConv::word_at(int group, int output, int words) const {
  const size_t lane = static_cast<size_t>(group) * blocks_ * kBlock + output;
  return lane / kSlice * kSlice * words + lane % kSlice;
}

void BinaryConv::pack_for_words() {
  const ConvShape &s = shape_, &f = flat_;
  const int outputs = s.group_outputs(), inputs = s.group_inputs(), words = s.taps() * group_words_;
  words_.assign(static_cast<size_t>(s.groups) * blocks_ * words * kBlock, 0);
  for (int o = 0; o < s.out_channels; ++o) {
    const int g = o / outputs, own = o % outputs;
    uint32_t* to = words_.data() + word_at(g, own, words);
    for (int t = 0; t < s.taps(); ++t)
      for (int c = 0; c < inputs; ++c)
        to[static_cast<size_t>(t * group_words_ + c / 32) * kSlice] |= uint32_t{weight_bit(o, t, c)} << (c % 32);
  }
  padded_height_ = (f.out_height - 1) * f.stride_height + (f.kernel_height - 1) * f.dilation_height + 1;
  padded_width_ = (f.out_width - 1) * f.stride_width + (f.kernel_width - 1) * f.dilation_width + 1;
  copies_ = f.pad_top || f.pad_left || padded_height_ > f.in_height || padded_width_ > f.in_width;
  if (!copies_) padded_width_ = f.in_width;
  const int pixel_words = f.groups * group_words_;
  for (int ky = 0; ky < f.kernel_height; ++ky)
    for (int kx = 0; kx < f.kernel_width; ++kx)
      for (int i = 0; i < group_words_; ++i)
        offsets_.push_back((ky * f.dilation_height * padded_width_ + kx * f.dilation_width) * pixel_words + i);
  tile_ = kTilePixels;
  thread_bytes_ = align(sizeof(void*) * tile_) * 2 + align(sizeof(float) * tile_);
  if (!copies_) return;
  shared_bytes_ += align(sizeof(uint32_t) * padded_height_ * padded_width_ * pixel_words);
  if (pad_value_) return;
  // The border's words are 0, so that a tap outside counts the weight's own bits: 2 of each are given back. Pixels whose
  // outside taps are the same share a row of corrections.
  corrected_.assign(f.pixels(), -1);
  std::map<std::vector<bool>, int> kinds;
  for (int p = 0; p < f.pixels(); ++p) {
    std::vector<bool> outside(f.taps());
    for (int t = 0; t < f.taps(); ++t) {
      const int y = p / f.out_width * f.stride_height - f.pad_top + t / f.kernel_width * f.dilation_height;
      const int x = p % f.out_width * f.stride_width - f.pad_left + t % f.kernel_width * f.dilation_width;
      outside[t] = y < 0 || y >= f.in_height || x < 0 || x >= f.in_width;
    }
    if (std::find(outside.begin(), outside.end(), true) == outside.end()) continue;
    const auto [found, added] = kinds.emplace(outside, static_cast<int>(kinds.size()));
    corrected_[p] = found->second;
    if (!added) continue;
    for (int block = 0; block < s.groups * blocks_; ++block)
      for (int c = 0; c < kBlock; ++c) {
        int bits = 0;
        for (int t = 0; t < f.taps(); ++t)
          for (int i = 0; outside[t] && i < group_words_; ++i)
            bits += __builtin_popcount(words_[word_at(0, block * kBlock + c, words) + (t * group_words_ + i) * kSlice]);
        corrections_.push_back(2.0f * static_cast<float>(bits));
      }
  }
}

void BinaryConv::run_words(const uint32_t* signs, const Epilogue& epilogue, ThreadPool& pool, uint8_t* shared,
                           uint8_t* threads) const {
  const ConvShape& f = flat_;
  const int pixel_words = f.groups * group_words_;
  if (copies_) {
    uint32_t* padded = reinterpret_cast<uint32_t*>(shared);
    copy_padded(signs, padded, pool);
    signs = padded;
  }
  const Isa& sums = kernel_ == BinaryKernel::kWords ? isa_ : isa_portable();
  const int pixels = f.pixels(), tiles = (pixels + tile_ - 1) / tile_, all_blocks = f.groups * blocks_;
  const int splits = split(tiles, all_blocks, pool);
  pool.parallel(tiles * splits, [&](int item, int thread) {
    uint8_t* scratch = threads + thread_bytes_ * thread;
    const uint32_t** first = reinterpret_cast<const uint32_t**>(scratch);
    const float** corrections = reinterpret_cast<const float**>(scratch + align(sizeof(void*) * tile_));
    float* bases = reinterpret_cast<float*>(scratch + 2 * align(sizeof(void*) * tile_));
    const int part = item % splits;
    WordTile tile;
    tile.pixels = first;
    tile.base = bases;
    tile.corrections = corrections;
    tile.first_pixel = item / splits * tile_;
    tile.pixel_count = std::min(tile_, pixels - tile.first_pixel);
    for (int p = 0; p < tile.pixel_count; ++p) {
      const int at = tile.first_pixel + p;
      // Outside of the image no channel differs or not: only the taps inside count.
      bases[p] = static_cast<float>(f.group_inputs() * (corrected_.empty() || corrected_[at] < 0 ? f.taps() : taps_inside(at)));
    }
    WordLayer layer;
    layer.offsets = offsets_.data();
    layer.words = static_cast<int>(offsets_.size());
    for (int b = all_blocks * part / splits; b < all_blocks * (part + 1) / splits; ++b) {
      const int group = b / blocks_, block = b % blocks_;
      for (int p = 0; p < tile.pixel_count; ++p) {
        const int at = tile.first_pixel + p, y = at / f.out_width, x = at % f.out_width;
        first[p] = signs + (static_cast<size_t>(y) * f.stride_height * padded_width_ + x * f.stride_width) * pixel_words + group * group_words_;
        const bool border = !corrected_.empty() && corrected_[at] >= 0;
        corrections[p] = border ? corrections_.data() + (static_cast<size_t>(corrected_[at]) * all_blocks + b) * kBlock : nullptr;
      }
      layer.weights = words_.data() + static_cast<size_t>(group) * blocks_ * layer.words * kBlock;
      const int channel = group * f.group_outputs() + block * kBlock;
      sums.word_tile(layer, tile, block, epilogue, channel, std::min(kBlock, f.group_outputs() - block * kBlock));
    }
  });
}

// The signs with their border: bits 0 for +1 (and for 0, which is corrected later), 1 for -1.
void BinaryConv::copy_padded(const uint32_t* signs, uint32_t* padded, ThreadPool& pool) const {
  const ConvShape& f = flat_;
  const int pixel_words = f.groups * group_words_, left = std::min(f.pad_left, padded_width_);
  const int inside = std::max(0, std::min(f.in_width, padded_width_ - left)), tail = f.group_inputs() % 32;
  const auto border = [&](uint32_t* to, int pixels) {
    for (int i = 0; i < pixels * pixel_words; ++i) {
      const bool last = (i + 1) % group_words_ == 0;
      to[i] = pad_value_ >= 0 ? 0 : last && tail ? (1u << tail) - 1 : ~0u;
    }
  };
  constexpr int kRows = 8;
  pool.parallel((padded_height_ + kRows - 1) / kRows, [&](int item, int) {
    for (int r = item * kRows; r < std::min(padded_height_, (item + 1) * kRows); ++r) {
      uint32_t* to = padded + static_cast<size_t>(r) * padded_width_ * pixel_words;
      const int y = r - f.pad_top;
      if (y < 0 || y >= f.in_height) {
        border(to, padded_width_);
        continue;
      }
      border(to, left);
      std::memcpy(to + left * pixel_words, signs + static_cast<size_t>(y) * f.in_width * pixel_words,
                  sizeof(uint32_t) * inside * pixel_words);
      border(to + (left + inside) * pixel_words, padded_width_ - left - inside);
    }
  });
}

// The oracle: the definition, one product after the other.
void BinaryConv::run_reference(const uint32_t* signs, const Epilogue& epilogue, ThreadPool& pool, uint8_t* threads) const {
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
              const int y = (begin + p) / s.out_width * s.stride_height - s.pad_top + t / s.kernel_width * s.dilation_height;
              const int x = (begin + p) % s.out_width * s.stride_width - s.pad_left + t % s.kernel_width * s.dilation_width;
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

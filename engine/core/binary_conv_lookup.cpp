// BinaryConv by table look-up (kernels/lut.h): weights in nibbles, activations as codes of pixel pairs.
#include <algorithm>
#include <utility>

#include "binary_conv.h"

namespace nasb {
namespace {

constexpr int kOutside = 16;    // a pixel's state outside of the image
constexpr int kTilePairs = 36;  // of kBlock x 2 channels: weights and counts of a chunk stay in the first cache

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

void add_bits(const uint16_t* __restrict bits, uint16_t* __restrict codes, int count) {
  for (int n = 0; n < count; ++n) codes[n] |= bits[n];
}

const Table& table() {
  static const Table t;
  return t;
}

}  // namespace

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
  // A flat 1x1 pairs the first half of its pixels with the second, so that each code is made once, in one long run.
  if (f.taps() == 1 && f.out_height == 1 && f.stride_width == 1 && f.pad_left == 0 && f.out_width == f.in_width)
    half_ = (f.pixels() + 1) / 2;
  const bool odd = f.out_width % 2 && !half_;
  entry_step_ = f.kernel_width > 1 || half_ ? 1 : odd ? f.stride_width : 2 * f.stride_width;
  const int apart = half_ ? half_ : f.stride_width;
  columns_a_pair_ = 2 * f.stride_width / entry_step_;
  const int reach = (f.kernel_width - 1) * f.dilation_width;
  const int last = std::max(f.out_width - 2, 0);  // pixel that begins a row's last pair of its own
  const int width = half_ ? half_ : last * f.stride_width + reach + 1;
  for (int x = 0; x < width; x += entry_step_) entries_.push_back({x - f.pad_left, x - f.pad_left + apart, 0});
  narrow_ = f.groups == 1 && f.group_inputs() == 16;
  if (entry_step_ == 1 && (narrow_ || f.group_inputs() % 32 == 0)) {
    joined_begin_ = f.pad_left;
    joined_end_ = std::min(width, f.pad_left + f.in_width - apart);
  }
  if (odd) {
    wrap_ = static_cast<int>(entries_.size());
    for (int x = 0; x <= reach; ++x)
      entries_.push_back({(f.out_width - 1) * f.stride_width + x - f.pad_left, x - f.pad_left, f.stride_height});
  }
  code_rows_ = (f.out_height - 1) * f.stride_height + (f.kernel_height - 1) * f.dilation_height + 1;
  const int row = static_cast<int>(entries_.size()), pixel_nibbles = f.groups * group_nibbles_;
  for (int p = 0, y = 0, x = 0; p < (f.pixels() + 1) / 2; ++p) {
    const int entry = half_ ? x : x + 1 == f.out_width ? wrap_ : x * columns_a_pair_ / 2;
    pair_offsets_.push_back(static_cast<uint32_t>((y * f.stride_height * row + entry) * pixel_nibbles));
    for (x += half_ ? 1 : 2; x >= f.out_width; ++y) x -= f.out_width;
  }
  // A row of taps stands side by side where nothing lies between them.
  const bool rows = f.groups == 1 && f.dilation_width == 1;
  run_length_ = rows ? f.kernel_width * group_nibbles_ : group_nibbles_;
  for (int ky = 0; ky < f.kernel_height; ++ky)
    for (int kx = 0; kx < (rows ? 1 : f.kernel_width); ++kx)
      offsets_.push_back((ky * f.dilation_height * row + kx * f.dilation_width) * pixel_nibbles);
  shared_bytes_ += aligned(sizeof(uint16_t) * code_rows_ * row * pixel_nibbles);
  blank_.assign(group_words_, 0);
  for (int n = 0; n < group_nibbles_; ++n) {
    int state = pad_value_ == 0 ? kOutside : pad_value_ > 0 ? 0 : 15;
    if (pad_value_ < 0 && n + 1 == group_nibbles_ && inputs % 4) state = (1 << inputs % 4) - 1;
    outside_first_.push_back(static_cast<uint16_t>(state << 4));
    outside_second_.push_back(static_cast<uint16_t>(state << 9));
  }
  for (int g = 0; g < f.groups; ++g)
    for (int n = 0; n < group_nibbles_; ++n) blank_codes_.push_back(outside_first_[n] | outside_second_[n]);
  find_zones();
  const int most = isa_.lut_blocks > 1 && blocks_ == 1 ? 2 * kTilePairs : kTilePairs;
  const int pairs = (f.pixels() + 1) / 2, tiles = (pairs + most - 1) / most;
  tile_ = (pairs + tiles - 1) / tiles;
  tile_ += tile_ % 2 && tiles > 1;
  thread_bytes_ = aligned(sizeof(void*) * tile_) + aligned(sizeof(float) * 2 * tile_) +
                  aligned(sizeof(LutZone) * zones_.size()) +
                  aligned(sizeof(uint16_t) * 2 * tile_ * kBlock * isa_.lut_blocks);
  columns_ = std::max(1, 4096 / pixel_nibbles);
  if (narrow_) thread_bytes_ = std::max(thread_bytes_, aligned(2 * sizeof(uint16_t) * columns_));
}

// Pairs in turn that see the same rows of taps. A row of taps that lies in the zero border adds nothing, and is left
// out.
void BinaryConv::find_zones() {
  const ConvShape& f = flat_;
  const int pairs = (f.pixels() + 1) / 2, row = f.kernel_width * group_nibbles_;
  // The rows of taps of a pixel that lie inside, none as {all of them, 0}: no loop, since a kernel may be tall.
  const auto inside = [&](int pixel) -> std::pair<int, int> {
    const int top = pixel / f.out_width * f.stride_height - f.pad_top, step = f.dilation_height;
    const int first = top < 0 ? (step - 1 - top) / step : 0;
    const int end = top < f.in_height ? std::min(f.kernel_height, (f.in_height - 1 - top) / step + 1) : 0;
    return first < end ? std::pair(first, end) : std::pair(f.kernel_height, 0);
  };
  for (int p = 0; p < pairs; ++p) {
    int first = 0, end = f.kernel_height;
    if (pad_value_ == 0 && !half_) {
      const auto a = inside(2 * p), b = inside(std::min(2 * p + 1, f.pixels() - 1));
      first = std::min(a.first, b.first), end = std::max(a.second, b.second);
      if (first >= end) first = f.kernel_height - 1, end = f.kernel_height;  // a zone has one row at least
    }
    if (zones_.empty() || zones_.back().begin != first * row || zones_.back().end != end * row)
      zones_.push_back({p, p, first * row, end * row});
    zones_.back().pair_end = p + 1;
  }
}

void BinaryConv::run_lookup(const uint32_t* signs, const Epilogue& epilogue, ThreadPool& pool, uint8_t* shared,
                            uint8_t* threads) const {
  const ConvShape& f = flat_;
  const int row = static_cast<int>(entries_.size()), pixel_nibbles = f.groups * group_nibbles_;
  uint16_t* codes = reinterpret_cast<uint16_t*>(shared);
  const auto pixel = [&](int y, int x, int group) -> const uint32_t* {
    const bool inside = y >= 0 && y < f.in_height && x >= 0 && x < f.in_width;
    return inside ? signs + ((static_cast<size_t>(y) * f.in_width + x) * f.groups + group) * group_words_ : nullptr;
  };
  const int items_a_row = (row + columns_ - 1) / columns_;
  const int pixels = f.pixels(), pairs = (pixels + 1) / 2, tiles = (pairs + tile_ - 1) / tile_;
  // Codes of one column for one group; a null pointer is a pixel outside of the image.
  const auto column = [&](const uint32_t* first, const uint32_t* second, uint16_t* to) {
    const auto bytes = [&](const uint32_t* words) {
      return reinterpret_cast<const uint8_t*>(words ? words : blank_.data());
    };
    isa_.pair_codes(bytes(first), bytes(second), to, group_nibbles_);
    if (!first) add_bits(outside_first_.data(), to, group_nibbles_);
    if (!second) add_bits(outside_second_.data(), to, group_nibbles_);
  };
  const auto fill = [&](int item, int thread) {
    const int r = item / items_a_row, begin = item % items_a_row * columns_, end = std::min(row, begin + columns_);
    const int y = r - f.pad_top;
    const bool inside = y >= 0 && y < f.in_height;
    for (int i = begin; i < end; ++i) {
      const Entry& entry = entries_[i];
      uint16_t* to = codes + (static_cast<size_t>(r) * row + i) * pixel_nibbles;
      if (!inside && !entry.second_row) {
        std::copy(blank_codes_.begin(), blank_codes_.end(), to);
        continue;
      }
      if (i >= joined_begin_ && i < joined_end_ && inside) {
        const int columns = std::min(end, joined_end_) - i;
        const uint32_t *first = pixel(y, entry.first, 0), *second = pixel(y, entry.second, 0);
        const uint8_t *a = reinterpret_cast<const uint8_t*>(first), *b = reinterpret_cast<const uint8_t*>(second);
        if (narrow_) {  // words of 16 channels are half empty: they are closed up
          uint16_t* halves = reinterpret_cast<uint16_t*>(threads + thread_bytes_ * thread);
          for (int x = 0; x < columns; ++x) halves[x] = static_cast<uint16_t>(first[x]);
          for (int x = 0; x < columns; ++x) halves[columns + x] = static_cast<uint16_t>(second[x]);
          a = reinterpret_cast<const uint8_t*>(halves);
          b = reinterpret_cast<const uint8_t*>(halves + columns);
        }
        isa_.pair_codes(a, b, to, columns * pixel_nibbles);
        i += columns - 1;
        continue;
      }
      for (int g = 0; g < f.groups; ++g, to += group_nibbles_)
        column(pixel(y, entry.first, g), pixel(y + entry.second_row, entry.second, g), to);
    }
  };
  pool.parallel(code_rows_ * items_a_row, fill);

  const int all_blocks = f.groups * blocks_, splits = channel_splits(tiles, all_blocks, pool);
  const auto compute = [&](int item, int thread) {
    const int t = item / splits, part = item % splits;
    uint8_t* scratch = threads + thread_bytes_ * thread;
    const uint16_t** first = reinterpret_cast<const uint16_t**>(scratch);
    float* bases = reinterpret_cast<float*>(scratch + aligned(sizeof(void*) * tile_));
    LutTile tile;
    scratch += aligned(sizeof(void*) * tile_) + aligned(sizeof(float) * 2 * tile_);
    LutZone* zones = reinterpret_cast<LutZone*>(scratch);
    tile.counts = reinterpret_cast<uint16_t*>(scratch + aligned(sizeof(LutZone) * zones_.size()));
    tile.pairs = first;
    tile.base = bases;
    tile.zones = zones;
    tile.zone_count = 0;
    tile.pair_count = std::min(tile_, pairs - t * tile_);
    if (half_) {
      tile.first_pixel = t * tile_;
      tile.pixel_count = tile.pair_count;
      tile.second_pixel = half_ + t * tile_;
      tile.second_count = std::min(tile.pair_count, pixels - tile.second_pixel);
    } else {
      tile.first_pixel = 2 * t * tile_;
      tile.pixel_count = std::min(2 * tile.pair_count, pixels - tile.first_pixel);
    }
    if (pad_value_ || half_ || group_nibbles_ * 4 == f.group_inputs())
      std::fill(bases, bases + 2 * tile.pair_count, base(0));
    else
      for (int i = 0; i < 2 * tile.pair_count; ++i) bases[i] = base(std::min(tile.first_pixel + i, pixels - 1));
    LutLayer layer;
    layer.table = table().bytes;
    layer.runs = offsets_.data();
    layer.run_length = run_length_;
    layer.nibbles = static_cast<int>(offsets_.size()) * run_length_;
    for (const LutZone& zone : zones_) {
      const int begin = std::max(zone.first_pair - t * tile_, 0);
      const int pair_end = std::min(zone.pair_end - t * tile_, tile.pair_count);
      if (begin >= pair_end) continue;
      zones[tile.zone_count++] = {begin, pair_end, zone.begin, zone.end};
      // What is left out would have counted 2 a nibble.
      const float left_out = static_cast<float>(4 * (layer.nibbles - (zone.end - zone.begin)));
      for (int i = 2 * begin; i < 2 * pair_end && left_out > 0; ++i) bases[i] -= left_out;
    }
    int group = -1;
    const int end = all_blocks * (part + 1) / splits;
    for (int b = all_blocks * part / splits; b < end;) {
      if (group != b / blocks_) {
        group = b / blocks_;
        const uint32_t* offsets = pair_offsets_.data() + t * tile_;
        for (int p = 0; p < tile.pair_count; ++p) first[p] = codes + offsets[p] + group * group_nibbles_;
        layer.weights = lookup_.data() + static_cast<size_t>(group) * blocks_ * layer.nibbles * kBlock;
      }
      const int block = b % blocks_, count = std::min({isa_.lut_blocks, end - b, blocks_ - block});
      const int channel = group * f.group_outputs() + block * kBlock;
      isa_.lut_tile(layer, tile, block, epilogue, channel,
                    std::min(count * kBlock, f.group_outputs() - block * kBlock));
      b += count;
    }
  };
  pool.parallel(tiles * splits, compute);
}

}  // namespace nasb

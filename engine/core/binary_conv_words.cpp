// BinaryConv by xor and popcount of words.
#include <algorithm>
#include <cstring>
#include <map>
#include <utility>

#include "binary_conv.h"

namespace nasb {
namespace {

constexpr size_t kMostParities = size_t{1} << 28;  // words: offsets to them are 32-bit numbers

}  // namespace

// Where an output's first word stands.
size_t BinaryConv::word_at(int group, int output, int words) const {
  const size_t lane = static_cast<size_t>(group) * blocks_ * kBlock + output;
  return lane / kSlice * kSlice * words + lane % kSlice;
}

void BinaryConv::pack_for_words() {
  const ConvShape &s = shape_, &f = flat_;
  padded_height_ = (f.out_height - 1) * f.stride_height + (f.kernel_height - 1) * f.dilation_height + 1;
  padded_width_ = (f.out_width - 1) * f.stride_width + (f.kernel_width - 1) * f.dilation_width + 1;
  const bool border = f.pad_top || f.pad_left || padded_height_ > f.in_height || padded_width_ > f.in_width;
  const int words = s.taps() * group_words_, pixel_words = f.groups * group_words_;
  parity_at_ = static_cast<size_t>(padded_height_) * padded_width_ * pixel_words;
  // Three taps side by side make a triple for each of their words; what is left of a row is summed word by word.
  const int row_triples = parity_at_ <= kMostParities ? f.kernel_width / 3 : 0;
  triples_ = f.kernel_height * row_triples * group_words_;
  copies_ = border || triples_;
  if (!copies_) padded_width_ = f.in_width;
  std::vector<std::pair<int, int>> order;  // of the words: tap, word of its inputs
  for (int ky = 0; ky < f.kernel_height; ++ky)
    for (int kx = 0; kx < 3 * row_triples; kx += 3)
      for (int i = 0; i < group_words_; ++i)
        for (int t = 0; t < 3; ++t) order.emplace_back(ky * f.kernel_width + kx + t, i);
  for (int ky = 0; ky < f.kernel_height; ++ky)
    for (int kx = 3 * row_triples; kx < f.kernel_width; ++kx)
      for (int i = 0; i < group_words_; ++i) order.emplace_back(ky * f.kernel_width + kx, i);
  const auto parity = [&](int n) { return n < 3 * triples_ && n % 3 == 2; };
  for (int n = 0; n < words; ++n) {
    const auto [tap, i] = order[parity(n) ? n - 2 : n];
    const size_t y = tap / f.kernel_width * f.dilation_height, x = tap % f.kernel_width * f.dilation_width;
    const size_t at = (y * padded_width_ + x) * pixel_words + i;
    offsets_.push_back(static_cast<int32_t>(parity(n) ? at + parity_at_ : at));
  }
  const int outputs = s.group_outputs(), inputs = s.group_inputs(), channels = s.groups * blocks_ * kBlock;
  words_.assign(static_cast<size_t>(channels) * words, 0);
  std::vector<int> tap_bits(static_cast<size_t>(channels) * s.taps(), 0);
  std::vector<uint32_t> bits(words);
  for (int o = 0; o < s.out_channels; ++o) {
    const int g = o / outputs, own = o % outputs;
    std::fill(bits.begin(), bits.end(), 0);
    for (int t = 0; t < s.taps(); ++t)
      for (int c = 0; c < inputs; ++c) {
        const uint32_t bit = weight_bit(o, t, c);
        bits[t * group_words_ + c / 32] |= bit << (c % 32);
        tap_bits[(static_cast<size_t>(g) * blocks_ * kBlock + own) * s.taps() + t] += static_cast<int>(bit);
      }
    const auto word = [&](int n) { return bits[order[n].first * group_words_ + order[n].second]; };
    uint32_t* to = words_.data() + word_at(g, own, words);
    for (int n = 0; n < words; ++n)
      to[static_cast<size_t>(n) * kSlice] = parity(n) ? word(n - 2) ^ word(n - 1) ^ word(n) : word(n);
  }
  tile_ = kTilePixels;
  thread_bytes_ = aligned(sizeof(void*) * tile_) * 2;
  if (copies_) shared_bytes_ += aligned(sizeof(uint32_t) * parity_at_ * (triples_ ? 2 : 1));
  if (!border || pad_value_) return;
  // The border's words are 0, so that a tap outside counts the weight's own bits: 2 of each are given back, and the
  // tap's inputs taken from the base. Pixels whose outside taps are the same share a row of corrections.
  // The taps inside are a rectangle of the kernel: rows [first, end) x columns [first, end).
  const auto inside = [](int out, int stride, int pad, int kernel, int dilation, int size) {
    int first = 0, end = kernel;
    const int start = out * stride - pad;
    while (first < kernel && start + first * dilation < 0) ++first;
    while (end > first && start + (end - 1) * dilation >= size) --end;
    return std::pair<int, int>(first, end);
  };
  using Rectangle = std::pair<std::pair<int, int>, std::pair<int, int>>;
  const Rectangle whole{{0, f.kernel_height}, {0, f.kernel_width}};
  std::vector<std::pair<int, int>> columns;
  for (int x = 0; x < f.out_width; ++x)
    columns.push_back(inside(x, f.stride_width, f.pad_left, f.kernel_width, f.dilation_width, f.in_width));
  corrected_.assign(f.pixels(), -1);
  std::map<Rectangle, int> kinds;
  for (int y = 0; y < f.out_height; ++y) {
    const auto rows = inside(y, f.stride_height, f.pad_top, f.kernel_height, f.dilation_height, f.in_height);
    for (int x = 0; x < f.out_width; ++x) {
      const Rectangle taps{rows, columns[x]};
      if (taps != whole)
        corrected_[y * f.out_width + x] = kinds.emplace(taps, static_cast<int>(kinds.size())).first->second;
    }
  }
  // A channel's bits in the taps above and left of each tap give those of any rectangle.
  const int width = f.kernel_width + 1;
  corrections_.assign(kinds.size() * channels, 0);
  std::vector<int> sums(static_cast<size_t>(f.kernel_height + 1) * width, 0);
  for (int c = 0; c < channels; ++c) {
    for (int ky = 0; ky < f.kernel_height; ++ky)
      for (int kx = 0; kx < f.kernel_width; ++kx)
        sums[(ky + 1) * width + kx + 1] = tap_bits[static_cast<size_t>(c) * s.taps() + ky * f.kernel_width + kx] +
                                          sums[ky * width + kx + 1] + sums[(ky + 1) * width + kx] -
                                          sums[ky * width + kx];
    const auto corner = [&](int ky, int kx) { return sums[static_cast<size_t>(ky) * width + kx]; };
    for (const auto& [taps, kind] : kinds) {
      const auto [top, bottom] = taps.first;
      const auto [left, right] = taps.second;
      const int within = corner(bottom, right) - corner(top, right) - corner(bottom, left) + corner(top, left);
      const int outside = corner(f.kernel_height, f.kernel_width) - within;
      const int taps_outside = f.taps() - (bottom - top) * (right - left);
      corrections_[static_cast<size_t>(kind) * channels + c] =
          static_cast<float>(2 * outside - f.group_inputs() * taps_outside);
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
  const int splits = channel_splits(tiles, all_blocks, pool);
  pool.parallel(tiles * splits, [&](int item, int thread) {
    uint8_t* scratch = threads + thread_bytes_ * thread;
    const uint32_t** first = reinterpret_cast<const uint32_t**>(scratch);
    const float** corrections = reinterpret_cast<const float**>(scratch + aligned(sizeof(void*) * tile_));
    const int part = item % splits;
    WordTile tile;
    tile.pixels = first;
    tile.base = static_cast<float>(f.group_inputs() * f.taps());
    tile.corrections = corrections;
    tile.first_pixel = item / splits * tile_;
    tile.pixel_count = std::min(tile_, pixels - tile.first_pixel);
    std::fill(corrections, corrections + tile.pixel_count, nullptr);
    WordLayer layer;
    layer.offsets = offsets_.data();
    layer.words = static_cast<int>(offsets_.size());
    layer.triples = triples_;
    int group = -1;
    for (int b = all_blocks * part / splits; b < all_blocks * (part + 1) / splits; ++b) {
      const int block = b % blocks_;
      if (group != b / blocks_) {
        group = b / blocks_;
        int y = tile.first_pixel / f.out_width, x = tile.first_pixel % f.out_width;
        for (int p = 0; p < tile.pixel_count; ++p) {
          const size_t at = static_cast<size_t>(y) * f.stride_height * padded_width_ + x * f.stride_width;
          first[p] = signs + at * pixel_words + group * group_words_;
          if (++x == f.out_width) x = 0, ++y;
        }
        layer.weights = words_.data() + static_cast<size_t>(group) * blocks_ * layer.words * kBlock;
      }
      if (!corrected_.empty())
        for (int p = 0; p < tile.pixel_count; ++p) {
          const int kind = corrected_[tile.first_pixel + p];
          if (kind >= 0) corrections[p] = corrections_.data() + (static_cast<size_t>(kind) * all_blocks + b) * kBlock;
        }
      const int channel = group * f.group_outputs() + block * kBlock;
      sums.word_tile(layer, tile, block, epilogue, channel, std::min(kBlock, f.group_outputs() - block * kBlock));
    }
  });
}

// The signs with their border: bits 0 for +1 (and for 0, which is corrected later), 1 for -1. Behind them, where there
// are triples, the parity of each word and of those one and two taps further on.
void BinaryConv::copy_padded(const uint32_t* signs, uint32_t* padded, ThreadPool& pool) const {
  const ConvShape& f = flat_;
  const int pixel_words = f.groups * group_words_, left = std::min(f.pad_left, padded_width_);
  const int inside = std::max(0, std::min(f.in_width, padded_width_ - left)), tail = f.group_inputs() % 32;
  const int row_words = padded_width_ * pixel_words, tap = f.dilation_width * pixel_words;
  const auto border = [&](uint32_t* to, int pixels) {
    for (int i = 0; i < pixels * pixel_words; ++i) {
      const bool last = (i + 1) % group_words_ == 0;
      to[i] = pad_value_ >= 0 ? 0 : last && tail ? (1u << tail) - 1 : ~0u;
    }
  };
  constexpr int kRows = 8;
  pool.parallel((padded_height_ + kRows - 1) / kRows, [&](int item, int) {
    for (int r = item * kRows; r < std::min(padded_height_, (item + 1) * kRows); ++r) {
      uint32_t* to = padded + static_cast<size_t>(r) * row_words;
      const int y = r - f.pad_top;
      if (y < 0 || y >= f.in_height) {
        border(to, padded_width_);
      } else {
        border(to, left);
        std::memcpy(to + left * pixel_words, signs + static_cast<size_t>(y) * f.in_width * pixel_words,
                    sizeof(uint32_t) * inside * pixel_words);
        border(to + (left + inside) * pixel_words, padded_width_ - left - inside);
      }
      if (!triples_) continue;
      uint32_t* parity = to + parity_at_;
      for (int i = 0; i < row_words - 2 * tap; ++i) parity[i] = to[i] ^ to[i + tap] ^ to[i + 2 * tap];
    }
  });
}

}  // namespace nasb

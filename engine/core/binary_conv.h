// One binary convolution: its packed weights for the chosen kernel, and how it is cut into work for threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/isa.h"
#include "memory.h"
#include "thread_pool.h"

namespace nasb {

struct ConvShape {
  int in_channels = 0, in_height = 0, in_width = 0;
  int out_channels = 0, out_height = 0, out_width = 0;
  int groups = 1;
  int kernel_height = 1, kernel_width = 1;
  int stride_height = 1, stride_width = 1;
  int dilation_height = 1, dilation_width = 1;
  int pad_top = 0, pad_left = 0;  // what is missing below and to the right follows from the output's size

  int group_inputs() const { return in_channels / groups; }
  int group_outputs() const { return out_channels / groups; }
  int taps() const { return kernel_height * kernel_width; }
  int pixels() const { return out_height * out_width; }
  int64_t macs() const { return int64_t{1} * pixels() * out_channels * group_inputs() * taps(); }
};

enum class BinaryKernel { kReference, kPortable, kWords, kLookup };

// A size in bytes, rounded up for vectors.
inline size_t aligned(size_t bytes) { return (bytes + 63) & ~size_t{63}; }

// Into how many parts the blocks of output channels are split, so that few tiles still give every thread work.
inline int channel_splits(int tiles, int blocks, const ThreadPool& pool) {
  return pool.threads() == 1 ? 1 : std::min(blocks, std::max(1, (3 * pool.threads() + tiles - 1) / tiles));
}

class BinaryConv {
 public:
  // weights: [out_channels][kernel_height][kernel_width][ceil(group inputs / 8)], bit 1 means -1, padding bits 0.
  // `isa` computes the sums (kLookup, kWords; where it has no such kernel, the portable set does) and, for every
  // kernel, what follows them.
  BinaryConv(const ConvShape& shape, int pad_value, const uint8_t* weights, BinaryKernel kernel, const Isa& isa);

  size_t shared_bytes() const { return shared_bytes_; }  // scratch of the whole call
  size_t thread_bytes() const { return thread_bytes_; }  // scratch of each thread
  const ConvShape& shape() const { return shape_; }
  std::string kernel_name() const;

  // signs: [in pixels][ceil(in_channels / 32)] words.
  void run(const uint32_t* signs, const Epilogue& epilogue, ThreadPool& pool, uint8_t* shared, uint8_t* threads) const;

 private:
  struct Entry {  // one column of pair codes
    int first, second, second_row;
  };

  void pack_for_lookup();
  void find_zones();
  void pack_for_words();
  void run_lookup(const uint32_t* signs, const Epilogue&, ThreadPool&, uint8_t* shared, uint8_t* threads) const;
  void run_words(const uint32_t* signs, const Epilogue&, ThreadPool&, uint8_t* shared, uint8_t* threads) const;
  void run_reference(const uint32_t* signs, const Epilogue&, ThreadPool&, uint8_t* threads) const;
  void regroup(const uint32_t* signs, uint32_t* grouped, ThreadPool& pool) const;
  void copy_padded(const uint32_t* signs, uint32_t* padded, ThreadPool& pool) const;
  size_t word_at(int group, int output, int words) const;
  float base(int pixel) const;
  int taps_inside(int pixel) const;
  bool weight_bit(int output, int tap, int input) const;

  ConvShape shape_, flat_;  // flat_: a 1x1 without stride and padding as one row
  int pad_value_;
  BinaryKernel kernel_;
  const Isa& isa_;
  int group_words_;                    // ceil(group inputs / 32)
  bool ragged_groups_;                 // a group's channels do not begin at a word
  std::vector<uint8_t> file_weights_;  // as in the file (reference)
  int blocks_ = 0, tile_ = 0;          // blocks of kBlock output channels in a group; pairs or pixels of a work item
  std::vector<int32_t> offsets_;
  // Look-up:
  int group_nibbles_;  // ceil(group inputs / 4)
  int run_length_ = 0;
  AlignedVector<uint8_t> lookup_;  // [group][block][nibble][kBlock]
  std::vector<Entry> entries_;
  std::vector<uint32_t> pair_offsets_;  // [pairs]: from the first code to a pair's, in the first group
  std::vector<LutZone> zones_;          // of all pairs of the image
  int entry_step_ = 1, wrap_ = -1, code_rows_ = 0;
  int columns_a_pair_ = 0;  // from a pair's entry to the next one's
  int columns_ = 0;         // of codes that one work item makes
  int half_ = 0;  // pixels of the first of two runs that make the pairs of a flat 1x1; 0: pairs are neighbours
  int joined_begin_ = 0, joined_end_ = 0;  // entries whose pixels, and their words' nibbles, stand side by side
  bool narrow_ = false;                    // ... once their words, of 16 channels each, are closed up
  std::vector<uint32_t> blank_;  // words of a pixel outside of the image, and what its states add to a pair's codes
  std::vector<uint16_t> outside_first_, outside_second_;
  std::vector<uint16_t> blank_codes_;  // of a pair outside of the image, all groups
  // Words:
  AlignedVector<uint32_t> words_;  // [group][block][slice][word][kSlice]
  int triples_ = 0;                // see WordLayer
  size_t parity_at_ = 0;           // words of the copied input, behind which its parities stand
  bool copies_ = false;            // the input gets a border or parities
  int padded_height_ = 0, padded_width_ = 0;
  std::vector<int> corrected_;        // of each pixel: its row in corrections_, or -1
  AlignedVector<float> corrections_;  // [kinds of border][group][block][kBlock]
  size_t shared_bytes_ = 0, thread_bytes_ = 0, grouped_bytes_ = 0;
};

}  // namespace nasb

// What an instruction set has to give: the table of micro-kernels that core/ calls. One isa_*.cpp for each instruction
// set fills it from the templates beside it. Those files are compiled with flags of their own; they use no inline
// function of the standard library, since the linker could keep their copy for everyone.
#pragma once

#include <cstddef>
#include <cstdint>

// Without it gcc keeps a micro-kernel's accumulators in memory.
#define NASB_UNROLL _Pragma("GCC unroll 16")

namespace nasb {

// Rows of accumulators and parameters are padded to this many channels.
constexpr int kBlock = 64;
// Channels whose words stand together in memory.
constexpr int kSlice = 32;
// Pixels of a work item, where it is not a number of pixel pairs.
constexpr int kTilePixels = 56;

// What happens to a channel's value after the sum, in this order; every rounding is one of plain fp32 (no fused
// multiply-add), so that a fused step equals its parts run one by one:
//   y = acc * scale + bias;  y += residual;  y = rectify(y + shift_in) + shift_out
// where rectify is ReLU, PReLU with a slope for each channel, or a clip; only the shifted PReLU has shifts.
enum class Rectify : int { kNone = 0, kRelu = 1, kPrelu = 2, kShiftedPrelu = 3, kClip = 4 };

// Signs are packed 32 channels a word, lowest bit first; bit 1 means -1, padding bits are 0.
struct SignOutput {
  const float* threshold;  // [channels, padded to kBlock]
  uint32_t* words;         // [pixels][stride]
  int stride;              // words of a pixel: ceil(channels / 32)
};

constexpr int kMaxSignOutputs = 8;

struct Epilogue {
  const float* scale = nullptr;     // null: 1. All parameters: [channels, padded to kBlock]
  const float* bias = nullptr;      // null: 0
  const float* residual = nullptr;  // [pixels][residual_channels], which repeat: all channels, or a multiple of 32
  int residual_channels = 0;
  Rectify rectify = Rectify::kNone;
  const float* shift_in = nullptr;
  const float* slope = nullptr;
  const float* shift_out = nullptr;
  float low = 0, high = 0;  // of a clip
  float* output = nullptr;  // [pixels][output_stride], or null where only signs are read
  int acc_stride = kBlock;  // from a pixel's accumulators to the next one's
  int output_stride = 0;    // more than `channels` where the output is a slice of a concatenation
  int sign_outputs = 0;
  SignOutput signs[kMaxSignOutputs];
};

// A binary convolution by table look-up (lut.h derives it), as a tile of output pixels sees it.
struct LutLayer {
  const uint8_t* table;    // [17][32][16] bytes
  const uint8_t* weights;  // [blocks][nibbles][kBlock], lanes in the order of lut_lane()
  const int32_t* runs;     // where nibbles stand side by side, from a pair's first code, in codes
  int run_length;
  int nibbles;  // of one output: run_length for each run = taps * ceil(channels / 4)
};

// Pairs of a tile that see the same rows of taps inside of the image: nibbles [begin, end) are summed, never none.
struct LutZone {
  int first_pair, pair_end;
  int begin, end;
};

// Pairs are neighbours, or the pixels of two runs, one to one. The counts' rows then are in the order of the pixels:
// pair by pair, or run by run.
struct LutTile {
  const uint16_t* const* pairs;  // [pair_count]: each pair's first code
  const float* base;             // [2 * pair_count]: the sum where no bit of the zone differs
  const LutZone* zones;          // of all pairs, one behind the other
  int zone_count;
  int pair_count;
  int first_pixel;  // of the tile or of the first run, in the output's flattened order
  int pixel_count;
  int second_pixel = -1;  // of the second run, or -1
  int second_count = 0;
  uint16_t* counts;  // scratch [lut_blocks][2 * pair_count][kBlock]
};

// A binary convolution by xor and popcount, as a tile of output pixels sees it. The first 3 * triples words stand in
// threes: those of two taps and, in place of a third tap's, the parity of all three. With a, b and p what a pixel's
// words differ in from an output's there, the third tap's differ in a ^ b ^ p: where of the three an odd number differ,
// p is set; where two or more do, (a & b) | ((a ^ b) & ~p). So two words are counted in place of three.
struct WordLayer {
  const uint32_t* weights;  // [blocks][kBlock / kSlice][words][kSlice]
  const int32_t* offsets;   // [words]: from a pixel's first word, in words
  int words;                // of one output: taps * ceil(channels / 32)
  int triples;
};

struct WordTile {
  const uint32_t* const* pixels;    // [pixel_count]: each pixel's first word
  float base;                       // the sum where no bit differs
  const float* const* corrections;  // [pixel_count]: [kBlock] to add for the block, or null: see BinaryConv
  int pixel_count;
  int first_pixel;
};

// A real convolution as a tile of output pixels sees it: the sum over segments of contiguous inputs.
struct GemmLayer {
  const float* weights;     // [ceil(channels / columns)][depth][columns], columns = Isa::gemm_columns
  const int32_t* segments;  // [segment_count]: from a pixel's first input, in floats
  int segment_count;
  int segment_length;
  int first_output;  // of the group among the layer's channels
};

// A real convolution with 7 columns of taps and stride 2 by Winograd's method (winograd.h): tiles of kWinogradOutputs
// neighbours of a row, from sums at kWinogradPoints points. The input stands as [rows *
// channels][tiles][kWinogradValues].
constexpr int kWinogradOutputs = 4, kWinogradPoints = 7;
constexpr int kWinogradValues = 16, kWinogradOdd = 8;  // of 7 even columns, and from there on of 6 odd ones
constexpr int kWinogradTiles = 12;  // of a work item, at most; a multiple of every micro-kernel's rows
constexpr int kWinogradStep = 4;    // tiles of a row are a multiple of it

struct WinogradLayer {
  const float* weights;  // [ceil(channels / columns)][points][depth, times 2 but for the last point][columns]
  int depth;             // rows of taps * input channels
  int tiles;             // of a row
};

// Pooled values: to[row * to_step + i] = the largest of taps[t][row * step + i], or their sum times `factor`, i <
// count.
struct PoolRun {
  const float* const* taps;
  int tap_count;
  int rows;
  size_t count, step, to_step;
  bool largest;
  float factor;
};

struct Isa {
  const char* name;
  // Applies `e` to accumulators [pixel_count][e.acc_stride] of the channels from `channel` on. It may read whole
  // vectors of 32 channels behind the last one.
  void (*epilogue)(const Epilogue& e, const float* acc, int first_pixel, int pixel_count, int channel,
                   int channel_count);
  // Pair codes of `count` nibbles: codes[i] = nibble i of first * 16 + nibble i of second * 512.
  void (*pair_codes)(const uint8_t* first, const uint8_t* second, uint16_t* codes, int count);
  // Sums of a tile for channel_count channels, up to lut_blocks blocks of kBlock from `block` on, handed to `e` with
  // the channel offset `channel`. Null: the set has none.
  int lut_blocks;
  void (*lut_tile)(const LutLayer& layer, const LutTile& tile, int block, const Epilogue& e, int channel,
                   int channel_count);
  // The same by xor and popcount, one block. Null: the look-up is better there.
  void (*word_tile)(const WordLayer& layer, const WordTile& tile, int block, const Epilogue& e, int channel,
                    int channel_count);
  int (*lut_lane)(int position);  // which of a block's kBlock channels a weight byte stands for
  // Sums of a tile of pixels for all channels; inputs[i]: first input of pixel i. scratch: [pixel_count][kBlock].
  int gemm_columns;
  void (*gemm_tile)(const GemmLayer& layer, const float* const* inputs, int first_pixel, int pixel_count,
                    int first_channel, int channel_count, const Epilogue& e, float* scratch);
  // The values of a row of one channel, of which the first tile begins at line[0].
  void (*winograd_inputs)(const float* line, int tiles, float* values);
  // Sums of pixels of a row for all channels; values: of the first row of taps, of the first tile.
  // scratch: [kWinogradTiles][kWinogradPoints * gemm_columns + kWinogradOutputs * kBlock].
  void (*winograd_tile)(const WinogradLayer& layer, const float* values, int first_pixel, int pixel_count, int channels,
                        const Epilogue& e, float* scratch);
  void (*pool)(const PoolRun& run, float* to);
  // acc[c] = sum over t of taps[t][c] * weights[t * stride + c].
  void (*depthwise)(const float* const* taps, const float* weights, int stride, int tap_count, int count, float* acc);
};

const Isa& isa_portable();
#if defined(__x86_64__)
const Isa& isa_avx2();
const Isa& isa_avx512();
const Isa& isa_avx512_vpopcntdq();
#elif defined(__aarch64__)
const Isa& isa_neon();
#endif

}  // namespace nasb

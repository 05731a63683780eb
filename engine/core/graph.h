// The network as the engine understands it: one image, shapes known, every layer of a kind that it can run.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "binary_conv.h"
#include "onnx_reader.h"

namespace nasb {

struct Tensor {
  std::string name;  // the ONNX value's
  int channels = 0, height = 1, width = 1;
  int rank = 4;         // axes in the file, with that of the images: the last ones may be missing
  bool binary = false;  // signs
  // In the file, without the axis of the images.
  std::vector<int64_t> dims() const {
    const int64_t all[] = {channels, height, width};
    return {all, all + (rank - 1)};
  }
  int64_t elements() const { return int64_t{1} * channels * height * width; }
};

enum class Op {
  kConv,  // real; also linear layers
  kBinaryConv,
  kBinarize,  // values: thresholds
  kUnpack,    // signs as -1 and +1
  kMaxPool,
  kAveragePool,
  kScale,  // values: per channel
  kShift,  // values: per channel
  kRelu,
  kPrelu,     // values: slopes
  kAdd,       // of two tensors; the second's channels repeat where it has fewer (join_convolutions)
  kAddGate,   // of two tensors; the second is [C, 1, 1]
  kMultiply,  // of two tensors; the second may be [C, 1, 1]
  kClip,      // low, high
  kSigmoid,
  kHardSigmoid,  // max(0, min(1, low x + high))
  kHardSwish,
  kConcat,   // of channels
  kCrop,     // begin, step
  kPad,      // begin: what is added in front; edge or value `low`
  kFlatten,  // and any other reshape: the order of the file stays, channels first
  kAlias     // the same bytes
};

struct Layer {
  Op op;
  std::string name;
  std::vector<int> inputs;  // tensors
  int output = 0;
  ConvShape shape;                 // convolutions and pooling (there kernel, stride, dilation, pads)
  std::vector<float> weights;      // kConv: [O][I / groups][kH][kW]
  std::vector<uint8_t> bits;       // kBinaryConv: as in the file
  std::vector<float> scale, bias;  // per output channel; kConv has no scale
  std::vector<float> values;
  int pad_value = 0;
  bool count_pads = false;  // average pooling: the border counts as pixels
  float low = 0, high = 0;
  int begin[3] = {0, 0, 0}, step[3] = {1, 1, 1};  // channels, height, width
  bool edge = false;
};

struct Graph {
  std::vector<Tensor> tensors;  // tensor 0: the image
  std::vector<Layer> layers;    // in an order in which they can run
  int output = 0;
};

// Raises Error (kUnsupported or kFile) with the node's name where the model is not one that the engine runs.
// `accumulators`: names of binary convolutions; for each a tensor "NAME:accumulators" is added.
Graph lower(const onnx::Model& model, const std::vector<std::string>& accumulators = {});

}  // namespace nasb

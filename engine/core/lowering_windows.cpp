// Convolutions, linear layers and pooling.
#include "lowering.h"

namespace nasb {
namespace {

constexpr int64_t kMostOutputs = 65536;

Tensor output_of(const ConvShape& s) {
  Tensor t;
  t.channels = s.out_channels, t.height = s.out_height, t.width = s.out_width;
  return t;
}

}  // namespace

ConvShape Lowering::window(const Tensor& in, int64_t kernel_height, int64_t kernel_width, bool ceil_mode) const {
  if (node_->text("auto_pad", "NOTSET") != "NOTSET") fail("auto_pad is not supported; give pads");
  if (in.rank != 4) fail("reads [batch, features]; [batch, channels, height, width] expected");
  const std::vector<int64_t> strides = ints("strides", 2, 1), dilations = ints("dilations", 2, 1),
                             pads = ints("pads", 4, 0);
  if (kernel_height < 1 || kernel_width < 1 || kernel_height > 4096 || kernel_width > 4096)
    fail("a kernel of " + std::to_string(kernel_height) + " x " + std::to_string(kernel_width));
  if (strides[0] < 1 || strides[1] < 1 || dilations[0] < 1 || dilations[1] < 1)
    fail("strides and dilations must be 1 or more");
  ConvShape s{};
  s.in_channels = in.channels, s.in_height = in.height, s.in_width = in.width;
  s.kernel_height = static_cast<int>(kernel_height), s.kernel_width = static_cast<int>(kernel_width);
  s.stride_height = static_cast<int>(strides[0]), s.stride_width = static_cast<int>(strides[1]);
  s.dilation_height = static_cast<int>(dilations[0]), s.dilation_width = static_cast<int>(dilations[1]);
  s.pad_top = static_cast<int>(pads[0]), s.pad_left = static_cast<int>(pads[1]);
  const auto size = [&](int64_t n, int64_t before, int64_t after, int64_t kernel, int64_t stride, int64_t dilation) {
    const int64_t room = n + before + after - dilation * (kernel - 1) - 1;
    if (room < 0) fail("its kernel is larger than its input");
    int64_t out = (ceil_mode ? room + stride - 1 : room) / stride + 1;
    if (ceil_mode && (out - 1) * stride >= n + before) --out;  // no window may begin behind the image
    if (out > 65536) fail("its output is too large");
    return static_cast<int>(out);
  };
  s.out_height = size(in.height, pads[0], pads[2], kernel_height, strides[0], dilations[0]);
  s.out_width = size(in.width, pads[1], pads[3], kernel_width, strides[1], dilations[1]);
  return s;
}

void Lowering::refuse_large_input(const ConvShape& s) const {
  const int64_t height =
      int64_t{s.out_height - 1} * s.stride_height + int64_t{s.kernel_height - 1} * s.dilation_height + 1;
  const int64_t width = int64_t{s.out_width - 1} * s.stride_width + int64_t{s.kernel_width - 1} * s.dilation_width + 1;
  if (height > kLargest || width > kLargest || height * width > kLargest || height * width * s.in_channels > kLargest)
    fail("its input with its border would have " + std::to_string(height) + " x " + std::to_string(width) + " pixels");
}

int Lowering::group(const Tensor& in, int64_t outputs) const {
  const int64_t g = node_->integer("group", 1);
  if (outputs < 1 || outputs > kMostOutputs)
    fail("has " + std::to_string(outputs) + " output channels; the engine computes 1 to " +
         std::to_string(kMostOutputs));
  if (g < 1 || in.channels % g || outputs % g)
    fail("group " + std::to_string(g) + " does not divide " + std::to_string(in.channels) + " input and " +
         std::to_string(outputs) + " output channels");
  return static_cast<int>(g);
}

void Lowering::binary_conv() {
  const int in = value(0, true);
  const onnx::Tensor& w = constant(1);
  if (w.type != onnx::DataType::kUint8 || w.dims.size() != 4) fail("input 1: uint8 [C_out, kH, kW, bytes] expected");
  ConvShape s = window(tensor(in), w.dims[1], w.dims[2], false);
  s.out_channels = static_cast<int>(w.dims[0]);
  s.groups = group(tensor(in), w.dims[0]);
  refuse_large_input(s);
  const int64_t channels = node_->integer("channels", s.group_inputs());
  if (channels != s.group_inputs())
    fail("attribute channels is " + std::to_string(channels) + "; its input has " + std::to_string(s.group_inputs()) +
         " a group");
  if (w.dims[3] != (channels + 7) / 8)
    fail("input 1 has " + std::to_string(w.dims[3]) + " bytes a tap; " + std::to_string(channels) + " channels need " +
         std::to_string((channels + 7) / 8));
  if (channels % 8)
    for (size_t i = w.dims[3] - 1; i < w.bytes.size(); i += w.dims[3])
      if (w.bytes[i] >> (channels % 8)) fail("input 1: padding bits must be 0");
  const float pad_value = node_->number("pad_value", 0);
  if (pad_value != 0 && pad_value != 1 && pad_value != -1) fail("attribute pad_value must be -1, 0 or 1");
  std::vector<float> scale = constant(2).floats(), bias = constant(3).floats();
  if (scale.size() != static_cast<size_t>(s.out_channels) || bias.size() != scale.size())
    fail("scale and bias need one value for each output channel");
  if (int64_t{s.taps()} * s.group_inputs() > (1 << 23)) fail("its sums do not fit a float exactly");
  const std::string name = node_->name.empty() ? node_->outputs[0] : node_->name;
  for (bool accumulators : {false, true}) {
    if (accumulators) {
      bool asked = false;
      for (const std::string& a : accumulators_) asked |= a == name;
      if (!asked) return;
      if (values_.count(name + ":accumulators")) fail("another node has the same name");
    }
    Layer layer;
    layer.op = Op::kBinaryConv;
    layer.name = name + (accumulators ? ":accumulators" : "");
    layer.inputs = {in};
    layer.output = define(output_of(s), accumulators ? layer.name : node_->outputs[0]);
    layer.shape = s;
    layer.bits = w.bytes;
    layer.pad_value = static_cast<int>(pad_value);
    layer.scale = accumulators ? std::vector<float>(scale.size(), 1.0f) : scale;
    layer.bias = accumulators ? std::vector<float>(bias.size(), 0.0f) : bias;
    graph_.layers.push_back(std::move(layer));
  }
}

void Lowering::conv() {
  const int in = value(0);
  const onnx::Tensor& w = constant(1);
  if (w.dims.size() != 4) fail("only 2-dimensional convolutions");
  if (node_->integers("kernel_shape", {w.dims[2], w.dims[3]}) != std::vector<int64_t>{w.dims[2], w.dims[3]})
    fail("attribute kernel_shape is not that of its weight, " + std::to_string(w.dims[2]) + " x " +
         std::to_string(w.dims[3]));
  ConvShape s = window(tensor(in), w.dims[2], w.dims[3], false);
  s.groups = group(tensor(in), w.dims[0]);
  s.out_channels = static_cast<int>(w.dims[0]);
  refuse_large_input(s);
  if (w.dims[1] != s.group_inputs())
    fail("its weight reads " + std::to_string(w.dims[1]) + " channels a group, its input has " +
         std::to_string(s.group_inputs()));
  std::vector<float> bias = given(2) ? constant(2).floats() : std::vector<float>(s.out_channels, 0.0f);
  if (bias.size() != static_cast<size_t>(s.out_channels))
    fail("its bias has " + std::to_string(bias.size()) + " values");
  std::vector<float> weights = w.floats();
  Layer& layer = add(Op::kConv, {in}, output_of(s));
  layer.shape = s;
  layer.weights = std::move(weights);
  layer.bias = std::move(bias);
}

void Lowering::gemm() {
  const int in = value(0);
  const onnx::Tensor& w = constant(1);
  if (tensor(in).rank != 2) fail("input 0: [batch, features] expected");
  if (w.dims.size() != 2 || node_->integer("transB", 0) != 1 || node_->integer("transA", 0) != 0 ||
      node_->number("alpha", 1) != 1 || node_->number("beta", 1) != 1)
    fail("only transB = 1, alpha = beta = 1");
  if (w.dims[1] != tensor(in).channels || w.dims[0] < 1 || w.dims[0] > (1 << 20))
    fail("its weight is [" + std::to_string(w.dims[0]) + ", " + std::to_string(w.dims[1]) + "], its input has " +
         std::to_string(tensor(in).channels) + " features");
  ConvShape s{};
  s.in_channels = tensor(in).channels, s.out_channels = static_cast<int>(w.dims[0]);
  s.in_height = s.in_width = s.out_height = s.out_width = 1;
  std::vector<float> bias = given(2) ? constant(2).floats() : std::vector<float>(s.out_channels, 0.0f);
  if (bias.size() != static_cast<size_t>(s.out_channels))
    fail("its bias has " + std::to_string(bias.size()) + " values");
  std::vector<float> weights = w.floats();
  Tensor t = output_of(s);
  t.rank = 2;
  Layer& layer = add(Op::kConv, {in}, t);
  layer.shape = s;
  layer.weights = std::move(weights);
  layer.bias = std::move(bias);
}

void Lowering::pool() {
  const int in = value(0);
  const bool average = node_->op == "AveragePool";
  const std::vector<int64_t> kernel = ints("kernel_shape", 2, 0);
  if (node_->integer("storage_order", 0) != 0) fail("storage_order is not supported");
  ConvShape s = window(tensor(in), kernel[0], kernel[1], node_->integer("ceil_mode", 0) != 0);
  s.out_channels = s.in_channels;
  const std::vector<int64_t> pads = ints("pads", 4, 0);
  const bool count_pads = average && node_->integer("count_include_pad", 0) != 0;
  refuse_empty_windows(s.out_height, s.stride_height, s.pad_top, s.kernel_height, s.dilation_height, s.in_height);
  refuse_empty_windows(s.out_width, s.stride_width, s.pad_left, s.kernel_width, s.dilation_width, s.in_width);
  Layer& layer = add(average ? Op::kAveragePool : Op::kMaxPool, {in}, output_of(s));
  layer.shape = s;
  layer.count_pads = count_pads;
  layer.begin[1] = static_cast<int>(pads[2]), layer.begin[2] = static_cast<int>(pads[3]);  // what is padded behind
}

void Lowering::refuse_empty_windows(int64_t out, int64_t stride, int64_t pad, int64_t kernel, int64_t dilation,
                                    int64_t size) const {
  for (int64_t o = 0; o < out; ++o) {
    const int64_t start = o * stride - pad, skipped = start < 0 ? (-start + dilation - 1) / dilation : 0;
    if (skipped >= kernel || start + skipped * dilation >= size) fail("a window lies outside of the image");
  }
}

void Lowering::global_pool() {
  const int in = value(0);
  if (tensor(in).rank != 4) fail("reads [batch, features]");
  ConvShape s{};
  s.in_channels = s.out_channels = tensor(in).channels;
  s.kernel_height = s.in_height = tensor(in).height, s.kernel_width = s.in_width = tensor(in).width;
  s.out_height = s.out_width = 1;
  add(Op::kAveragePool, {in}, output_of(s)).shape = s;
}

}  // namespace nasb

#include "measure.h"

#include <algorithm>
#include <chrono>

#include "dispatch.h"
#include "error.h"
#include "memory.h"
#include "plan.h"
#include "steps.h"

namespace nasb {
namespace {

constexpr size_t kOtherMemory =
    size_t{2} << 20;  // bytes read between two runs: what a network touches between two uses of a layer

enum : int { kInput, kSigns, kResidual, kOutput, kOutputSigns };

size_t align(size_t bytes) { return (bytes + 255) / 64 * 64; }

void check(const ConvShape& s) {
  const auto size = [](int64_t in, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation) {
    return (in + 2 * pad - dilation * (kernel - 1) - 1) / stride + 1;
  };
  const bool sizes = s.in_channels > 0 && s.in_height > 0 && s.in_width > 0 && s.out_channels > 0 && s.out_height > 0 &&
                     s.out_width > 0 && s.kernel_height > 0 && s.kernel_width > 0 && s.stride_height > 0 &&
                     s.stride_width > 0 && s.dilation_height > 0 && s.dilation_width > 0 && s.pad_top >= 0 &&
                     s.pad_left >= 0 && s.groups > 0;
  const int most = 1 << 20;  // of any number, so that what is made of two of them fits
  const bool small = s.in_height <= most && s.in_width <= most && s.pad_top <= most && s.pad_left <= most &&
                     s.kernel_height <= 64 && s.kernel_width <= 64 && s.stride_height <= 64 && s.stride_width <= 64 &&
                     s.dilation_height <= 64 && s.dilation_width <= 64;
  const int64_t largest = 1 << 26;
  const auto product = [](int64_t a, int64_t b, int64_t c) {
    return a > (1 << 20) || b > (1 << 14) || c > (1 << 14) ? int64_t{1} << 62 : a * b * c;
  };
  if (!sizes || !small || s.pad_top >= (s.kernel_height + 1) * s.dilation_height ||
      s.pad_left >= (s.kernel_width + 1) * s.dilation_width ||
      size(s.in_height, s.kernel_height, s.stride_height, s.pad_top, s.dilation_height) != s.out_height ||
      size(s.in_width, s.kernel_width, s.stride_width, s.pad_left, s.dilation_width) != s.out_width ||
      s.in_height + 2 * s.pad_top < s.dilation_height * (s.kernel_height - 1) + 1 ||
      s.in_width + 2 * s.pad_left < s.dilation_width * (s.kernel_width - 1) + 1 || s.in_channels % s.groups ||
      s.out_channels % s.groups ||
      product(s.in_channels, s.in_height + 2 * s.pad_top, s.in_width + 2 * s.pad_left) > largest ||
      product(s.out_channels, s.out_height, s.out_width) > largest ||
      int64_t{s.out_channels} * s.group_inputs() * s.taps() > largest)
    throw Error(ErrorCode::kArgument, "measure: a shape that is not one of a convolution, or too large");
}

}  // namespace

std::vector<double> measure(const MeasuredOperation& operation, int repeats, int threads, const std::string& kernel) {
  const ConvShape& s = operation.shape;
  check(s);
  Graph graph;
  const auto tensor = [&](int channels, int height, int width, bool binary) {
    Tensor t;
    t.channels = channels, t.height = height, t.width = width, t.binary = binary;
    graph.tensors.push_back(t);
  };
  tensor(s.in_channels, s.in_height, s.in_width, false);
  tensor(s.in_channels, s.in_height, s.in_width, true);
  for (bool binary : {false, false, true}) tensor(s.out_channels, s.out_height, s.out_width, binary);

  Layer layer;
  layer.shape = s;
  layer.inputs = {kInput};
  layer.output = kOutput;
  layer.scale.assign(s.out_channels, 0.01f);
  layer.bias.assign(s.out_channels, 0.1f);
  const size_t weights = static_cast<size_t>(s.out_channels) * s.taps() * s.group_inputs();
  const std::string& kind = operation.kind;
  if (kind == "binary_conv") {
    layer.op = Op::kBinaryConv;
    layer.inputs = {kSigns};
    layer.bits.assign(static_cast<size_t>(s.out_channels) * s.taps() * ((s.group_inputs() + 7) / 8), 0);
  } else if (kind == "conv") {
    layer.op = Op::kConv;
    layer.scale.clear();
    layer.weights.assign(weights, 0.01f);
  } else if (kind == "avg_pool" || kind == "max_pool") {
    layer.op = kind == "avg_pool" ? Op::kAveragePool : Op::kMaxPool;
    if (s.dilation_height != 1 || s.dilation_width != 1 || s.pad_top >= s.kernel_height ||
        s.pad_left >= s.kernel_width || s.pad_top >= s.in_height + 1 || s.pad_left >= s.in_width + 1 ||
        s.in_channels != s.out_channels)
      throw Error(ErrorCode::kArgument, "measure: pooling without dilation, its padding smaller than its kernel");
  } else if (kind == "identity" || kind == "binarize") {
    layer.op = kind == "identity" ? Op::kScale : Op::kBinarize;
    if (s.in_channels != s.out_channels || s.in_height != s.out_height || s.in_width != s.out_width)
      throw Error(ErrorCode::kArgument, "measure: " + kind + " keeps the shape");
  } else {
    throw Error(
        ErrorCode::kArgument,
        "measure: \"" + kind + "\" is not known; known: binary_conv, conv, identity, avg_pool, max_pool, binarize");
  }
  const Choice choice = choose_kernel(kernel);
  const std::unique_ptr<Step> step = make_step(layer, graph, choice.kernel, *choice.isa, false);
  const bool sums = kind != "binarize";
  if (sums) {
    if (!layer.scale.empty()) step->fused.scale = padded(layer.scale);
    step->fused.bias = padded(layer.bias);
    if (operation.residual) step->fused.residual = kResidual, step->fused.residual_channels = s.out_channels;
  }
  step->fused.store = sums;
  if (!sums || operation.sign_output)
    step->fused.signs.push_back({kOutputSigns, padded(std::vector<float>(s.out_channels, 0.0f))});

  if (threads < 0 || threads > 256 || repeats > 1000000)
    throw Error(ErrorCode::kArgument, "measure: threads or repeats out of range");
  ThreadPool pool(threads > 0 ? threads : available_threads());
  std::vector<size_t> offsets;
  size_t bytes = 0;
  for (const Tensor& t : graph.tensors) {
    offsets.push_back(bytes);
    bytes += align(static_cast<size_t>(t.elements()) * sizeof(float) + kBlock);
  }
  Memory memory(bytes + step->shared_bytes + step->thread_bytes * pool.threads());
  Workspace w;
  w.arena = memory.data();
  w.offsets = &offsets;
  w.shared = w.arena + bytes;
  w.threads = w.shared + step->shared_bytes;
  std::vector<uint8_t> other(kOtherMemory, 1);
  std::vector<double> times;
  volatile uint8_t sink = 0;
  for (int r = -2; r < std::max(repeats, 1); ++r) {
    uint8_t sum = 0;
    for (size_t i = 0; i < other.size(); i += 64) sum = static_cast<uint8_t>(sum + other[i]);
    sink = sum;
    // A layer's input has just been written by the layer in front of it.
    const Tensor& in = graph.tensors[step->inputs[0]];
    const size_t words = in.binary ? static_cast<size_t>(in.height) * in.width * ((in.channels + 31) / 32)
                                   : static_cast<size_t>(in.elements());
    for (size_t i = 0; i < words; i += 16) w.words(step->inputs[0])[i] = 0;
    const auto start = std::chrono::steady_clock::now();
    step->run(w, pool);
    const auto end = std::chrono::steady_clock::now();
    if (r >= 0) times.push_back(std::chrono::duration<double, std::milli>(end - start).count());
  }
  (void)sink;
  return times;
}

}  // namespace nasb

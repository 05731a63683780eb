#include "self_check.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "graph.h"
#include "memory.h"
#include "steps.h"
#include "thread_pool.h"
#include "winograd.h"

namespace nasb {
namespace {

using Floats = std::vector<float>;

enum : int { kInput, kResidual, kOutput, kOutputSigns, kSecondSigns, kTensors };

struct Case {
  Op op;
  int channels, outputs, size, kernel_height, kernel_width, stride, pad, dilation, groups, pad_value;
  Rectify rectify;
  int residual;  // its channels; fewer than the outputs repeat
};

constexpr Op kBinary = Op::kBinaryConv, kReal = Op::kConv, kMax = Op::kMaxPool, kMean = Op::kAveragePool;
constexpr Op kSigns = Op::kBinarize;

constexpr Case kCases[] = {
    {kBinary, 64, 64, 4, 3, 3, 1, 1, 1, 1, 0, Rectify::kNone, 64},
    {kBinary, 40, 128, 5, 3, 3, 2, 1, 1, 1, 0, Rectify::kPrelu, 0},
    {kBinary, 30, 70, 5, 3, 3, 1, 1, 1, 1, 0, Rectify::kRelu, 0},
    {kBinary, 16, 16, 6, 5, 5, 1, 2, 1, 1, 1, Rectify::kShiftedPrelu, 16},
    {kBinary, 260, 33, 5, 1, 1, 1, 0, 1, 1, 0, Rectify::kNone, 0},
    {kBinary, 12, 24, 9, 3, 3, 1, 2, 2, 2, -1, Rectify::kPrelu, 24},
    {kBinary, 20, 12, 7, 3, 3, 2, 1, 1, 2, 0, Rectify::kClip, 12},
    {kBinary, 1, 1, 3, 7, 7, 1, 3, 1, 1, 0, Rectify::kNone, 0},
    {kBinary, 300, 10, 2, 3, 3, 1, 1, 1, 1, 0, Rectify::kNone, 10},
    {kBinary, 32, 64, 5, 3, 3, 1, 1, 1, 1, 0, Rectify::kPrelu, 32},
    {kBinary, 64, 128, 4, 1, 1, 1, 0, 1, 1, 0, Rectify::kNone, 32},
    // Rows of the micro-kernel, four, and single ones; whole blocks of channels, and parts of one.
    {kReal, 3, 70, 9, 3, 3, 1, 1, 1, 1, 0, Rectify::kNone, 70},
    {kReal, 70, 130, 5, 1, 1, 2, 0, 1, 1, 0, Rectify::kRelu, 0},
    {kReal, 12, 36, 6, 3, 3, 1, 1, 2, 2, 0, Rectify::kPrelu, 36},
    {kReal, 300, 75, 1, 1, 1, 1, 0, 1, 1, 0, Rectify::kNone, 0},
    // Winograd's method: tiles of a row in whole micro-kernels, in fours, and a part of one.
    {kReal, 2, 40, 97, 2, 7, 2, 3, 1, 1, 0, Rectify::kRelu, 0},
    // Depthwise.
    {kReal, 70, 70, 5, 3, 3, 1, 1, 1, 70, 0, Rectify::kShiftedPrelu, 70},
    {kReal, 3, 3, 5, 5, 5, 2, 2, 1, 3, 0, Rectify::kNone, 0},
    // The numbers of taps that have loops of their own, and others.
    {kMax, 70, 70, 7, 3, 3, 2, 1, 1, 1, 0, Rectify::kNone, 70},
    {kMax, 16, 16, 8, 2, 2, 2, 0, 1, 1, 0, Rectify::kNone, 0},
    {kMax, 5, 5, 9, 9, 9, 1, 4, 1, 1, 0, Rectify::kClip, 0},
    {kMax, 33, 33, 7, 5, 5, 1, 2, 1, 1, 0, Rectify::kRelu, 0},
    {kMean, 70, 70, 7, 3, 3, 1, 1, 1, 1, 0, Rectify::kNone, 70},
    {kMean, 16, 16, 8, 2, 2, 2, 0, 1, 1, 0, Rectify::kNone, 0},
    {kMean, 19, 19, 6, 2, 1, 1, 0, 1, 1, 0, Rectify::kNone, 0},
    {kMean, 130, 130, 7, 7, 7, 1, 0, 1, 1, 0, Rectify::kPrelu, 0},
    // Signs of a map that nobody else reads: whole blocks of channels, and a part of one.
    {kSigns, 130, 130, 3, 1, 1, 1, 0, 1, 1, 0, Rectify::kNone, 0},
};

bool is_convolution(Op op) { return op == Op::kConv || op == Op::kBinaryConv; }

ConvShape shape_of(const Case& c) {
  const auto outputs = [&](int kernel) { return (c.size + 2 * c.pad - c.dilation * (kernel - 1) - 1) / c.stride + 1; };
  ConvShape s;
  s.in_channels = c.channels, s.out_channels = c.outputs, s.groups = c.groups;
  s.in_height = s.in_width = c.size;
  s.kernel_height = c.kernel_height, s.kernel_width = c.kernel_width;
  s.stride_height = s.stride_width = c.stride;
  s.dilation_height = s.dilation_width = c.dilation;
  s.pad_top = s.pad_left = c.pad;
  s.out_height = outputs(c.kernel_height), s.out_width = outputs(c.kernel_width);
  return s;
}

// A layer with everything that can follow it, and its results by the definition.
//
// Real inputs and weights are k / 16 with |k| < 128: a sum of up to 1000 products is exact in float, in whatever order
// and with or without fused multiply-adds it is made. So every kernel has to give the same bits. (Those of a
// convolution by Winograd's method are such that all that it makes of them is exact, too.)
class Checked {
 public:
  explicit Checked(const Case& c) : case_(c), shape_(shape_of(c)) {
    const ConvShape& s = shape_;
    const size_t channels = s.out_channels, pixels = s.pixels();
    input_ = draw(size_t{1} * s.in_height * s.in_width * s.in_channels);
    scale_ = draw(channels), bias_ = draw(channels), slope_ = draw(channels), shift_ = draw(channels);
    residual_ = draw(pixels * c.residual);
    if (c.residual) residual_[0] = std::numeric_limits<float>::quiet_NaN(), residual_.back() = -0.0f;
    for (Floats& threshold : thresholds_) threshold = draw(channels);
    if (!is_convolution(c.op)) input_[input_.size() / 2] = std::numeric_limits<float>::quiet_NaN();
    make_layer();
    sum();
    follow();
  }

  std::string run(BinaryKernel kernel, const Isa& isa) const {
    const ConvShape& s = shape_;
    Graph graph;
    graph.tensors.resize(kTensors);
    Tensor& output = graph.tensors[kOutput];
    output.channels = s.out_channels, output.height = s.out_height, output.width = s.out_width;
    const std::unique_ptr<Step> step = make_step(layer_, graph, kernel, isa, false);
    Fused& f = step->fused;
    if (case_.op == Op::kBinaryConv) f.scale = padded(scale_);
    if (is_convolution(case_.op) || case_.residual) f.bias = padded(bias_);
    if (case_.residual) f.residual = kResidual, f.residual_channels = case_.residual;
    f.rectify = case_.rectify;
    f.low = kLow, f.high = kHigh;
    f.slope = padded(slope_), f.shift_in = padded(shift_), f.shift_out = padded(bias_);
    f.store = case_.op != Op::kBinarize;
    for (int reader = 0; reader < 2; ++reader)
      if (!words_[reader].empty()) f.signs.push_back({kOutputSigns + reader, padded(thresholds_[reader])});

    const std::vector<size_t> floats = {input_.size(), residual_.size(), expected_.size(), words_[0].size(),
                                        words_[1].size()};
    std::vector<size_t> offsets;
    size_t bytes = 0;
    for (const size_t n : floats) {
      offsets.push_back(bytes);
      bytes += aligned(sizeof(float) * (n + kBlock));  // kernels may read a block behind the last channel
    }
    ThreadPool alone(1);
    Memory memory(bytes + step->shared_bytes + step->thread_bytes);
    Workspace w;
    w.arena = memory.data();
    w.offsets = &offsets;
    w.shared = w.arena + bytes;
    w.threads = w.shared + step->shared_bytes;
    if (case_.op == Op::kBinaryConv)
      pack(input_, s.in_channels, w.words(kInput));
    else
      std::copy(input_.begin(), input_.end(), w.floats(kInput));
    std::copy(residual_.begin(), residual_.end(), w.floats(kResidual));
    std::fill_n(w.floats(kOutput), expected_.size(), -77.0f);
    for (int reader = 0; reader < 2; ++reader) std::fill_n(w.words(kOutputSigns + reader), words_[reader].size(), ~0u);
    step->run(w, alone);
    bool equal = !f.store || same(expected_, w.floats(kOutput));
    for (int reader = 0; reader < 2; ++reader)
      equal &= std::equal(words_[reader].begin(), words_[reader].end(), w.words(kOutputSigns + reader));
    return equal ? "" : name(step->kernel());
  }

 private:
  static constexpr float kLow = -1.5f, kHigh = 1.0f;

  Floats draw(size_t count) {
    Floats v(count);
    for (float& x : v) x = static_cast<float>(static_cast<int>(random_() % 255) - 127) / 16.0f;
    return v;
  }

  void make_layer() {
    const ConvShape& s = shape_;
    layer_.op = case_.op;
    layer_.inputs = {kInput};
    layer_.output = kOutput;
    layer_.shape = s;
    layer_.pad_value = case_.pad_value;
    if (!is_convolution(case_.op)) return;
    const int inputs = s.group_inputs(), bytes = (inputs + 7) / 8;
    const bool binary = case_.op == Op::kBinaryConv;
    weights_ = draw(size_t{1} * s.taps() * inputs * s.out_channels);
    // Winograd's method divides weights by factors of 360 = 8 * 9 * 5, and is not for whole numbers alone.
    if (case_.op == Op::kConv && s.kernel_width == 7 && s.stride_width == 2) {
      for (float& x : input_) x = std::trunc(x / 2);
      for (float& x : weights_) x = 360.0f / 32 * std::trunc(x / 4);
    }
    if (!binary) layer_.weights.resize(weights_.size());
    if (binary) layer_.bits.assign(size_t{1} * s.out_channels * s.taps() * bytes, 0);
    if (binary)
      for (Floats* values : {&input_, &weights_})
        for (float& x : *values) x = x < 0 ? -1.0f : 1.0f;
    for (int o = 0; o < s.out_channels; ++o)
      for (int t = 0; t < s.taps(); ++t)
        for (int i = 0; i < inputs; ++i) {
          const float weight = weights_[(size_t{1} * t * inputs + i) * s.out_channels + o];
          if (!binary)
            layer_.weights[(size_t{1} * o * inputs + i) * s.taps() + t] = weight;
          else if (weight < 0)
            layer_.bits[(size_t{1} * o * s.taps() + t) * bytes + i / 8] |= static_cast<uint8_t>(1 << (i % 8));
        }
  }

  // The sums of convolutions, the largest or the mean of pooling, one tap after the other.
  void sum() {
    const ConvShape& s = shape_;
    const bool largest = case_.op == Op::kMaxPool, pool = !is_convolution(case_.op);
    const size_t channels = s.out_channels;
    const int inputs = s.group_inputs(), outputs = s.group_outputs();
    expected_.assign(s.pixels() * channels, largest ? -std::numeric_limits<float>::infinity() : 0.0f);
    for (int p = 0; p < s.pixels(); ++p) {
      float* y = expected_.data() + p * channels;
      int counted = 0;
      for (int t = 0; t < s.taps(); ++t) {
        const int iy = p / s.out_width * s.stride_height - s.pad_top + t / s.kernel_width * s.dilation_height;
        const int ix = p % s.out_width * s.stride_width - s.pad_left + t % s.kernel_width * s.dilation_width;
        const bool inside = iy >= 0 && iy < s.in_height && ix >= 0 && ix < s.in_width;
        const float* x = inside ? input_.data() + (size_t{1} * iy * s.in_width + ix) * s.in_channels : nullptr;
        if (pool && !inside) continue;
        ++counted;
        for (size_t c = 0; pool && c < channels; ++c)
          y[c] = !largest ? y[c] + x[c] : x[c] > y[c] || std::isnan(x[c]) ? x[c] : y[c];
        for (int i = 0; !pool && i < s.in_channels; ++i) {
          const float value = inside ? x[i] : static_cast<float>(case_.pad_value);
          const float* weights = weights_.data() + (size_t{1} * t * inputs + i % inputs) * channels;
          for (int o = i / inputs * outputs; o < (i / inputs + 1) * outputs; ++o) y[o] += value * weights[o];
        }
      }
      for (size_t c = 0; case_.op == Op::kAveragePool && c < channels; ++c) y[c] *= 1.0f / static_cast<float>(counted);
    }
  }

  // What the epilogue has to do (kernels/isa.h).
  void follow() {
    const size_t channels = shape_.out_channels;
    for (size_t i = 0; i < expected_.size(); ++i) {
      const size_t c = i % channels;
      float& y = expected_[i];
      if (case_.op == Op::kBinaryConv) y *= scale_[c];
      if (is_convolution(case_.op) || case_.residual) y += bias_[c];
      if (case_.residual) y += residual_[i / channels * case_.residual + c % case_.residual];
      const bool shifted = case_.rectify == Rectify::kShiftedPrelu;
      if (shifted) y += shift_[c];
      if (case_.rectify == Rectify::kRelu && y < 0) y = 0;
      if ((case_.rectify == Rectify::kPrelu || shifted) && y < 0) y *= slope_[c];
      if (shifted) y += bias_[c];
      if (case_.rectify == Rectify::kClip) y = y < kLow ? kLow : y > kHigh ? kHigh : y;
    }
    if (shape_.groups > 1 && shape_.group_outputs() % 32) return;
    for (int reader = 0; reader < (case_.op == Op::kBinarize ? 1 : 2); ++reader) {
      Floats signs(expected_.size());
      for (size_t i = 0; i < signs.size(); ++i)
        signs[i] = expected_[i] >= thresholds_[reader][i % channels] ? 1.0f : -1.0f;
      words_[reader].assign(shape_.pixels() * ((channels + 31) / 32), 0);
      pack(signs, shape_.out_channels, words_[reader].data());
    }
  }

  static void pack(const Floats& signs, int channels, uint32_t* words) {
    const int stride = (channels + 31) / 32;
    for (size_t p = 0; p < signs.size() / channels; ++p)
      for (int c = 0; c < channels; ++c)
        words[p * stride + c / 32] |= static_cast<uint32_t>(signs[p * channels + c] < 0) << (c % 32);
  }

  // To the bit, the sign of zero included; one NaN is as good as another.
  static bool same(const Floats& a, const float* b) {
    for (size_t i = 0; i < a.size(); ++i)
      if (std::memcmp(&a[i], b + i, sizeof(float)) != 0 && !(std::isnan(a[i]) && std::isnan(b[i]))) return false;
    return true;
  }

  std::string name(const std::string& kernel) const {
    const Case& c = case_;
    const char* kind = c.op == kBinary ? "binary convolution"
                       : c.op == kReal ? "convolution"
                       : c.op == kMax  ? "max pooling"
                                       : "average pooling";
    return kernel + ": a " + kind + " of " + std::to_string(c.channels) + " to " + std::to_string(c.outputs) +
           " channels, " + std::to_string(c.kernel_height) + "x" + std::to_string(c.kernel_width) +
           ", differs from the reference";
  }

  Case case_;
  ConvShape shape_;
  Layer layer_;
  std::mt19937 random_{1};
  Floats input_, weights_;  // weights: [taps][inputs of a group][outputs]
  Floats scale_, bias_, slope_, shift_, residual_, expected_;
  Floats thresholds_[2];  // of two readers of the output's signs
  std::vector<uint32_t> words_[2];
};

}  // namespace

struct SelfCheck::Impl {
  std::vector<Checked> cases;
};

SelfCheck::SelfCheck() : impl_(std::make_unique<Impl>()) {
  for (const Case& c : kCases) impl_->cases.emplace_back(c);
}
SelfCheck::~SelfCheck() = default;

std::string SelfCheck::run(BinaryKernel kernel, const Isa& isa) const {
  for (const Checked& c : impl_->cases)
    if (std::string difference = c.run(kernel, isa); !difference.empty()) return difference;
  return "";
}

}  // namespace nasb

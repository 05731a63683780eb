#include "steps.h"

#include <algorithm>

namespace nasb {
namespace {

constexpr int kTile = 48;  // pixels of a work item

class BinaryConvStep : public Step {
 public:
  BinaryConvStep(const Layer& layer, BinaryKernel kernel, const Isa& isa)
      : conv_(layer.shape, layer.pad_value, layer.bits.data(), kernel, isa) {
    macs = layer.shape.macs();
    binary = true;
    shared_bytes = conv_.shared_bytes();
    thread_bytes = conv_.thread_bytes();
  }
  void run(const Workspace& w, ThreadPool& pool) const override {
    conv_.run(w.words(inputs[0]), epilogue(w), pool, w.shared, w.threads);
  }
  std::string kernel() const override { return conv_.kernel_name(); }

 private:
  BinaryConv conv_;
};
class PoolStep : public Step {
 public:
  PoolStep(const Layer& layer, const Isa& isa)
      : s_(layer.shape),
        isa_(isa),
        largest_(layer.op == Op::kMaxPool),
        count_pads_(layer.count_pads),
        pad_bottom_(layer.begin[1]),
        pad_right_(layer.begin[2]) {
    const int wide = (s_.kernel_width - 1) * s_.dilation_width;
    columns_ = std::min(s_.out_width, std::max(1, kRun / s_.in_channels));
    read_floats_ = (static_cast<size_t>(columns_ - 1) * s_.stride_width + wide + 1) * s_.in_channels + kBlock;
    const size_t made = static_cast<size_t>(columns_) * s_.in_channels + kBlock;
    taps_at_ = largest_ ? aligned(sizeof(float) * (read_floats_ + made)) : aligned(sizeof(float) * kPoolTile * kBlock);
    thread_bytes = taps_at_ + aligned(sizeof(void*) * s_.taps());
    for (int ky = 0; ky < s_.kernel_height; ++ky)
      for (int kx = 0; kx < s_.kernel_width; ++kx)
        offsets_.push_back((static_cast<ptrdiff_t>(ky) * s_.dilation_height * s_.in_width + kx * s_.dilation_width) *
                           s_.in_channels);
  }
  void run(const Workspace& w, ThreadPool& pool) const override {
    const float* x = w.floats(inputs[0]);
    const Epilogue e = epilogue(w);
    pool.parallel(s_.out_height, [&](int oy, int thread) {
      uint8_t* scratch = w.threads + thread_bytes * thread;
      const float** taps = reinterpret_cast<const float**>(scratch + taps_at_);
      if (largest_)
        largest(x, e, oy, reinterpret_cast<float*>(scratch), taps);
      else
        average(x, e, oy, reinterpret_cast<float*>(scratch), taps);
    });
  }
  std::string kernel() const override { return std::string("pool_") + isa_.name; }

 private:
  static constexpr int kPoolTile = 16;  // pixels of a row whose epilogue is one call
  static constexpr int kRun = 2048;     // floats of a row that are made at once, so that they stay in the first cache

  // A row of outputs: the largest of each column of taps first, in long runs, and of these the largest of each row.
  void largest(const float* x, Epilogue e, int oy, float* read, const float** taps) const {
    float* made = read + read_floats_;
    const int channels = s_.in_channels, wide = (s_.kernel_width - 1) * s_.dilation_width;
    e.acc_stride = channels;
    for (int begin = 0; begin < s_.out_width; begin += columns_) {
      const int end = std::min(s_.out_width, begin + columns_);
      const int left = std::max(0, begin * s_.stride_width - s_.pad_left);
      const int right = std::min(s_.in_width, (end - 1) * s_.stride_width - s_.pad_left + wide + 1);
      int n = 0;
      for (int ky = 0; ky < s_.kernel_height; ++ky) {
        const int iy = oy * s_.stride_height - s_.pad_top + ky * s_.dilation_height;
        if (iy >= 0 && iy < s_.in_height) taps[n++] = x + (static_cast<size_t>(iy) * s_.in_width + left) * channels;
      }
      isa_.pool(taps, n, (right - left) * channels, true, 1.0f, read);
      // From left to right: what a call writes behind its outputs is written anew by the next one.
      for (int ox = begin; ox < end;) {
        const int first = ox * s_.stride_width - s_.pad_left;
        int count = 1;  // outputs whose taps lie side by side
        if (s_.stride_width == 1 && first >= 0) count = std::max(1, std::min(end - ox, s_.in_width - wide - first));
        n = 0;
        for (int kx = 0; kx < s_.kernel_width; ++kx) {
          const int ix = first + kx * s_.dilation_width;
          if (ix >= 0 && ix < s_.in_width) taps[n++] = read + static_cast<size_t>(ix - left) * channels;
        }
        isa_.pool(taps, n, count * channels, true, 1.0f, made + static_cast<size_t>(ox - begin) * channels);
        ox += count;
      }
      for (int c = 0; c < channels; c += kBlock)
        isa_.epilogue(e, made + c, oy * s_.out_width + begin, end - begin, c, std::min(kBlock, channels - c));
    }
  }

  void average(const float* x, const Epilogue& e, int oy, float* acc, const float** taps) const {
    for (int c = 0; c < s_.in_channels; c += kBlock) {
      const int channels = std::min(kBlock, s_.in_channels - c);
      for (int begin = 0; begin < s_.out_width; begin += kPoolTile) {
        const int count = std::min(kPoolTile, s_.out_width - begin);
        for (int i = 0; i < count; ++i) {
          int counted = 0;
          const int n = window(x + c, oy, begin + i, taps, counted);
          isa_.pool(taps, n, channels, false, 1.0f / static_cast<float>(counted), acc + i * kBlock);
        }
        isa_.epilogue(e, acc, oy * s_.out_width + begin, count, c, channels);
      }
    }
  }

  // The inputs of an output pixel; `counted`: what their average divides by.
  int window(const float* x, int oy, int ox, const float** taps, int& counted) const {
    const int top = oy * s_.stride_height - s_.pad_top, left = ox * s_.stride_width - s_.pad_left;
    if (top >= 0 && top + (s_.kernel_height - 1) * s_.dilation_height < s_.in_height && left >= 0 &&
        left + (s_.kernel_width - 1) * s_.dilation_width < s_.in_width) {
      const float* corner = x + (static_cast<size_t>(top) * s_.in_width + left) * s_.in_channels;
      for (size_t t = 0; t < offsets_.size(); ++t) taps[t] = corner + offsets_[t];
      return counted = s_.taps();
    }
    int n = 0;
    for (int ky = 0; ky < s_.kernel_height; ++ky) {
      const int iy = top + ky * s_.dilation_height;
      const bool row = iy >= 0 && iy < s_.in_height;
      for (int kx = 0; kx < s_.kernel_width; ++kx) {
        const int ix = left + kx * s_.dilation_width;
        const bool inside = row && ix >= 0 && ix < s_.in_width;
        if (inside) taps[n++] = x + (static_cast<size_t>(iy) * s_.in_width + ix) * s_.in_channels;
        counted += inside || (count_pads_ && iy < s_.in_height + pad_bottom_ && ix < s_.in_width + pad_right_);
      }
    }
    return n;
  }

  ConvShape s_;
  const Isa& isa_;
  std::vector<ptrdiff_t> offsets_;  // of the taps of a window that lies inside
  bool largest_, count_pads_;
  int pad_bottom_, pad_right_;
  int columns_;  // of outputs that are made at once
  size_t read_floats_, taps_at_;
};

// Element-wise layers that nothing in front of them could take up: the epilogue alone.
class EpilogueStep : public Step {
 public:
  EpilogueStep(const Tensor& tensor, const Isa& isa)
      : pixels_(tensor.height * tensor.width), channels_(tensor.channels), isa_(isa) {}
  void run(const Workspace& w, ThreadPool& pool) const override {
    const float* x = w.floats(inputs[0]);
    Epilogue e = epilogue(w);
    e.acc_stride = channels_;
    pool.parallel((pixels_ + kTile - 1) / kTile, [&](int item, int) {
      const int begin = item * kTile, count = std::min(kTile, pixels_ - begin);
      for (int c = 0; c < channels_; c += kBlock)
        isa_.epilogue(e, x + static_cast<size_t>(begin) * channels_ + c, begin, count, c,
                      std::min(kBlock, channels_ - c));
    });
  }
  std::string kernel() const override { return std::string("elementwise_") + isa_.name; }

 private:
  int pixels_, channels_;
  const Isa& isa_;
};

}  // namespace

Epilogue Step::parameters(const Fused& fused, int channels) {
  Epilogue e;
  const auto data = [](const AlignedVector<float>& v) { return v.empty() ? nullptr : v.data(); };
  e.scale = data(fused.scale);
  e.bias = data(fused.bias);
  e.rectify = fused.rectify;
  e.low = fused.low, e.high = fused.high;
  e.shift_in = data(fused.shift_in);
  e.slope = data(fused.slope);
  e.shift_out = data(fused.shift_out);
  e.output_stride = channels;
  return e;
}

Epilogue Step::epilogue(const Workspace& w) const {
  Epilogue e = parameters(fused, output_channels);
  e.residual = fused.residual < 0 ? nullptr : w.floats(fused.residual);
  e.residual_channels = fused.residual_channels;
  e.output = fused.store ? w.floats(output) + fused.first_channel : nullptr;
  e.output_stride = output_stride;
  for (const Fused::Sign& s : fused.signs)
    e.signs[e.sign_outputs++] = {s.thresholds.data(), w.words(s.tensor) + fused.first_channel / 32,
                                 (output_stride + 31) / 32};
  return e;
}

bool has_epilogue(Op op) {
  switch (op) {
    case Op::kConv:
    case Op::kBinaryConv:
    case Op::kMaxPool:
    case Op::kAveragePool:
    case Op::kBinarize:
    case Op::kScale:
    case Op::kShift:
    case Op::kRelu:
    case Op::kPrelu:
    case Op::kClip:
    case Op::kAdd:
      return true;
    default:
      return false;
  }
}

std::unique_ptr<Step> make_step(const Layer& layer, const Graph& graph, BinaryKernel kernel, const Isa& isa,
                                bool from_image) {
  std::unique_ptr<Step> step;
  switch (layer.op) {
    case Op::kBinaryConv:
      step = std::make_unique<BinaryConvStep>(layer, kernel, isa);
      break;
    case Op::kConv:
      step = make_conv_step(layer, isa, from_image);
      break;
    case Op::kMaxPool:
    case Op::kAveragePool:
      step = std::make_unique<PoolStep>(layer, isa);
      break;
    case Op::kBinarize:
    case Op::kScale:
    case Op::kShift:
    case Op::kRelu:
    case Op::kPrelu:
    case Op::kClip:
    case Op::kAdd:
      step = std::make_unique<EpilogueStep>(graph.tensors[layer.output], isa);
      break;
    default:
      step = make_map_step(layer, graph);
      break;
  }
  step->name = layer.name;
  step->inputs = layer.inputs;
  step->output = layer.output;
  step->output_channels = step->output_stride = graph.tensors[layer.output].channels;
  return step;
}

AlignedVector<float> padded(const std::vector<float>& values) {
  AlignedVector<float> v(values.begin(), values.end());
  v.resize(v.size() + kBlock, 0.0f);
  return v;
}

}  // namespace nasb

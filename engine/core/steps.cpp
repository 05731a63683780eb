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
      step = make_pool_step(layer, isa);
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

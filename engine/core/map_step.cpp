// Layers that move values or map them one by one. Rare in the networks that the engine is made for.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "steps.h"

namespace nasb {
namespace {

class MapStep : public Step {
 public:
  MapStep(const Layer& layer, const Graph& graph) : layer_(layer), out_(graph.tensors[layer.output]) {
    layer_.weights.clear();
    layer_.bits.clear();
    for (int in : layer.inputs) in_.push_back(graph.tensors[in]);
  }
  void run(const Workspace& w, ThreadPool& pool) const override {
    float* y = w.floats(output);
    const int rows = layer_.op == Op::kFlatten ? 1 : out_.height;
    pool.parallel(rows, [&](int row, int) {
      switch (layer_.op) {
        case Op::kConcat:
          return concat(w, y, row);
        case Op::kCrop:
          return crop(w.floats(inputs[0]), y, row);
        case Op::kPad:
          return pad(w.floats(inputs[0]), y, row);
        case Op::kFlatten:
          return flatten(w.floats(inputs[0]), y);
        case Op::kUnpack:
          return unpack(w.words(inputs[0]), y, row);
        case Op::kMultiply:
        case Op::kAddGate:
          return combine(w.floats(inputs[0]), w.floats(inputs[1]), y, row);
        default:
          return unary(w.floats(inputs[0]), y, row);
      }
    });
  }
  std::string kernel() const override { return "map"; }

 private:
  void concat(const Workspace& w, float* y, int row) const {
    for (int x = 0; x < out_.width; ++x) {
      const size_t pixel = static_cast<size_t>(row) * out_.width + x;
      float* to = y + pixel * out_.channels;
      for (size_t i = 0; i < in_.size(); ++i) {
        const int channels = in_[i].channels;
        std::memcpy(to, w.floats(inputs[i]) + pixel * channels, sizeof(float) * channels);
        to += channels;
      }
    }
  }
  void crop(const float* in, float* y, int row) const {
    const Tensor& t = in_[0];
    for (int x = 0; x < out_.width; ++x) {
      const size_t iy = static_cast<size_t>(layer_.begin[1]) + static_cast<size_t>(row) * layer_.step[1];
      const size_t ix = static_cast<size_t>(layer_.begin[2]) + static_cast<size_t>(x) * layer_.step[2];
      const float* from = in + (iy * t.width + ix) * t.channels + layer_.begin[0];
      float* to = y + (static_cast<size_t>(row) * out_.width + x) * out_.channels;
      for (int c = 0; c < out_.channels; ++c) to[c] = from[static_cast<size_t>(c) * layer_.step[0]];
    }
  }
  void pad(const float* in, float* y, int row) const {
    const Tensor& t = in_[0];
    const auto source = [&](int at, int size) { return layer_.edge ? std::clamp(at, 0, size - 1) : at; };
    const int iy = source(row - layer_.begin[1], t.height);
    for (int x = 0; x < out_.width; ++x) {
      const int ix = source(x - layer_.begin[2], t.width);
      float* to = y + (static_cast<size_t>(row) * out_.width + x) * out_.channels;
      for (int c = 0; c < out_.channels; ++c) {
        const int ic = source(c - layer_.begin[0], t.channels);
        const bool inside = iy >= 0 && iy < t.height && ix >= 0 && ix < t.width && ic >= 0 && ic < t.channels;
        to[c] = inside ? in[(static_cast<size_t>(iy) * t.width + ix) * t.channels + ic] : layer_.low;
      }
    }
  }
  void flatten(const float* in, float* y) const {
    const Tensor& t = in_[0];
    const size_t pixels = static_cast<size_t>(t.height) * t.width,
                 out_pixels = static_cast<size_t>(out_.height) * out_.width;
    size_t channel = 0, pixel = 0;  // of the output
    for (int c = 0; c < t.channels; ++c)
      for (size_t p = 0; p < pixels; ++p) {
        y[pixel * out_.channels + channel] = in[p * t.channels + c];
        if (++pixel == out_pixels) pixel = 0, ++channel;
      }
  }
  void unpack(const uint32_t* in, float* y, int row) const {
    const int words = (out_.channels + 31) / 32;
    for (int x = 0; x < out_.width; ++x) {
      const size_t pixel = static_cast<size_t>(row) * out_.width + x;
      for (int c = 0; c < out_.channels; ++c)
        y[pixel * out_.channels + c] = in[pixel * words + c / 32] >> (c % 32) & 1 ? -1.0f : 1.0f;
    }
  }
  void combine(const float* a, const float* b, float* y, int row) const {
    const bool gate = in_[1].height * in_[1].width == 1;
    const size_t begin = static_cast<size_t>(row) * out_.width * out_.channels;
    for (int x = 0; x < out_.width; ++x)
      for (int c = 0; c < out_.channels; ++c) {
        const size_t at = begin + static_cast<size_t>(x) * out_.channels + c;
        const float other = b[gate ? c : at];
        y[at] = layer_.op == Op::kMultiply ? a[at] * other : a[at] + other;
      }
  }
  static float clamp(float v, float low, float high) { return v < low ? low : v > high ? high : v; }  // NaN stays NaN
  void unary(const float* x, float* y, int row) const {
    const size_t count = static_cast<size_t>(out_.width) * out_.channels, begin = row * count;
    const auto each = [&](auto function) {
      for (size_t i = begin; i < begin + count; ++i) y[i] = function(x[i]);
    };
    switch (layer_.op) {
      case Op::kSigmoid:
        return each([](float v) { return 1.0f / (1.0f + std::exp(-v)); });
      case Op::kHardSigmoid:
        return each([this](float v) { return clamp(layer_.low * v + layer_.high, 0.0f, 1.0f); });
      default:  // hard swish
        return each([](float v) { return v * clamp(v / 6.0f + 0.5f, 0.0f, 1.0f); });
    }
  }

  Layer layer_;
  Tensor out_;
  std::vector<Tensor> in_;
};

}  // namespace

std::unique_ptr<Step> make_map_step(const Layer& layer, const Graph& graph) {
  return std::make_unique<MapStep>(layer, graph);
}

}  // namespace nasb

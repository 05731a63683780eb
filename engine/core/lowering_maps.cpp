// Signs, activations, sums and products, and what cuts, pads and reshapes maps.
#include <algorithm>

#include "lowering.h"

namespace nasb {
namespace {

int& size_of(Tensor& t, int64_t axis) { return axis == 1 ? t.channels : axis == 2 ? t.height : t.width; }

}  // namespace

void Lowering::binarize() {
  const int in = value(0);
  Tensor t = tensor(in);
  t.binary = true;
  std::vector<float> thresholds = per_channel(1, tensor(in));
  add(Op::kBinarize, {in}, t).values = std::move(thresholds);
}

void Lowering::prelu() {
  const int in = value(0);
  std::vector<float> slopes = per_channel(1, tensor(in));
  same_shape(Op::kPrelu, {in}).values = std::move(slopes);
}

void Lowering::clip() {
  const int in = value(0);
  const float low = bound(1, -3.402823466e38f), high = bound(2, 3.402823466e38f);
  Layer& layer = same_shape(Op::kClip, {in});
  layer.low = low, layer.high = high;
}

void Lowering::hard_sigmoid() {
  const float alpha = node_->number("alpha", 0.2f), beta = node_->number("beta", 0.5f);
  Layer& layer = same_shape(Op::kHardSigmoid, {value(0)});
  layer.low = alpha, layer.high = beta;
}

void Lowering::arithmetic(Op with_constant, Op with_tensor, Op with_gate) {
  if (node_->inputs.size() != 2) fail("2 inputs expected");
  if (is_constant(0) || is_constant(1)) {
    const size_t c = is_constant(1) ? 1 : 0;
    const int in = value(1 - c);
    std::vector<float> values = per_channel(c, tensor(in));
    same_shape(with_constant, {in}).values = std::move(values);
    return;
  }
  int a = value(0), b = value(1);
  if (tensor(a).elements() < tensor(b).elements()) std::swap(a, b);
  const Tensor &x = tensor(a), &y = tensor(b);
  const bool same = x.channels == y.channels && x.height == y.height && x.width == y.width && x.rank == y.rank;
  const bool gate = x.channels == y.channels && y.height == 1 && y.width == 1 && x.rank == y.rank;
  if (!same && !gate) fail("its inputs \"" + x.name + "\" and \"" + y.name + "\" differ in shape");
  same_shape(same ? with_tensor : with_gate, {a, b});
}

void Lowering::concat() {
  std::vector<int> inputs;
  for (size_t i = 0; i < node_->inputs.size(); ++i) inputs.push_back(value(i));
  if (inputs.empty()) fail("no inputs");
  Tensor t = tensor(inputs[0]);
  const int64_t axis = node_->integer("axis", 0);
  if (axis != 1 && axis != 1 - t.rank) fail("only axis 1");
  int64_t channels = 0;
  for (int in : inputs) {
    const Tensor& x = tensor(in);
    if (x.height != t.height || x.width != t.width || x.rank != t.rank) fail("its inputs differ in size");
    channels += x.channels;
  }
  if (channels > (1 << 20)) fail("too many channels");
  t.channels = static_cast<int>(channels);
  add(Op::kConcat, inputs, t);
}

int64_t Lowering::axis_of(int64_t axis, const Tensor& t) const {
  if (axis < 0) axis += t.rank;
  if (axis < 1 || axis >= t.rank) fail("axis " + std::to_string(axis) + " is not supported");
  return axis;
}

void Lowering::slice() {
  const int in = value(0);
  Tensor t = tensor(in);
  const std::vector<int64_t> starts = constant(1).integers(), ends = constant(2).integers();
  std::vector<int64_t> axes, steps(starts.size(), 1);
  if (given(3))
    axes = constant(3).integers();
  else
    for (size_t i = 0; i < starts.size(); ++i) axes.push_back(static_cast<int64_t>(i));
  if (given(4)) steps = constant(4).integers();
  if (ends.size() != starts.size() || axes.size() != starts.size() || steps.size() != starts.size())
    fail("starts, ends, axes and steps differ in length");
  int begin[3] = {0, 0, 0}, step[3] = {1, 1, 1};
  bool sliced[3] = {false, false, false};
  for (size_t i = 0; i < starts.size(); ++i) {
    const int64_t axis = axis_of(axes[i], t);
    const int64_t n = size_of(t, axis);
    if (sliced[axis - 1]) fail("an axis is named twice");
    sliced[axis - 1] = true;
    int64_t from = starts[i] < 0 ? starts[i] + n : starts[i], to = ends[i] < 0 ? ends[i] + n : ends[i];
    if (to > n) to = n;
    if (from < 0 || to <= from || steps[i] < 1) fail("an empty or reversed slice");
    const int64_t by = std::min(steps[i], n);  // a longer step leaves the first element, too
    begin[axis - 1] = static_cast<int>(from), step[axis - 1] = static_cast<int>(by);
    size_of(t, axis) = static_cast<int>((to - from + by - 1) / by);
  }
  Layer& layer = add(Op::kCrop, {in}, t);
  for (int i = 0; i < 3; ++i) layer.begin[i] = begin[i], layer.step[i] = step[i];
}

void Lowering::pad() {
  const int in = value(0);
  Tensor t = tensor(in);
  const std::string mode = node_->text("mode", "constant");
  if (mode != "constant" && mode != "edge") fail("mode \"" + mode + "\"; constant and edge are supported");
  const std::vector<int64_t> pads = constant(1).integers();
  std::vector<int64_t> axes;
  if (given(3))
    axes = constant(3).integers();
  else
    for (int64_t i = 0; i < t.rank; ++i) axes.push_back(i);
  if (pads.size() != 2 * axes.size())
    fail("pads has " + std::to_string(pads.size()) + " values for " + std::to_string(axes.size()) + " axes");
  int begin[3] = {0, 0, 0};
  bool padded[3] = {false, false, false};
  for (size_t i = 0; i < axes.size(); ++i) {
    const int64_t before = pads[i], after = pads[i + axes.size()];
    if (before < 0 || after < 0 || before > 65536 || after > 65536) fail("pads must lie in 0 .. 65536");
    if (before == 0 && after == 0) continue;
    const int64_t axis = axis_of(axes[i], t);
    if (padded[axis - 1]) fail("an axis is named twice");
    padded[axis - 1] = true;
    begin[axis - 1] = static_cast<int>(before);
    size_of(t, axis) += static_cast<int>(before + after);
  }
  const float fill = bound(2, 0);
  Layer& layer = add(Op::kPad, {in}, t);
  for (int i = 0; i < 3; ++i) layer.begin[i] = begin[i];
  layer.edge = mode == "edge";
  if (layer.edge && only_signs_.count(in)) only_signs_.insert(layer.output);
  layer.low = fill;
}

void Lowering::reshape_to(const std::vector<int64_t>& dims) {
  const Tensor& x = tensor(computed(0));
  if (x.elements() > (1 << 24)) fail("too many features");
  Tensor t;
  t.rank = static_cast<int>(dims.size()) + 1;
  int* const sizes[] = {&t.channels, &t.height, &t.width};
  for (size_t i = 0; i < dims.size(); ++i) *sizes[i] = dimension(dims[i], node_->outputs[0]);
  const bool same = t.channels == x.channels && t.height == x.height && t.width == x.width;
  // Without pixels beside each other, channels last is the order of the file, in words as in floats.
  if (same || (x.height * x.width == 1 && t.height * t.width == 1)) {
    t.binary = x.binary;
    add(Op::kAlias, {computed(0)}, t);
    return;
  }
  add(Op::kFlatten, {value(0)}, t);
}

void Lowering::flatten() {
  if (node_->integer("axis", 1) != 1) fail("only axis 1");
  reshape_to({tensor(computed(0)).elements()});
}

void Lowering::reshape() {
  const Tensor& x = tensor(computed(0));
  const std::vector<int64_t> to = constant(1).integers(), from = x.dims();
  if (to.size() < 2 || to.size() > 4 || (to[0] != 0 && to[0] != -1) || node_->integer("allowzero", 0) != 0)
    fail("only [batch, features] to [batch, channels, height, width]");
  std::vector<int64_t> dims(to.begin() + 1, to.end());
  int64_t product = 1, open = to[0] == -1;
  for (size_t i = 0; i < dims.size(); ++i) {
    if (dims[i] == 0 && i < from.size()) dims[i] = from[i];
    open += dims[i] == -1;
    if (dims[i] < -1 || dims[i] == 0 || dims[i] > kLargest || product > kLargest || open > 1)
      fail("its shape is not one of " + std::to_string(x.elements()) + " features");
    if (dims[i] > 0) product *= dims[i];
  }
  for (int64_t& dim : dims) {
    if (dim != -1) continue;
    dim = x.elements() / product;
    product *= dim;
  }
  if (product != x.elements()) fail("its shape is not one of " + std::to_string(x.elements()) + " features");
  reshape_to(dims);
}

}  // namespace nasb

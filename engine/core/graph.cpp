#include "graph.h"

#include <algorithm>
#include <map>

#include "error.h"

namespace nasb {
namespace {

constexpr int64_t kOldestOpset = 13,
                  kNewestOpset = 25;            // of the default domain: operators used here mean the same in all
constexpr int64_t kLargest = int64_t{1} << 28;  // elements of a tensor: beyond any image network

class Lowering {
 public:
  Lowering(const onnx::Model& model, const std::vector<std::string>& accumulators)
      : model_(model), accumulators_(accumulators) {}

  Graph run() {
    if (model_.inputs.size() != 1 || model_.outputs.size() != 1)
      throw Error(ErrorCode::kUnsupported, "the model has " + std::to_string(model_.inputs.size()) + " inputs and " +
                                               std::to_string(model_.outputs.size()) +
                                               " outputs; the engine runs models of one each");
    const onnx::Value& image = model_.inputs[0];
    if (image.dims.size() != 4 || image.type != onnx::DataType::kFloat)
      throw Error(ErrorCode::kUnsupported,
                  "input \"" + image.name + "\": float32 [batch, channels, height, width] expected");
    Tensor t;
    t.name = image.name;
    t.channels = dimension(image.dims[1], image.name);
    t.height = dimension(image.dims[2], image.name);
    t.width = dimension(image.dims[3], image.name);
    define(t, image.name);
    for (const onnx::Node& node : model_.nodes) {
      node_ = &node;
      if (node.outputs.size() != 1) fail("has " + std::to_string(node.outputs.size()) + " outputs, 1 expected");
      lower_node();
    }
    const auto found = values_.find(model_.outputs[0].name);
    if (found == values_.end() || found->second == 0)
      throw Error(ErrorCode::kUnsupported, "output \"" + model_.outputs[0].name + "\" is not computed by any node");
    graph_.output = found->second;
    if (graph_.tensors[graph_.output].binary)
      throw Error(ErrorCode::kUnsupported, "output \"" + model_.outputs[0].name + "\" is binary");
    for (const std::string& name : accumulators_)
      if (!values_.count(name + ":accumulators"))
        throw Error(ErrorCode::kArgument, "\"" + name + ":accumulators\": no binary convolution has that name");
    return std::move(graph_);
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    if (!node_) throw Error(ErrorCode::kUnsupported, "input \"" + model_.inputs[0].name + "\": " + what);
    throw Error(ErrorCode::kUnsupported, "node \"" + node_->name + "\" (" +
                                             (node_->domain.empty() ? "" : node_->domain + ".") + node_->op +
                                             "): " + what);
  }

  int dimension(int64_t value, const std::string& name) const {
    if (value < 1 || value > (1 << 20))
      throw Error(ErrorCode::kUnsupported, "\"" + name + "\": a dimension of " + std::to_string(value) +
                                               "; all but the batch must be fixed and positive");
    return static_cast<int>(value);
  }

  int define(const Tensor& tensor, const std::string& name) {
    if (tensor.channels < 1 || tensor.height < 1 || tensor.width < 1 ||
        int64_t{tensor.channels} * tensor.height > kLargest || tensor.elements() > kLargest)
      fail("its output would have " + std::to_string(tensor.channels) + " x " + std::to_string(tensor.height) + " x " +
           std::to_string(tensor.width) + " elements");
    graph_.tensors.push_back(tensor);
    graph_.tensors.back().name = name;
    values_[name] = static_cast<int>(graph_.tensors.size()) - 1;
    return values_[name];
  }

  const Tensor& tensor(int id) const { return graph_.tensors[id]; }
  bool given(size_t i) const { return i < node_->inputs.size() && !node_->inputs[i].empty(); }

  bool is_constant(size_t i) const { return given(i) && model_.initializers.count(node_->inputs[i]); }

  const onnx::Tensor& constant(size_t i) const {
    if (!is_constant(i)) fail("input " + std::to_string(i) + " must be an initializer");
    return model_.initializers.at(node_->inputs[i]);
  }

  // A real-valued input; `binary` asks for signs instead.
  int value(size_t i, bool binary = false) const {
    const auto found = given(i) ? values_.find(node_->inputs[i]) : values_.end();
    if (found == values_.end()) fail("input " + std::to_string(i) + " must be computed by a node");
    if (tensor(found->second).binary != binary)
      fail(binary ? "reads real values; signs (nasb.Binarize) expected" : "reads signs; only nasb.BinaryConv2d can");
    return found->second;
  }

  std::vector<int64_t> ints(const char* key, size_t count, int64_t otherwise) const {
    std::vector<int64_t> v = node_->integers(key, std::vector<int64_t>(count, otherwise));
    if (v.size() != count)
      fail(std::string("attribute ") + key + " has " + std::to_string(v.size()) + " values, " + std::to_string(count) +
           " expected");
    for (int64_t x : v)
      if (x < 0 || x > 65536) fail(std::string("attribute ") + key + " holds " + std::to_string(x));
    return v;
  }

  // One value for each channel, from [C, 1, 1], [1, C, 1, 1], [C] of a flat tensor, or a single value.
  std::vector<float> per_channel(size_t i, const Tensor& of) const {
    const onnx::Tensor& t = constant(i);
    std::vector<float> v = t.floats();
    if (v.size() == 1) return std::vector<float>(of.channels, v[0]);
    std::vector<int64_t> dims = t.dims,
                         wanted = of.flat ? std::vector<int64_t>{of.channels} : std::vector<int64_t>{of.channels, 1, 1};
    while (dims.size() > wanted.size() && dims[0] == 1) dims.erase(dims.begin());
    if (dims != wanted)
      fail("input " + std::to_string(i) + " does not hold one value for each of " + std::to_string(of.channels) +
           " channels");
    return v;
  }

  Layer& add(Op op, std::vector<int> inputs, Tensor output) {
    Layer layer;
    layer.op = op;
    layer.name = node_->name.empty() ? node_->outputs[0] : node_->name;
    layer.inputs = std::move(inputs);
    layer.output = define(output, node_->outputs[0]);
    graph_.layers.push_back(std::move(layer));
    return graph_.layers.back();
  }

  Layer& same_shape(Op op, std::vector<int> inputs) {
    Tensor t = tensor(inputs[0]);
    return add(op, std::move(inputs), t);
  }

  // Kernel, stride, dilation, pads of a convolution or pooling, and the output's size.
  ConvShape window(const Tensor& in, int64_t kernel_height, int64_t kernel_width, bool ceil_mode) const {
    if (node_->text("auto_pad", "NOTSET") != "NOTSET") fail("auto_pad is not supported; give pads");
    if (in.flat) fail("reads [batch, features]; [batch, channels, height, width] expected");
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

  // With its border the input of a convolution must be addressable by 32-bit offsets.
  void refuse_large_input(const ConvShape& s) const {
    const int64_t height =
        int64_t{s.out_height - 1} * s.stride_height + int64_t{s.kernel_height - 1} * s.dilation_height + 1;
    const int64_t width =
        int64_t{s.out_width - 1} * s.stride_width + int64_t{s.kernel_width - 1} * s.dilation_width + 1;
    if (height > kLargest || width > kLargest || height * width > kLargest || height * width * s.in_channels > kLargest)
      fail("its input with its border would have " + std::to_string(height) + " x " + std::to_string(width) +
           " pixels");
  }

  static Tensor output_of(const ConvShape& s) {
    Tensor t;
    t.channels = s.out_channels, t.height = s.out_height, t.width = s.out_width;
    return t;
  }

  int group(const Tensor& in, int64_t outputs) const {
    const int64_t g = node_->integer("group", 1);
    if (g < 1 || in.channels % g || outputs < 1 || outputs % g || outputs > 65536)
      fail("group " + std::to_string(g) + " does not divide " + std::to_string(in.channels) + " input and " +
           std::to_string(outputs) + " output channels");
    return static_cast<int>(g);
  }

  void lower_node() {
    const std::string& op = node_->op;
    if (node_->domain == "nasb") {
      if (op == "Binarize") return binarize();
      if (op == "BinaryConv2d") return binary_conv();
    } else if (node_->domain.empty() || node_->domain == "ai.onnx") {
      if (op == "Conv") return conv();
      if (op == "Gemm") return gemm();
      if (op == "MaxPool" || op == "AveragePool") return pool();
      if (op == "GlobalAveragePool") return global_pool();
      if (op == "Relu") return void(same_shape(Op::kRelu, {value(0)}));
      if (op == "Sigmoid") return void(same_shape(Op::kSigmoid, {value(0)}));
      if (op == "HardSwish") return void(same_shape(Op::kHardSwish, {value(0)}));
      if (op == "PRelu") return prelu();
      if (op == "Clip") return clip();
      if (op == "HardSigmoid") return hard_sigmoid();
      if (op == "Add") return arithmetic(Op::kShift, Op::kAdd, Op::kAddGate);
      if (op == "Mul") return arithmetic(Op::kScale, Op::kMultiply, Op::kMultiply);
      if (op == "Concat") return concat();
      if (op == "Slice") return slice();
      if (op == "Pad") return pad();
      if (op == "Flatten") return flatten();
      if (op == "Reshape") return reshape();
    }
    fail("the engine does not know this operator");
  }

  void binarize() {
    const int in = value(0);
    Tensor t = tensor(in);
    t.binary = true;
    std::vector<float> thresholds = per_channel(1, tensor(in));
    add(Op::kBinarize, {in}, t).values = std::move(thresholds);
  }

  void binary_conv() {
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
      fail("input 1 has " + std::to_string(w.dims[3]) + " bytes a tap; " + std::to_string(channels) +
           " channels need " + std::to_string((channels + 7) / 8));
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

  void conv() {
    const int in = value(0);
    const onnx::Tensor& w = constant(1);
    if (w.dims.size() != 4) fail("only 2-dimensional convolutions");
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

  void gemm() {
    const int in = value(0);
    const onnx::Tensor& w = constant(1);
    if (!tensor(in).flat) fail("input 0: [batch, features] expected");
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
    t.flat = true;
    Layer& layer = add(Op::kConv, {in}, t);
    layer.shape = s;
    layer.weights = std::move(weights);
    layer.bias = std::move(bias);
  }

  void pool() {
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

  // Each window of pooling must hold a pixel of the image.
  void refuse_empty_windows(int64_t out, int64_t stride, int64_t pad, int64_t kernel, int64_t dilation,
                            int64_t size) const {
    for (int64_t o = 0; o < out; ++o) {
      const int64_t start = o * stride - pad, skipped = start < 0 ? (-start + dilation - 1) / dilation : 0;
      if (skipped >= kernel || start + skipped * dilation >= size) fail("a window lies outside of the image");
    }
  }

  void global_pool() {
    const int in = value(0);
    if (tensor(in).flat) fail("reads [batch, features]");
    ConvShape s{};
    s.in_channels = s.out_channels = tensor(in).channels;
    s.kernel_height = s.in_height = tensor(in).height, s.kernel_width = s.in_width = tensor(in).width;
    s.out_height = s.out_width = 1;
    add(Op::kAveragePool, {in}, output_of(s)).shape = s;
  }

  void prelu() {
    const int in = value(0);
    std::vector<float> slopes = per_channel(1, tensor(in));
    same_shape(Op::kPrelu, {in}).values = std::move(slopes);
  }

  float bound(size_t i, float otherwise) const {
    if (!given(i)) return otherwise;
    const std::vector<float> v = constant(i).floats();
    if (v.size() != 1) fail("input " + std::to_string(i) + " must be one value");
    return v[0];
  }

  void clip() {
    const int in = value(0);
    const float low = bound(1, -3.402823466e38f), high = bound(2, 3.402823466e38f);
    Layer& layer = same_shape(Op::kClip, {in});
    layer.low = low, layer.high = high;
  }

  void hard_sigmoid() {
    const float alpha = node_->number("alpha", 0.2f), beta = node_->number("beta", 0.5f);
    Layer& layer = same_shape(Op::kHardSigmoid, {value(0)});
    layer.low = alpha, layer.high = beta;
  }

  void arithmetic(Op with_constant, Op with_tensor, Op with_gate) {
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
    const bool same = x.channels == y.channels && x.height == y.height && x.width == y.width && x.flat == y.flat;
    const bool gate = x.channels == y.channels && y.height == 1 && y.width == 1 && x.flat == y.flat;
    if (!same && !gate) fail("its inputs \"" + x.name + "\" and \"" + y.name + "\" differ in shape");
    same_shape(same ? with_tensor : with_gate, {a, b});
  }

  void concat() {
    if (node_->integer("axis", 0) != 1 && node_->integer("axis", 0) != -3) fail("only axis 1");
    std::vector<int> inputs;
    for (size_t i = 0; i < node_->inputs.size(); ++i) inputs.push_back(value(i));
    if (inputs.empty()) fail("no inputs");
    Tensor t = tensor(inputs[0]);
    int64_t channels = 0;
    for (int in : inputs) {
      const Tensor& x = tensor(in);
      if (x.height != t.height || x.width != t.width || x.flat != t.flat) fail("its inputs differ in size");
      channels += x.channels;
    }
    if (channels > (1 << 20)) fail("too many channels");
    t.channels = static_cast<int>(channels);
    add(Op::kConcat, inputs, t);
  }

  static int& size_of(Tensor& t, int64_t axis) { return axis == 1 ? t.channels : axis == 2 ? t.height : t.width; }

  int64_t axis_of(int64_t axis, const Tensor& t) const {
    const int64_t rank = t.flat ? 2 : 4;
    if (axis < 0) axis += rank;
    if (axis < 1 || axis >= rank) fail("axis " + std::to_string(axis) + " is not supported");
    return axis;
  }

  void slice() {
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
    for (size_t i = 0; i < starts.size(); ++i) {
      const int64_t axis = axis_of(axes[i], t);
      const int64_t n = size_of(t, axis);
      if (step[axis - 1] != 1 || begin[axis - 1] != 0) fail("an axis is named twice");
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

  void pad() {
    const int in = value(0);
    Tensor t = tensor(in);
    const std::string mode = node_->text("mode", "constant");
    if (mode != "constant" && mode != "edge") fail("mode \"" + mode + "\"; constant and edge are supported");
    const std::vector<int64_t> pads = constant(1).integers();
    std::vector<int64_t> axes;
    if (given(3))
      axes = constant(3).integers();
    else
      for (int64_t i = 0; i < (t.flat ? 2 : 4); ++i) axes.push_back(i);
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
    layer.low = fill;
  }

  void make_flat(int in) {
    const Tensor& x = tensor(in);
    if (x.elements() > (1 << 24)) fail("too many features");
    Tensor t;
    t.channels = static_cast<int>(x.elements());
    t.flat = true;
    add(x.height * x.width == 1 ? Op::kAlias : Op::kFlatten, {in}, t);
  }

  void flatten() {
    if (node_->integer("axis", 1) != 1) fail("only axis 1");
    make_flat(value(0));
  }

  void reshape() {
    const int in = value(0);
    const std::vector<int64_t> to = constant(1).integers();
    const int64_t features = tensor(in).elements();
    const bool batch = !to.empty() && (to[0] == 0 || to[0] == -1);
    if (batch && to.size() == 2 && (to[1] == features || (to[1] == -1 && to[0] == 0))) return make_flat(in);
    if (batch && to.size() == 4 && tensor(in).height * tensor(in).width == 1 && to[2] == 1 && to[3] == 1 &&
        (to[1] == features || (to[1] == -1 && to[0] == 0))) {
      Tensor t = tensor(in);
      t.flat = false;
      add(Op::kAlias, {in}, t);
      return;
    }
    fail("only [batch, features] and [batch, features, 1, 1]");
  }

  const onnx::Model& model_;
  const std::vector<std::string>& accumulators_;
  const onnx::Node* node_ = nullptr;
  Graph graph_;
  std::map<std::string, int> values_;
};

}  // namespace

Graph lower(const onnx::Model& model, const std::vector<std::string>& accumulators) {
  for (const auto& [domain, version] : model.opsets) {
    if ((domain.empty() || domain == "ai.onnx") && (version < kOldestOpset || version > kNewestOpset))
      throw Error(ErrorCode::kUnsupported, "opset " + std::to_string(version) + "; this engine reads " +
                                               std::to_string(kOldestOpset) + " to " + std::to_string(kNewestOpset));
    if (domain == "nasb" && version != 1)
      throw Error(ErrorCode::kUnsupported,
                  "operators of nasb version " + std::to_string(version) + "; this engine knows 1");
  }
  const auto layout = model.metadata.find("nasb.layout_version");
  if (layout != model.metadata.end() && layout->second != "1")
    throw Error(ErrorCode::kUnsupported, "layout version " + layout->second + "; this engine reads 1");
  return Lowering(model, accumulators).run();
}

}  // namespace nasb

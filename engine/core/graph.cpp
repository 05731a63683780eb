#include "graph.h"

#include <algorithm>

#include "error.h"
#include "lowering.h"

namespace nasb {
namespace {

constexpr int64_t kOldestOpset = 13,
                  kNewestOpset = 25;  // of the default domain: operators used here mean the same in all

// What a layer's constants take in memory: packed weights are larger than in the file (a word for 32 bits, rows of
// channels filled up), and binary convolutions have tables: of the output's pixels; of the input's columns and, where
// rows are odd, of those between two rows (look-up); of corrections of each kind of border (words).
double constant_bytes(const Layer& l) {
  const ConvShape& s = l.shape;
  double bytes = 4.0 * (l.weights.size() + l.values.size()) + l.bits.size();
  const double rows = double(s.groups) * ((s.group_outputs() + kBlock - 1) / kBlock * kBlock) * s.taps();
  if (l.op == Op::kConv) bytes += rows * s.group_inputs() * 4;
  if (l.op == Op::kBinaryConv) {
    const double reach = (s.kernel_width - 1.0) * s.dilation_width + 1;
    const double kinds = std::min(1.0 * s.pixels(), (2.0 * s.kernel_height + 2) * (2.0 * s.kernel_width + 2));
    bytes += rows * ((s.group_inputs() + 31) / 32) * 8 + 4.0 * s.pixels();
    bytes += 12 * (1.0 * s.out_width * s.stride_width + 2 * reach) + rows / s.taps() * 4 * kinds;
  }
  return bytes;
}

}  // namespace

Graph Lowering::run() {
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
  const double most = 64.0 * model_.bytes + (256 << 20);
  double bytes = 0;
  for (const onnx::Node& node : model_.nodes) {
    node_ = &node;
    if (node.outputs.size() != 1) fail("has " + std::to_string(node.outputs.size()) + " outputs, 1 expected");
    const size_t before = graph_.layers.size();
    lower_node();
    for (size_t i = before; i < graph_.layers.size(); ++i) bytes += constant_bytes(graph_.layers[i]);
    // Nodes may share an initializer, so that a small file could ask for any amount.
    if (bytes > most)
      fail("the weights so far would take " + std::to_string(static_cast<int64_t>(bytes / 1e6)) +
           " MB in memory, the file has " + std::to_string(model_.bytes / 1000) + " kB");
  }
  const auto found = values_.find(model_.outputs[0].name);
  if (found == values_.end() || found->second == 0)
    throw Error(ErrorCode::kUnsupported, "output \"" + model_.outputs[0].name + "\" is not computed by any node");
  graph_.output = tensor(found->second).binary ? converted(found->second) : found->second;
  for (const std::string& name : accumulators_)
    if (!values_.count(name + ":accumulators"))
      throw Error(ErrorCode::kArgument, "\"" + name + ":accumulators\": no binary convolution has that name");
  return std::move(graph_);
}

void Lowering::lower_node() {
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

void Lowering::fail(const std::string& what) const {
  if (!node_) throw Error(ErrorCode::kUnsupported, "input \"" + model_.inputs[0].name + "\": " + what);
  throw Error(
      ErrorCode::kUnsupported,
      "node \"" + node_->name + "\" (" + (node_->domain.empty() ? "" : node_->domain + ".") + node_->op + "): " + what);
}

int Lowering::dimension(int64_t value, const std::string& name) const {
  if (value < 1 || value > (1 << 20))
    throw Error(ErrorCode::kUnsupported, "\"" + name + "\": a dimension of " + std::to_string(value) +
                                             "; all but the batch must be fixed and positive");
  return static_cast<int>(value);
}

int Lowering::define(const Tensor& tensor, const std::string& name) {
  if (tensor.channels < 1 || tensor.height < 1 || tensor.width < 1 ||
      int64_t{tensor.channels} * tensor.height > kLargest || tensor.elements() > kLargest)
    fail("its output would have " + std::to_string(tensor.channels) + " x " + std::to_string(tensor.height) + " x " +
         std::to_string(tensor.width) + " elements");
  graph_.tensors.push_back(tensor);
  graph_.tensors.back().name = name;
  values_[name] = static_cast<int>(graph_.tensors.size()) - 1;
  return values_[name];
}

const onnx::Tensor& Lowering::constant(size_t i) const {
  if (!is_constant(i)) fail("input " + std::to_string(i) + " must be an initializer");
  return model_.initializers.at(node_->inputs[i]);
}

int Lowering::computed(size_t i) const {
  const auto found = given(i) ? values_.find(node_->inputs[i]) : values_.end();
  if (found == values_.end()) fail("input " + std::to_string(i) + " must be computed by a node");
  return found->second;
}

int Lowering::value(size_t i, bool binary) {
  const int id = computed(i);
  if (tensor(id).binary == binary) return id;
  if (binary && !only_signs_.count(id)) fail("reads real values; signs (nasb.Binarize) expected");
  return converted(id);
}

int Lowering::converted(int id) {
  if (const auto found = converted_.find(id); found != converted_.end()) return found->second;
  Layer layer;
  layer.name = tensor(id).name;
  layer.inputs = {id};
  layer.output = static_cast<int>(graph_.tensors.size());
  graph_.tensors.push_back(tensor(id));
  Tensor& t = graph_.tensors.back();
  t.name.clear();  // the file's value is handed out in its first form
  t.binary = !t.binary;
  layer.op = t.binary ? Op::kBinarize : Op::kUnpack;
  if (t.binary)
    layer.values.assign(t.channels, 0.0f);
  else
    only_signs_.insert(layer.output);
  converted_[id] = layer.output;
  graph_.layers.push_back(layer);
  return converted_[id];
}

std::vector<int64_t> Lowering::ints(const char* key, size_t count, int64_t otherwise) const {
  std::vector<int64_t> v = node_->integers(key, std::vector<int64_t>(count, otherwise));
  if (v.size() != count)
    fail(std::string("attribute ") + key + " has " + std::to_string(v.size()) + " values, " + std::to_string(count) +
         " expected");
  for (int64_t x : v)
    if (x < 0 || x > 65536) fail(std::string("attribute ") + key + " holds " + std::to_string(x));
  return v;
}

std::vector<float> Lowering::per_channel(size_t i, const Tensor& of) const {
  const onnx::Tensor& t = constant(i);
  std::vector<float> v = t.floats();
  if (t.dims.size() > static_cast<size_t>(of.rank))
    fail("input " + std::to_string(i) + " has " + std::to_string(t.dims.size()) + " axes, its other one has " +
         std::to_string(of.rank));
  if (v.size() == 1) return std::vector<float>(of.channels, v[0]);
  std::vector<int64_t> dims = t.dims, wanted(of.rank - 1, 1);
  wanted[0] = of.channels;
  while (dims.size() > wanted.size() && dims[0] == 1) dims.erase(dims.begin());
  if (dims != wanted)
    fail("input " + std::to_string(i) + " does not hold one value for each of " + std::to_string(of.channels) +
         " channels");
  return v;
}

float Lowering::bound(size_t i, float otherwise) const {
  if (!given(i)) return otherwise;
  const std::vector<float> v = constant(i).floats();
  if (v.size() != 1) fail("input " + std::to_string(i) + " must be one value");
  return v[0];
}

Layer& Lowering::add(Op op, std::vector<int> inputs, Tensor output) {
  const bool moves =
      op == Op::kMaxPool || op == Op::kConcat || op == Op::kCrop || op == Op::kFlatten || op == Op::kAlias;
  const bool only_signs =
      moves && std::all_of(inputs.begin(), inputs.end(), [&](int in) { return only_signs_.count(in) > 0; });
  Layer layer;
  layer.op = op;
  layer.name = node_->name.empty() ? node_->outputs[0] : node_->name;
  layer.inputs = std::move(inputs);
  layer.output = define(output, node_->outputs[0]);
  if (only_signs) only_signs_.insert(layer.output);
  graph_.layers.push_back(std::move(layer));
  return graph_.layers.back();
}

Layer& Lowering::same_shape(Op op, std::vector<int> inputs) {
  Tensor t = tensor(inputs[0]);
  return add(op, std::move(inputs), t);
}

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

// After onnx.proto (field numbers stand beside their names). Memory: a node or an attribute is larger here than its
// shortest form in the file, by a factor that the rules below bound: each has a name or an output of its own, and ranks
// are limited.
#include "core/onnx_reader.h"

#include <set>
#include <string_view>
#include <utility>

#include "core/error.h"
#include "core/onnx_tensor.h"

namespace nasb::onnx {
namespace {

using protobuf::Field;
using protobuf::Message;
using protobuf::quoted;
using protobuf::Wire;

constexpr size_t kMaxFile = 0x7FFFFFFF;  // protobuf's own limit

enum AttributeType { kTypeFloat = 1, kTypeInt = 2, kTypeString = 3, kTypeTensor = 4, kTypeFloats = 6, kTypeInts = 7 };

Attribute read_attribute(Message message, size_t at) {
  Attribute attribute;
  bool has_tensor = false, has_graph = false, has_other = false;
  int32_t found = 0;  // the type by the field that is there, for files without a type
  Field field;
  while (message.next(&field)) {
    switch (field.number) {
      case 1:  // name
        attribute.name = message.text(field);
        break;
      case 2:  // f
        attribute.f = message.number(field);
        found = kTypeFloat;
        break;
      case 3:  // i
        attribute.i = message.integer(field);
        found = kTypeInt;
        break;
      case 4:  // s
        attribute.s = message.bytes(field);
        found = kTypeString;
        break;
      case 5:  // t
        if (has_tensor) message.fail("has a tensor twice", field.at);
        has_tensor = true;
        attribute.tensor = read_tensor(message.message(field, "tensor"), "the tensor of an attribute", field.at);
        found = kTypeTensor;
        break;
      case 6:   // g
      case 11:  // graphs
        has_graph = true;
        break;
      case 7:  // floats
        message.numbers(field, &attribute.floats);
        found = kTypeFloats;
        break;
      case 8:  // ints
        message.integers(field, &attribute.ints);
        found = kTypeInts;
        break;
      case 9:   // strings
      case 10:  // tensors
      case 14:  // tp
      case 15:  // type_protos
      case 22:  // sparse_tensor
      case 23:  // sparse_tensors
        has_other = true;
        break;
      case 20: {  // type
        const int64_t type = message.integer(field);
        if (type < 0 || type > 1000) message.fail("its type is " + std::to_string(type), field.at);
        attribute.type = static_cast<int32_t>(type);
        break;
      }
      case 21:  // ref_attr_name: only functions may refer to an attribute of their caller
        message.fail("refers to an attribute of a function, but stands in the graph", field.at);
      default:
        break;
    }
  }
  if (attribute.name.empty()) damaged("attribute: has no name", at);
  const std::string what = "attribute " + quoted(attribute.name);
  if (has_graph) unsupported(what + ": holds a sub-graph", at);
  if (attribute.type == 0) attribute.type = found;
  const int32_t type = attribute.type;
  const bool known = type == kTypeFloat || type == kTypeInt || type == kTypeString || type == kTypeTensor ||
                     type == kTypeFloats || type == kTypeInts;
  if (has_other || !known) unsupported(what + ": its type " + std::to_string(type) + " is not supported", at);
  if (found != 0 && found != type)
    damaged(what + ": its type is " + std::to_string(type) + ", but its value is of another", at);
  if (type == kTypeTensor && !has_tensor) damaged(what + ": has no tensor", at);
  return attribute;
}

// "ai.onnx" is the long name of the standard domain "".
std::string domain_of(std::string name) { return name == "ai.onnx" ? std::string() : name; }

Node read_node(Message message, size_t at) {
  Node node;
  std::vector<std::pair<Message, size_t>> attributes;
  Field field;
  while (message.next(&field)) {
    switch (field.number) {
      case 1:  // input
        node.inputs.push_back(message.text(field));
        break;
      case 2:  // output
        node.outputs.push_back(message.text(field));
        break;
      case 3:  // name
        node.name = message.text(field);
        break;
      case 4:  // op_type
        node.op = message.text(field);
        break;
      case 5:  // attribute
        attributes.emplace_back(message.message(field, "attribute"), field.at);
        break;
      case 7:  // domain
        node.domain = domain_of(message.text(field));
        break;
      case 8:  // overload
        if (field.wire != Wire::kBytes || field.begin != field.end)
          unsupported("node: names an overload of a function", field.at);
        break;
      default:
        break;
    }
  }
  const std::string what = "node " + quoted(node.name) + " (" + node.op + ")";
  if (node.op.empty()) damaged("node " + quoted(node.name) + ": has no operator", at);
  for (const auto& [part, part_at] : attributes) {
    Attribute attribute;
    try {
      attribute = read_attribute(part, part_at);
    } catch (const Error& error) {  // says where: the attribute alone does not
      throw Error(error.code(), what + ": " + error.what());
    }
    const std::string name = attribute.name;
    if (!node.attributes.emplace(name, std::move(attribute)).second) {
      damaged(what + ": has the attribute " + quoted(name) + " twice", part_at);
    }
  }
  bool any = false;
  for (const std::string& output : node.outputs) any |= !output.empty();
  if (!any) damaged(what + ": has no output", at);
  return node;
}

// ValueInfoProto: name (1), type (2) with tensor_type (1) with elem_type (1) and shape (2) with dim (1) with dim_value
// (1).
void read_shape(Message shape, Value* value) {
  Field dim_field, field;
  while (shape.next(&dim_field)) {
    if (dim_field.number != 1) continue;
    if (value->dims.size() == kMaxRank)
      unsupported("shape: has more than " + std::to_string(kMaxRank) + " dimensions", dim_field.at);
    int64_t size = -1;
    Message dim = shape.message(dim_field, "dimension");
    while (dim.next(&field)) {
      if (field.number != 1) continue;
      size = dim.integer(field);
      if (size < 0) dim.fail("is " + std::to_string(size), field.at);
    }
    value->dims.push_back(size);
  }
}

Value read_value(Message message, const char* kind, size_t at) {
  Value value;
  int64_t type = 0;
  bool has_type = false, has_tensor = false, has_shape = false, other = false;
  Field field, type_field, tensor_field;
  while (message.next(&field)) {
    if (field.number == 1) value.name = message.text(field);
    if (field.number != 2) continue;
    if (has_type) message.fail("has a type twice", field.at);
    has_type = true;
    Message types = message.message(field, "type");
    while (types.next(&type_field)) {
      if (type_field.number == 6) continue;  // denotation
      if (type_field.number != 1) {
        other = true;
        continue;
      }
      if (has_tensor) types.fail("is given twice", type_field.at);
      has_tensor = true;
      Message tensor = types.message(type_field, "tensor type");
      while (tensor.next(&tensor_field)) {
        if (tensor_field.number == 1) type = tensor.integer(tensor_field);
        if (tensor_field.number != 2) continue;
        if (has_shape) tensor.fail("has a shape twice", tensor_field.at);
        has_shape = true;
        read_shape(tensor.message(tensor_field, "shape"), &value);
      }
    }
  }
  if (value.name.empty()) damaged(std::string(kind) + ": has no name", at);
  const std::string what = std::string(kind) + " " + quoted(value.name);
  if (other) unsupported(what + ": is not a tensor", at);
  if (!has_tensor) damaged(what + ": has no type", at);
  value.type = data_type(type, what, at);
  return value;
}

// Where each part stands, kept beside the model for the checks that need the whole graph.
struct Offsets {
  std::vector<size_t> nodes, inputs, outputs;
};

void read_graph(Message message, Model* model, Offsets* offsets) {
  Field field;
  while (message.next(&field)) {
    switch (field.number) {
      case 1:  // node
        model->nodes.push_back(read_node(message.message(field, "node"), field.at));
        offsets->nodes.push_back(field.at);
        break;
      case 5: {  // initializer
        Tensor tensor = read_tensor(message.message(field, "initializer"), "initializer", field.at);
        if (tensor.name.empty()) damaged("initializer: has no name", field.at);
        const std::string name = tensor.name;
        if (!model->initializers.emplace(name, std::move(tensor)).second) {
          damaged("initializer " + quoted(name) + ": is there twice", field.at);
        }
        break;
      }
      case 11:  // input
        model->inputs.push_back(read_value(message.message(field, "input"), "input", field.at));
        offsets->inputs.push_back(field.at);
        break;
      case 12:  // output
        model->outputs.push_back(read_value(message.message(field, "output"), "output", field.at));
        offsets->outputs.push_back(field.at);
        break;
      case 15:  // sparse_initializer
        unsupported("graph: has a sparse initializer", field.at);
      default:  // names, texts, shapes of inner values: not needed
        break;
    }
  }
}

// Every name is defined once, and before it is used. Also takes the initializers out of the inputs, where old files
// list them.
void check_graph(Model* model, const Offsets& offsets) {
  std::vector<Value> inputs;
  std::set<std::string_view> input_names;
  for (size_t i = 0; i < model->inputs.size(); ++i) {
    const Value& input = model->inputs[i];
    if (!input_names.insert(input.name).second)
      damaged("input " + quoted(input.name) + ": is there twice", offsets.inputs[i]);
    if (model->initializers.count(input.name) == 0) inputs.push_back(input);
  }
  std::set<std::string_view> defined;
  for (const Value& input : inputs) defined.insert(input.name);
  for (const auto& entry : model->initializers) defined.insert(entry.first);
  for (size_t i = 0; i < model->nodes.size(); ++i) {
    const Node& node = model->nodes[i];
    const auto fail = [&](const std::string& problem) {
      damaged("node " + quoted(node.name) + " (" + node.op + "): " + problem, offsets.nodes[i]);
    };
    if (model->opsets.count(node.domain) == 0) fail("the file names no opset of the domain " + quoted(node.domain));
    for (const std::string& input : node.inputs) {
      if (!input.empty() && defined.count(input) == 0) fail("its input " + quoted(input) + " is not defined before it");
    }
    for (const std::string& output : node.outputs) {
      if (!output.empty() && !defined.insert(output).second)
        fail("its output " + quoted(output) + " is defined before");
    }
  }
  std::set<std::string_view> output_names;
  for (size_t i = 0; i < model->outputs.size(); ++i) {
    const std::string& name = model->outputs[i].name;
    if (!output_names.insert(name).second) damaged("output " + quoted(name) + ": is there twice", offsets.outputs[i]);
    if (defined.count(name) == 0) damaged("output " + quoted(name) + ": no node computes it", offsets.outputs[i]);
  }
  input_names.clear();  // the names in it end with the old inputs
  defined.clear();
  model->inputs = std::move(inputs);
}

std::pair<std::string, int64_t> read_opset(Message message) {
  std::pair<std::string, int64_t> opset;
  Field field;
  while (message.next(&field)) {
    if (field.number == 1) opset.first = domain_of(message.text(field));
    if (field.number == 2) opset.second = message.integer(field);
  }
  return opset;
}

std::pair<std::string, std::string> read_entry(Message message) {
  std::pair<std::string, std::string> entry;
  Field field;
  while (message.next(&field)) {
    if (field.number == 1) entry.first = message.text(field);
    if (field.number == 2) entry.second = message.long_text(field);
  }
  return entry;
}

std::string read_function_name(Message message) {
  std::string name, domain;
  Field field;
  while (message.next(&field)) {
    if (field.number == 1) name = message.text(field);
    if (field.number == 10) domain = message.text(field);
  }
  return domain + "." + name;
}

const Attribute* find(const Node& node, const std::string& key, int32_t type, const char* type_text) {
  const auto found = node.attributes.find(key);
  if (found == node.attributes.end()) return nullptr;
  if (found->second.type != type) {
    throw Error(ErrorCode::kFile,
                "node " + quoted(node.name) + " (" + node.op + "): attribute " + quoted(key) + " is not " + type_text);
  }
  return &found->second;
}

}  // namespace

int64_t Node::integer(const std::string& key, int64_t otherwise) const {
  const Attribute* attribute = find(*this, key, kTypeInt, "an integer");
  return attribute == nullptr ? otherwise : attribute->i;
}

float Node::number(const std::string& key, float otherwise) const {
  const Attribute* attribute = find(*this, key, kTypeFloat, "a float");
  return attribute == nullptr ? otherwise : attribute->f;
}

std::string Node::text(const std::string& key, const std::string& otherwise) const {
  const Attribute* attribute = find(*this, key, kTypeString, "a string");
  return attribute == nullptr ? otherwise : attribute->s;
}

std::vector<int64_t> Node::integers(const std::string& key, std::vector<int64_t> otherwise) const {
  const Attribute* attribute = find(*this, key, kTypeInts, "a list of integers");
  return attribute == nullptr ? std::move(otherwise) : attribute->ints;
}

Model read(const uint8_t* data, size_t size) {
  if (size == 0) throw Error(ErrorCode::kFile, "the file is empty");
  if (size > kMaxFile) throw Error(ErrorCode::kFile, "the file is larger than the 2 GB that ONNX allows");
  Model model;
  model.bytes = size;
  Offsets offsets;
  bool has_graph = false;
  Message message(data, 0, size, "not an ONNX file, or damaged");
  Field field;
  while (message.next(&field)) {
    switch (field.number) {
      case 1:  // ir_version
        model.ir_version = message.integer(field);
        break;
      case 7:  // graph
        if (has_graph) message.fail("has two graphs", field.at);
        has_graph = true;
        read_graph(message.message(field, "graph"), &model, &offsets);
        break;
      case 8: {  // opset_import
        const auto opset = read_opset(message.message(field, "opset"));
        if (!model.opsets.insert(opset).second) damaged("opset " + quoted(opset.first) + ": is there twice", field.at);
        break;
      }
      case 14: {  // metadata_props
        auto entry = read_entry(message.message(field, "metadata"));
        const std::string key = entry.first;
        if (!model.metadata.insert(std::move(entry)).second)
          damaged("metadata " + quoted(key) + ": is there twice", field.at);
        break;
      }
      case 25:  // functions
        model.functions.push_back(read_function_name(message.message(field, "function")));
        break;
      default:
        break;
    }
  }
  if (!has_graph) throw Error(ErrorCode::kFile, "not an ONNX file: it holds no graph");
  if (model.ir_version < 1) throw Error(ErrorCode::kFile, "not an ONNX file, or damaged: it has no ir_version");
  if (model.opsets.empty()) throw Error(ErrorCode::kFile, "not an ONNX file, or damaged: it names no opset");
  check_graph(&model, offsets);
  return model;
}

}  // namespace nasb::onnx

// Reads the ONNX file (protobuf's wire format) into plain structures, bounds-checked: no input makes it read outside of
// the buffer, recurse or allocate without a bound that follows from the size of the file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace nasb::onnx {

// TensorProto.DataType, the values that the engine knows.
enum class DataType : int32_t { kFloat = 1, kUint8 = 2, kInt64 = 7 };

struct Tensor {
  std::string name;
  DataType type = DataType::kFloat;
  std::vector<int64_t> dims;   // each >= 0
  std::vector<uint8_t> bytes;  // little endian; size == product of dims * size of the type (checked)

  int64_t elements() const;
  std::vector<float> floats() const;  // raises Error if the type is another
  std::vector<int64_t> integers() const;
};

struct Attribute {
  std::string name;
  int64_t i = 0;
  float f = 0;
  std::string s;
  std::vector<int64_t> ints;
  std::vector<float> floats;
  Tensor tensor;
  int32_t type = 0;  // AttributeProto.AttributeType
};

struct Node {
  std::string name;    // the module's qualified name
  std::string domain;  // "" or "nasb"
  std::string op;
  std::vector<std::string> inputs;  // "" where an optional input is left out
  std::vector<std::string> outputs;
  std::map<std::string, Attribute> attributes;

  int64_t integer(const std::string& key, int64_t otherwise) const;
  float number(const std::string& key, float otherwise) const;
  std::string text(const std::string& key, const std::string& otherwise) const;
  std::vector<int64_t> integers(const std::string& key, std::vector<int64_t> otherwise) const;
};

struct Value {
  std::string name;
  DataType type = DataType::kFloat;
  std::vector<int64_t> dims;  // -1 where symbolic or missing
};

struct Model {
  size_t bytes = 0;  // of the file
  int64_t ir_version = 0;
  std::map<std::string, int64_t> opsets;  // domain -> version
  std::vector<Node> nodes;                // in the file's order, which ONNX demands to be topological (checked)
  std::map<std::string, Tensor> initializers;
  std::vector<Value> inputs;  // without those that are initializers
  std::vector<Value> outputs;
  std::map<std::string, std::string> metadata;
  std::vector<std::string> functions;  // "domain.name" of the model-local functions; their bodies are not read
};

// Raises Error (kFile: damaged or not ONNX, with the byte offset and the field; kUnsupported: valid ONNX that the
// engine does not know: external data, sparse tensors, sub-graphs, other data types).
Model read(const uint8_t* data, size_t size);

}  // namespace nasb::onnx

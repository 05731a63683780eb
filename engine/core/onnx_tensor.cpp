// TensorProto of onnx.proto (field numbers stand beside their names).
#include "core/onnx_tensor.h"

#include <cstring>
#include <limits>
#include <vector>

#include "core/error.h"

namespace nasb::onnx {
namespace {

using protobuf::Field;
using protobuf::Message;
using protobuf::quoted;
using protobuf::Wire;

std::string place(size_t at) { return " (byte " + std::to_string(at) + ")"; }

size_t size_of(DataType type) {
  switch (type) {
    case DataType::kFloat:
      return 4;
    case DataType::kUint8:
      return 1;
    case DataType::kInt64:
      return 8;
  }
  return 1;
}

const char* name_of(DataType type) {
  switch (type) {
    case DataType::kFloat:
      return "float32";
    case DataType::kUint8:
      return "uint8";
    case DataType::kInt64:
      return "int64";
  }
  return "unknown";
}

// TensorProto.DataType as text, for refusals.
std::string type_name(int64_t type) {
  static const char* const kNames[] = {"undefined", "float32", "uint8",     "int8",       "uint16",  "int16",
                                       "int32",     "int64",   "string",    "bool",       "float16", "float64",
                                       "uint32",    "uint64",  "complex64", "complex128", "bfloat16"};
  constexpr int64_t kCount = sizeof kNames / sizeof *kNames;
  return type >= 0 && type < kCount ? kNames[type] : "number " + std::to_string(type);
}

// The bytes that a tensor of these dims has. Refuses negative dims and products that leave 63 bits, whether or not one
// of them is 0.
uint64_t checked_size(const std::vector<int64_t>& dims, DataType type, const std::string& what, size_t at) {
  constexpr uint64_t kMost = std::numeric_limits<int64_t>::max();
  uint64_t product = size_of(type);
  bool empty = false;
  for (const int64_t dim : dims) {
    if (dim < 0) damaged(what + ": a dimension is " + std::to_string(dim), at);
    empty |= dim == 0;
    const uint64_t factor = dim == 0 ? 1 : static_cast<uint64_t>(dim);
    if (product > kMost / factor) damaged(what + ": its dimensions are too large", at);
    product *= factor;
  }
  return empty ? 0 : product;
}

}  // namespace

void damaged(const std::string& text, size_t at) { throw Error(ErrorCode::kFile, text + place(at)); }

void unsupported(const std::string& text, size_t at) { throw Error(ErrorCode::kUnsupported, text + place(at)); }

DataType data_type(int64_t type, const std::string& what, size_t at) {
  if (type == 0) damaged(what + ": has no data type", at);
  if (type != 1 && type != 2 && type != 7) {
    unsupported(what + ": its data type is " + type_name(type) + "; the engine knows float32, uint8 and int64", at);
  }
  return static_cast<DataType>(type);
}

Tensor read_tensor(Message message, const char* kind, size_t at) {
  Tensor tensor;
  int64_t type = 0;
  bool has_raw = false, has_external = false, has_string = false, has_other = false, has_segment = false;
  size_t data_at = at;
  std::vector<float> floats;
  std::vector<int64_t> integers, small_integers;
  Field field;
  while (message.next(&field)) {
    switch (field.number) {
      case 1:  // dims
        message.integers(field, &tensor.dims);
        if (tensor.dims.size() > kMaxRank) {
          unsupported(std::string(kind) + ": has more than " + std::to_string(kMaxRank) + " dimensions", field.at);
        }
        break;
      case 2:  // data_type
        type = message.integer(field);
        break;
      case 3:  // segment
        has_segment = true;
        break;
      case 4:  // float_data
        message.numbers(field, &floats);
        data_at = field.at;
        break;
      case 5:  // int32_data: also uint8
        message.integers(field, &small_integers);
        data_at = field.at;
        break;
      case 6:  // string_data
        has_string = true;
        break;
      case 7:  // int64_data
        message.integers(field, &integers);
        data_at = field.at;
        break;
      case 8:  // name
        tensor.name = message.text(field);
        break;
      case 9: {  // raw_data
        if (has_raw) message.fail("has raw_data twice", field.at);
        if (field.wire != Wire::kBytes) message.fail("raw_data is not bytes", field.at);
        has_raw = true;
        tensor.bytes.assign(message.file() + field.begin, message.file() + field.end);
        data_at = field.at;
        break;
      }
      case 10:  // double_data
      case 11:  // uint64_data
        has_other = true;
        break;
      case 13:  // external_data
        has_external = true;
        break;
      case 14:  // data_location: 1 is EXTERNAL
        has_external |= message.integer(field) != 0;
        break;
      default:
        break;
    }
  }
  const std::string what = std::string(kind) + " " + quoted(tensor.name);
  if (has_external) unsupported(what + ": its data is in another file; save the model as one file", at);
  if (has_segment) unsupported(what + ": is cut into segments", at);
  tensor.type = data_type(type, what, at);
  if (has_string || has_other) damaged(what + ": its data is not " + name_of(tensor.type), at);
  const uint64_t expected = checked_size(tensor.dims, tensor.type, what, at);

  const int kinds =
      (has_raw ? 1 : 0) + (floats.empty() ? 0 : 1) + (integers.empty() ? 0 : 1) + (small_integers.empty() ? 0 : 1);
  if (kinds > 1) damaged(what + ": has its data twice", at);
  if (!floats.empty()) {
    if (tensor.type != DataType::kFloat)
      damaged(what + ": is " + name_of(tensor.type) + ", but has float_data", data_at);
    tensor.bytes.resize(floats.size() * sizeof(float));
    std::memcpy(tensor.bytes.data(), floats.data(), tensor.bytes.size());
  } else if (!integers.empty()) {
    if (tensor.type != DataType::kInt64)
      damaged(what + ": is " + name_of(tensor.type) + ", but has int64_data", data_at);
    tensor.bytes.resize(integers.size() * sizeof(int64_t));
    std::memcpy(tensor.bytes.data(), integers.data(), tensor.bytes.size());
  } else if (!small_integers.empty()) {
    if (tensor.type != DataType::kUint8)
      damaged(what + ": is " + name_of(tensor.type) + ", but has int32_data", data_at);
    tensor.bytes.reserve(small_integers.size());
    for (const int64_t value : small_integers) {
      if (value < 0 || value > 255) damaged(what + ": " + std::to_string(value) + " is not a uint8", data_at);
      tensor.bytes.push_back(static_cast<uint8_t>(value));
    }
  }
  if (tensor.bytes.size() != expected) {
    damaged(
        what + ": " + std::to_string(expected) + " bytes expected, " + std::to_string(tensor.bytes.size()) + " found",
        data_at);
  }
  return tensor;
}

int64_t Tensor::elements() const { return static_cast<int64_t>(bytes.size() / size_of(type)); }

std::vector<float> Tensor::floats() const {
  if (type != DataType::kFloat) {
    throw Error(ErrorCode::kFile, "tensor " + quoted(name) + ": is " + name_of(type) + ", not float32");
  }
  std::vector<float> result(bytes.size() / sizeof(float));
  if (!result.empty()) std::memcpy(result.data(), bytes.data(), bytes.size());
  return result;
}

std::vector<int64_t> Tensor::integers() const {
  if (type != DataType::kInt64) {
    throw Error(ErrorCode::kFile, "tensor " + quoted(name) + ": is " + name_of(type) + ", not int64");
  }
  std::vector<int64_t> result(bytes.size() / sizeof(int64_t));
  if (!result.empty()) std::memcpy(result.data(), bytes.data(), bytes.size());
  return result;
}

}  // namespace nasb::onnx

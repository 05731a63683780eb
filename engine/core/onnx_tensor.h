// What the readers of the ONNX file share: refusals with the byte offset, and tensors.
#pragma once

#include <cstddef>
#include <string>

#include "core/onnx_reader.h"
#include "core/protobuf.h"

namespace nasb::onnx {

constexpr size_t kMaxRank = 8;

[[noreturn]] void damaged(const std::string& text, size_t at);
[[noreturn]] void unsupported(const std::string& text, size_t at);

// The element type of a number in the file; `what` has it, for refusals.
DataType data_type(int64_t type, const std::string& what, size_t at);

// A TensorProto; `kind` says in refusals which it is.
Tensor read_tensor(protobuf::Message message, const char* kind, size_t at);

}  // namespace nasb::onnx

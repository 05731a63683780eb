// The one exception of the engine: a message for the user that says what is wrong, and where.
#pragma once

#include <stdexcept>
#include <string>

namespace nasb {

enum class ErrorCode { kFile = 1, kUnsupported = 2, kArgument = 3, kInternal = 4 };

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace nasb

// What kernels are checked against before they are used: the definition of each layer, in plain loops.
#pragma once

#include <memory>
#include <string>

#include "binary_conv.h"
#include "kernels/isa.h"

namespace nasb {

class SelfCheck {
 public:
  // Computes what is expected, once for all kernels.
  SelfCheck();
  ~SelfCheck();
  // Whether a kernel gives the definition's bits on shapes that reach each of its paths. Returns what differs, or "".
  std::string run(BinaryKernel kernel, const Isa& isa) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace nasb

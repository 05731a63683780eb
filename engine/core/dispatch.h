// Which kernels this CPU may use: compiled, supported, and seen to agree with the reference.
#pragma once

#include <string>

#include "binary_conv.h"
#include "kernels/isa.h"

namespace nasb {

struct Choice {
  std::string name;
  BinaryKernel kernel;
  const Isa* isa;  // of everything real-valued, and of the look-up
};

// `name`: "" for the best, or "reference", "portable", "avx2", "avx512", "avx512_vpopcntdq", "neon". Raises Error
// (kArgument) on another name and on a kernel that this CPU does not have or that failed its check.
Choice choose_kernel(const std::string& name);

}  // namespace nasb

// Times one operation at one shape, as a session would run it: what latency tables are made of.
#pragma once

#include <string>
#include <vector>

#include "binary_conv.h"

namespace nasb {

struct MeasuredOperation {
  // binary_conv: signs in, scale and bias, residual, float out;  conv: real, bias, float out;
  // identity, avg_pool, max_pool: batch norm as scale and bias, residual, float out;  binarize: float in, signs out.
  std::string kind;
  ConvShape shape;       // kernel, stride, pads of pooling too; binarize and identity: the input's channels and size
  bool residual = true;  // where the kind has one
  bool sign_output = false;  // the result is binarized as well (fused)
};

// Milliseconds of `repeats` runs of one image, each after other memory has been read, as between two layers of a
// network. Raises Error (kArgument) on a shape or kind that is not known.
std::vector<double> measure(const MeasuredOperation& operation, int repeats, int threads, const std::string& kernel);

}  // namespace nasb

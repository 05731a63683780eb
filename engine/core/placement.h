// One fixed place in memory for each tensor of a plan.
#pragma once

#include <vector>

#include "plan.h"

namespace nasb {

// Fills the plan's offsets and sizes; tensors whose lives do not overlap share memory. `kept`: which tensors must be in
// memory when the run ends.
void place_tensors(Plan& plan, const Graph& graph, const std::vector<bool>& kept);

}  // namespace nasb

// From a graph to steps: fusion of what follows a sum.
#pragma once

#include <memory>
#include <set>
#include <string>
#include <vector>

#include "graph.h"
#include "steps.h"

namespace nasb {

struct Plan {
  std::vector<Tensor> tensors;
  std::vector<std::unique_ptr<Step>> steps;
  std::vector<size_t> offsets;  // of each tensor in the arena
  size_t arena_bytes = 0, shared_bytes = 0, thread_bytes = 0;
  size_t workspace_bytes(int threads) const { return arena_bytes + shared_bytes + thread_bytes * threads; }
  int output = 0;
  bool image_tensor = false;  // tensor 0 is filled (channels last) before the first step
  std::vector<int> kept;      // the tensors that were asked for
};

// `keep`: names of tensors that must be in memory when the run ends. Fusing never changes a result.
Plan make_plan(const Graph& graph, const std::set<std::string>& keep, BinaryKernel kernel, const Isa& isa);

}  // namespace nasb

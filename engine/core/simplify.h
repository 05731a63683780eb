// Rewrites of a graph that change no value, before it is planned.
#pragma once

#include <set>
#include <string>

#include "graph.h"

namespace nasb {

// Moves per-channel layers (scale, shift, ReLU, PReLU) that read a concatenation in front of it, where each part can be
// computed by the step that makes it. Tensors in `keep` stay.
void move_before_concat(Graph& graph, const std::set<std::string>& keep);

// One binary convolution where several read the same signs, add the same tensor and are concatenated. Its kAdd repeats
// the channels of its second input.
void join_convolutions(Graph& graph, const std::set<std::string>& keep);

}  // namespace nasb

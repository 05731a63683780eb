#include "simplify.h"

#include <utility>
#include <vector>

namespace nasb {
namespace {

bool per_channel(Op op) {
  return op == Op::kScale || op == Op::kShift || op == Op::kRelu || op == Op::kPrelu || op == Op::kClip;
}

// The one layer that reads a tensor, or -1.
int sole_reader(const Graph& graph, int tensor) {
  int reader = -1;
  for (size_t i = 0; i < graph.layers.size(); ++i)
    for (int in : graph.layers[i].inputs) {
      if (in != tensor) continue;
      if (reader >= 0) return -1;
      reader = static_cast<int>(i);
    }
  return reader;
}

}  // namespace

void move_before_concat(Graph& graph, const std::set<std::string>& keep) {
  for (size_t i = 0; i < graph.layers.size(); ++i) {
    while (graph.layers[i].op == Op::kConcat) {
      const int joined = graph.layers[i].output;
      if (joined == graph.output || keep.count(graph.tensors[joined].name)) break;
      const int reader = sole_reader(graph, joined);
      if (reader < 0 || !per_channel(graph.layers[reader].op)) break;
      const Layer moved = graph.layers[reader];
      std::vector<Layer> parts;
      size_t channel = 0;
      for (int& in : graph.layers[i].inputs) {
        const Tensor t = graph.tensors[in];
        Layer part = moved;
        part.inputs = {in};
        if (!moved.values.empty())
          part.values.assign(moved.values.begin() + channel, moved.values.begin() + channel + t.channels);
        channel += t.channels;
        graph.tensors.push_back(t);
        graph.tensors.back().name.clear();
        part.output = in = static_cast<int>(graph.tensors.size()) - 1;
        parts.push_back(std::move(part));
      }
      graph.layers[i].output = moved.output;
      graph.layers.erase(graph.layers.begin() + reader);
      graph.layers.insert(graph.layers.begin() + i, parts.begin(), parts.end());
      i += parts.size();  // the concatenation again
    }
  }
}

}  // namespace nasb

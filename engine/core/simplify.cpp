#include "simplify.h"

#include <utility>
#include <vector>

namespace nasb {
namespace {

// Bytes of layers that the rewriting may add to a graph: each layer that moves is there once for each part, so that a
// small file could ask for any number. DenseNet-264 takes a quarter of it.
constexpr size_t kMostAdded = size_t{16} << 20;

bool per_channel(Op op) {
  return op == Op::kScale || op == Op::kShift || op == Op::kRelu || op == Op::kPrelu || op == Op::kClip;
}

// The one layer that reads each tensor, or -1.
std::vector<int> sole_readers(const Graph& graph) {
  constexpr int kNone = -2;
  std::vector<int> readers(graph.tensors.size(), kNone);
  for (size_t i = 0; i < graph.layers.size(); ++i)
    for (const int in : graph.layers[i].inputs) readers[in] = readers[in] == kNone ? static_cast<int>(i) : -1;
  for (int& reader : readers)
    if (reader == kNone) reader = -1;
  return readers;
}

}  // namespace

void move_before_concat(Graph& graph, const std::set<std::string>& keep) {
  const std::vector<int> readers = sole_readers(graph);
  std::vector<bool> moved(graph.layers.size());
  std::vector<Layer> layers;
  size_t left = kMostAdded;
  for (size_t i = 0; i < graph.layers.size(); ++i) {
    if (moved[i]) continue;
    Layer& layer = graph.layers[i];
    while (layer.op == Op::kConcat) {
      const int joined = layer.output, reader = readers[joined];
      if (joined == graph.output || keep.count(graph.tensors[joined].name)) break;
      if (reader < 0 || !per_channel(graph.layers[reader].op)) break;
      Layer& whole = graph.layers[reader];
      const size_t added = layer.inputs.size() * (sizeof(Layer) + whole.name.size());
      if (added > left) break;
      left -= added;
      moved[reader] = true;
      const std::vector<float> values = std::move(whole.values);
      whole.values.clear();
      auto channel = values.begin();
      for (int& in : layer.inputs) {
        Layer part = whole;
        part.inputs = {in};
        Tensor t = graph.tensors[in];
        t.name.clear();
        if (!values.empty()) {
          part.values.assign(channel, channel + t.channels);
          channel += t.channels;
        }
        part.output = in = static_cast<int>(graph.tensors.size());
        graph.tensors.push_back(std::move(t));
        layers.push_back(std::move(part));
      }
      layer.output = whole.output;
    }
    layers.push_back(std::move(layer));
  }
  graph.layers = std::move(layers);
}

}  // namespace nasb

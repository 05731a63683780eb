// Binary convolutions that read the same signs, add the same tensor and are concatenated (ReActNet's way to double the
// channels) become one: each pixel's signs, its residual and its row of the result pass once.
#include <algorithm>
#include <utility>
#include <vector>

#include "simplify.h"

namespace nasb {
namespace {

constexpr int kWord = 32;  // epilogues go by as many channels: a residual that repeats must begin anew at one

class Joining {
 public:
  Joining(Graph& graph, const std::set<std::string>& keep) : graph_(graph), keep_(keep) {}

  void run() {
    for (size_t i = 0; i < graph_.layers.size(); ++i)
      if (graph_.layers[i].op == Op::kConcat) join(i);
  }

 private:
  // The layer that makes a tensor for the one reader it has, or -1.
  int maker(int tensor) const {
    int readers = 0, made_by = -1;
    for (size_t i = 0; i < graph_.layers.size(); ++i) {
      const Layer& l = graph_.layers[i];
      readers += static_cast<int>(std::count(l.inputs.begin(), l.inputs.end(), tensor));
      if (l.output == tensor) made_by = static_cast<int>(i);
    }
    return readers == 1 && tensor != graph_.output && !keep_.count(graph_.tensors[tensor].name) ? made_by : -1;
  }

  bool alike(const Layer& a, const Layer& b) const {
    const ConvShape &s = a.shape, &t = b.shape;
    return a.inputs == b.inputs && a.pad_value == b.pad_value && s.kernel_height == t.kernel_height &&
           s.kernel_width == t.kernel_width && s.stride_height == t.stride_height && s.stride_width == t.stride_width &&
           s.dilation_height == t.dilation_height && s.dilation_width == t.dilation_width && s.pad_top == t.pad_top &&
           s.pad_left == t.pad_left && s.out_height == t.out_height && s.out_width == t.out_width && t.groups == 1;
  }

  void join(size_t concat) {
    std::vector<int> gone{static_cast<int>(concat)};
    Layer conv, sum;
    int residual = -1;
    for (const int part : graph_.layers[concat].inputs) {
      const int adds = maker(part);
      if (adds < 0 || graph_.layers[adds].op != Op::kAdd) return;
      const Layer& add = graph_.layers[adds];
      int own = -1;
      for (const int in : add.inputs) {
        const int by = maker(in);
        if (own < 0 && by >= 0 && graph_.layers[by].op == Op::kBinaryConv) own = by;
      }
      if (own < 0) return;
      const Layer& l = graph_.layers[own];
      const int other = add.inputs[0] == l.output ? add.inputs[1] : add.inputs[0];
      if (residual < 0) {
        conv = l, sum = add, residual = other;
        if (conv.shape.groups != 1 || conv.shape.out_channels % kWord) return;
      } else {
        if (other != residual || !alike(conv, l) || graph_.tensors[part].channels != graph_.tensors[other].channels)
          return;
        conv.name += " + " + l.name;
        conv.shape.out_channels += l.shape.out_channels;
        conv.bits.insert(conv.bits.end(), l.bits.begin(), l.bits.end());
        conv.scale.insert(conv.scale.end(), l.scale.begin(), l.scale.end());
        conv.bias.insert(conv.bias.end(), l.bias.begin(), l.bias.end());
      }
      gone.push_back(adds);
      gone.push_back(own);
    }
    if (gone.size() < 5) return;  // one part alone
    const int whole = graph_.layers[concat].output;
    Tensor t = graph_.tensors[whole];
    t.name.clear();
    graph_.tensors.push_back(t);
    conv.output = static_cast<int>(graph_.tensors.size()) - 1;
    sum.inputs = {conv.output, residual};
    sum.output = whole;
    graph_.layers[concat] = std::move(sum);
    graph_.layers.insert(graph_.layers.begin() + concat, std::move(conv));
    std::sort(gone.begin() + 1, gone.end(), [](int a, int b) { return a > b; });
    for (auto at = gone.begin() + 1; at != gone.end(); ++at) graph_.layers.erase(graph_.layers.begin() + *at);
  }

  Graph& graph_;
  const std::set<std::string>& keep_;
};

}  // namespace

void join_convolutions(Graph& graph, const std::set<std::string>& keep) { Joining(graph, keep).run(); }

}  // namespace nasb

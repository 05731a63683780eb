// Binary convolutions that read the same signs, add the same tensor and are concatenated (ReActNet's way to double the
// channels) become one: each pixel's signs, its residual and its row of the result pass once.
#include <utility>
#include <vector>

#include "simplify.h"

namespace nasb {
namespace {

constexpr int kWord = 32;  // epilogues go by as many channels: a residual that repeats must begin anew at one

class Joining {
 public:
  Joining(Graph& graph, const std::set<std::string>& keep)
      : graph_(graph), keep_(keep), readers_(graph.tensors.size()), maker_(graph.tensors.size(), -1) {
    for (size_t i = 0; i < graph.layers.size(); ++i) {
      for (const int in : graph.layers[i].inputs) ++readers_[in];
      maker_[graph.layers[i].output] = static_cast<int>(i);
    }
  }

  void run() {
    const size_t count = graph_.layers.size();
    gone_.resize(count);
    before_.assign(count, -1);
    for (size_t i = 0; i < count; ++i)
      if (graph_.layers[i].op == Op::kConcat) join(i);
    std::vector<Layer> layers;
    for (size_t i = 0; i < count; ++i) {
      if (before_[i] >= 0 && !gone_[before_[i]]) layers.push_back(std::move(graph_.layers[before_[i]]));
      if (!gone_[i]) layers.push_back(std::move(graph_.layers[i]));
    }
    graph_.layers = std::move(layers);
  }

 private:
  // The layer that makes a tensor for the one reader it has, or -1.
  int maker(int tensor) const {
    return readers_[tensor] == 1 && tensor != graph_.output && !keep_.count(graph_.tensors[tensor].name)
               ? maker_[tensor]
               : -1;
  }

  bool alike(const Layer& a, const Layer& b) const {
    const ConvShape &s = a.shape, &t = b.shape;
    return a.inputs == b.inputs && a.pad_value == b.pad_value && s.kernel_height == t.kernel_height &&
           s.kernel_width == t.kernel_width && s.stride_height == t.stride_height && s.stride_width == t.stride_width &&
           s.dilation_height == t.dilation_height && s.dilation_width == t.dilation_width && s.pad_top == t.pad_top &&
           s.pad_left == t.pad_left && s.out_height == t.out_height && s.out_width == t.out_width && t.groups == 1;
  }

  void join(size_t concat) {
    std::vector<int> adds, convs;
    int residual = -1;
    for (const int part : graph_.layers[concat].inputs) {
      const int by = maker(part);
      if (by < 0 || graph_.layers[by].op != Op::kAdd) return;
      const Layer& add = graph_.layers[by];
      int own = -1;
      for (const int in : add.inputs) {
        const int conv = maker(in);
        if (own < 0 && conv >= 0 && graph_.layers[conv].op == Op::kBinaryConv) own = conv;
      }
      if (own < 0) return;
      const Layer& conv = graph_.layers[own];
      const int other = add.inputs[0] == conv.output ? add.inputs[1] : add.inputs[0];
      if (convs.empty()) {
        residual = other;
        if (conv.shape.groups != 1 || conv.shape.out_channels % kWord) return;
      } else if (other != residual || !alike(graph_.layers[convs[0]], conv) ||
                 graph_.tensors[part].channels != graph_.tensors[other].channels) {
        return;
      }
      adds.push_back(by);
      convs.push_back(own);
    }
    if (convs.size() < 2) return;
    Layer joined = std::move(graph_.layers[convs[0]]);
    for (size_t i = 1; i < convs.size(); ++i) append(joined, graph_.layers[convs[i]]);
    const int whole = graph_.layers[concat].output;
    Tensor t = graph_.tensors[whole];
    t.name.clear();
    graph_.tensors.push_back(t);
    joined.output = static_cast<int>(graph_.tensors.size()) - 1;
    Layer sum = std::move(graph_.layers[adds[0]]);
    sum.inputs = {joined.output, residual};
    sum.output = whole;
    // Later concatenations may find the sum and its convolution among their parts.
    const int others = static_cast<int>(convs.size()) - 1;
    readers_[joined.inputs[0]] -= others;
    readers_[residual] -= others;
    readers_.push_back(1);
    maker_.push_back(static_cast<int>(graph_.layers.size()));
    maker_[whole] = static_cast<int>(concat);
    before_[concat] = static_cast<int>(graph_.layers.size());
    for (const int add : adds) gone_[add] = true;
    for (const int conv : convs) gone_[conv] = true;
    gone_.push_back(false);
    graph_.layers[concat] = std::move(sum);
    graph_.layers.push_back(std::move(joined));
  }

  static void append(Layer& to, const Layer& conv) {
    to.name += " + " + conv.name;
    to.shape.out_channels += conv.shape.out_channels;
    to.bits.insert(to.bits.end(), conv.bits.begin(), conv.bits.end());
    to.scale.insert(to.scale.end(), conv.scale.begin(), conv.scale.end());
    to.bias.insert(to.bias.end(), conv.bias.begin(), conv.bias.end());
  }

  Graph& graph_;
  const std::set<std::string>& keep_;
  std::vector<int> readers_, maker_;  // of each tensor: how many layers read it, which one makes it
  std::vector<bool> gone_;            // layers that became part of a joined one
  std::vector<int> before_;           // the joined convolution in front of a layer, or -1
};

}  // namespace

void join_convolutions(Graph& graph, const std::set<std::string>& keep) { Joining(graph, keep).run(); }

}  // namespace nasb

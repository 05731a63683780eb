// From the nodes of an ONNX file to layers (graph.h): one node after another, each by the function of its operator.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "graph.h"

namespace nasb {

constexpr int64_t kLargest = int64_t{1} << 28;  // elements of a tensor: beyond any image network

class Lowering {
 public:
  Lowering(const onnx::Model& model, const std::vector<std::string>& accumulators)
      : model_(model), accumulators_(accumulators) {}

  Graph run();

 private:
  // What a node says (graph.cpp). Each refuses by the node's name what the engine does not run.
  [[noreturn]] void fail(const std::string& what) const;
  int dimension(int64_t value, const std::string& name) const;
  const Tensor& tensor(int id) const { return graph_.tensors[id]; }
  bool given(size_t i) const { return i < node_->inputs.size() && !node_->inputs[i].empty(); }
  bool is_constant(size_t i) const { return given(i) && model_.initializers.count(node_->inputs[i]); }
  const onnx::Tensor& constant(size_t i) const;
  // An input of either form.
  int computed(size_t i) const;
  // A real-valued input; `binary` asks for signs instead. Signs may be read as the values -1 and +1, and back.
  int value(size_t i, bool binary = false);
  std::vector<int64_t> ints(const char* key, size_t count, int64_t otherwise) const;
  // One value for each channel, from [C, 1, 1], [1, C, 1, 1], [C] of a flat tensor, or a single value.
  std::vector<float> per_channel(size_t i, const Tensor& of) const;
  // A single value; `otherwise` where the input is left out.
  float bound(size_t i, float otherwise) const;

  // What is made of it.
  int define(const Tensor& tensor, const std::string& name);
  // The other form of signs: words for binary convolutions, -1 and +1 for everything else.
  int converted(int id);
  Layer& add(Op op, std::vector<int> inputs, Tensor output);
  Layer& same_shape(Op op, std::vector<int> inputs);
  void lower_node();

  // Operators with windows, and linear layers (lowering_windows.cpp).

  // Kernel, stride, dilation, pads of a convolution or pooling, and the output's size.
  ConvShape window(const Tensor& in, int64_t kernel_height, int64_t kernel_width, bool ceil_mode) const;
  // With its border the input of a convolution must be addressable by 32-bit offsets.
  void refuse_large_input(const ConvShape& s) const;
  int group(const Tensor& in, int64_t outputs) const;
  void binary_conv();
  void conv();
  void gemm();
  void pool();
  // Each window of pooling must hold a pixel of the image.
  void refuse_empty_windows(int64_t out, int64_t stride, int64_t pad, int64_t kernel, int64_t dilation,
                            int64_t size) const;
  void global_pool();

  // Operators on maps as they are (lowering_maps.cpp).
  void binarize();
  void prelu();
  void clip();
  void hard_sigmoid();
  void arithmetic(Op with_constant, Op with_tensor, Op with_gate);
  void concat();
  int64_t axis_of(int64_t axis, const Tensor& t) const;
  void slice();
  void pad();
  void flatten();
  void reshape();
  // An input whose values, in the order of the file, are those of another shape.
  void reshape_to(const std::vector<int64_t>& dims);

  const onnx::Model& model_;
  const std::vector<std::string>& accumulators_;
  const onnx::Node* node_ = nullptr;
  Graph graph_;
  std::map<std::string, int> values_;
  std::set<int> only_signs_;      // real tensors whose values are all -1 or +1
  std::map<int, int> converted_;  // from one form of signs to the other
};

}  // namespace nasb

// What a session runs: one step for a layer and all that was fused behind it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "graph.h"
#include "kernels/isa.h"
#include "memory.h"
#include "thread_pool.h"

namespace nasb {

// Memory of one running call. Tensors are [height][width][channels] floats, or words of
// signs [height][width][ceil(channels / 32)].
struct Workspace {
  const float* image = nullptr;  // [channels][height][width]
  uint8_t* arena = nullptr;
  const std::vector<size_t>* offsets = nullptr;  // of each tensor
  uint8_t* shared = nullptr;
  uint8_t* threads = nullptr;

  float* floats(int tensor) const { return reinterpret_cast<float*>(arena + (*offsets)[tensor]); }
  uint32_t* words(int tensor) const { return reinterpret_cast<uint32_t*>(arena + (*offsets)[tensor]); }
};

// What follows a step's sums; parameters are padded for the kernels.
struct Fused {
  AlignedVector<float> scale, bias, shift_in, slope, shift_out;
  int residual = -1;
  int residual_channels = 0;  // fewer than the step's repeat
  Rectify rectify = Rectify::kNone;
  float low = 0, high = 0;  // of a clip
  bool store = true;        // the float output is read by somebody
  int first_channel = 0;    // of the output tensor: others write its other channels
  struct Sign {
    int tensor;
    AlignedVector<float> thresholds;
  };
  std::vector<Sign> signs;
};

class Step {
 public:
  virtual ~Step() = default;
  virtual void run(const Workspace& w, ThreadPool& pool) const = 0;
  virtual std::string kernel() const = 0;
  // Takes the pooling of the step's output into the step, `fused` with it; what follows the pooling is fused anew.
  virtual bool take_pool(const Layer&) { return false; }

  std::string name, operation;
  int64_t macs = 0;
  bool binary = false;
  std::vector<int> inputs;
  int output = 0;           // of the step's last fused layer
  int output_channels = 0;  // that the step computes
  int output_stride = 0;    // channels of the output tensor
  Fused fused;
  size_t shared_bytes = 0, thread_bytes = 0;  // scratch

 protected:
  Epilogue epilogue(const Workspace& w) const;
  static Epilogue parameters(const Fused& fused, int channels);
};

// Whether a step can end in a Fused; the others only move or map values.
bool has_epilogue(Op op);

std::unique_ptr<Step> make_step(const Layer& layer, const Graph& graph, BinaryKernel kernel, const Isa& isa,
                                bool from_image);

std::unique_ptr<Step> make_conv_step(const Layer& layer, const Isa& isa, bool from_image);  // conv_step.cpp
std::unique_ptr<Step> make_pool_step(const Layer& layer, const Isa& isa);                   // pool_step.cpp
std::unique_ptr<Step> make_map_step(const Layer& layer, const Graph& graph);                // map_step.cpp

// `values` padded with zeros so that a kernel may read a whole block from any channel.
AlignedVector<float> padded(const std::vector<float>& values);

}  // namespace nasb

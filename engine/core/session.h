// A loaded network: plans once, runs from any number of threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace nasb {

struct Options {
  int threads = 0;     // 0: as many as the process may use
  std::string kernel;  // of binary convolutions: "", "reference", "portable", "avx2", "avx512", "avx512_vpopcntdq",
                       // "neon"; "": the best that works here
};

struct Array {  // a float32 tensor handed out: NCHW, or [N, features]
  std::vector<int64_t> dims;
  std::vector<float> values;
};

struct LayerProfile {
  std::string name;       // the module's qualified name; of a fused step, of its main layer
  std::string operation;  // what the step does, e.g. "BinaryConv2d + Add + PRelu + Binarize"
  std::string kernel;     // what ran, e.g. "lut_avx2"
  int threads = 1;
  double milliseconds = 0;  // median over the repeats, one image
  int64_t macs = 0;         // of one image, real or binary
  bool binary = false;
};

class Session {
 public:
  // Reads a file's bytes; they may be freed afterwards. Raises Error.
  Session(const uint8_t* data, size_t size, const Options& options = {});
  ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  const std::vector<int64_t>& input_dims() const;   // [C, H, W] of one image
  const std::vector<int64_t>& output_dims() const;  // of one image's output, e.g. [classes]
  const std::map<std::string, std::string>& metadata() const;
  int threads() const;
  const std::string& kernel() const;              // that was chosen, e.g. "avx2"
  size_t workspace_bytes() const;                 // of one running call
  std::vector<std::string> tensor_names() const;  // all that inspect() can hand out

  // images: [batch, C, H, W], contiguous; output: [batch, output_dims...]. Safe from several threads at once: each call
  // has a workspace of its own; calls share the thread pool in turn.
  void run(const float* images, int64_t batch, float* output) const;

  // The named inner tensors (an ONNX value name, or "NAME:accumulators" of a binary convolution: the exact integer
  // sums). Raises Error on an unknown name.
  std::map<std::string, Array> inspect(const float* images, int64_t batch, const std::vector<std::string>& names) const;

  // Times each step on one image, `repeats` times.
  std::vector<LayerProfile> profile(const float* image, int repeats) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// What this CPU has and what this build contains, for `info`.
struct KernelInfo {
  std::string name;  // "avx2"
  bool compiled = false;
  bool supported = false;  // by this CPU
  bool verified = false;   // equal to the reference in the self-check (false where it was not tried)
  std::string note;        // why not
};
std::vector<KernelInfo> kernels();
// A line for each kernel that this CPU could run but that failed its self-check.
std::vector<std::string> kernel_warnings();
std::string cpu_name();
std::string version();

}  // namespace nasb

// Fuzzing harness of the loader: any bytes either become a session or raise nasb::Error, and a small session also runs.
#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

#include "core/error.h"
#include "core/session.h"

// The kernels' self-check, once in a process, is no part of the time of an input.
extern "C" int LLVMFuzzerInitialize(int*, char***) {
  nasb::kernels();
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // Bounds what one input may cost; what is beyond is the operating system's business.
  constexpr int64_t kMostFloats = 1 << 16;
  constexpr size_t kMostWorkspace = size_t{64} << 20;
  try {
    nasb::Options options;
    options.threads = 1;
    const nasb::Session session(data, size, options);
    int64_t in = 1, out = 1;
    for (const int64_t dim : session.input_dims())
      in = dim > kMostFloats ? kMostFloats + 1 : in > kMostFloats ? in : in * dim;
    for (const int64_t dim : session.output_dims())
      out = dim > kMostFloats ? kMostFloats + 1 : out > kMostFloats ? out : out * dim;
    if (in > kMostFloats || out > kMostFloats || session.workspace_bytes() > kMostWorkspace) return 0;
    std::vector<float> image(static_cast<size_t>(in)), output(static_cast<size_t>(out));
    for (size_t i = 0; i < image.size(); ++i) image[i] = static_cast<float>(i % 7) - 3.0f;
    session.run(image.data(), 1, output.data());
  } catch (const nasb::Error&) {  // a refusal
  }
  return 0;
}

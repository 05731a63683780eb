#include "dispatch.h"

#include <cmath>
#include <cstring>
#include <fstream>
#include <mutex>
#include <random>
#include <vector>

#include "error.h"
#include "memory.h"
#include "session.h"

namespace nasb {
namespace {

struct Candidate {
  const char* name;
  const Isa* isa;  // null: not compiled for this architecture
  BinaryKernel kernel;
  bool supported;
};

// Best first.
std::vector<Candidate> candidates() {
  std::vector<Candidate> c;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool popcount = avx512 && __builtin_cpu_supports("avx512vpopcntdq");
  c.push_back({"avx512_vpopcntdq", &isa_avx512_vpopcntdq(), BinaryKernel::kWords, popcount});
  c.push_back({"avx512", &isa_avx512(), BinaryKernel::kLookup, avx512});
  c.push_back({"avx2", &isa_avx2(), BinaryKernel::kLookup, avx2});
  c.push_back({"neon", nullptr, BinaryKernel::kLookup, false});
#elif defined(__aarch64__)
  c.push_back({"neon", &isa_neon(), BinaryKernel::kLookup, true});
  c.push_back({"avx512_vpopcntdq", nullptr, BinaryKernel::kLookup, false});
  c.push_back({"avx512", nullptr, BinaryKernel::kLookup, false});
  c.push_back({"avx2", nullptr, BinaryKernel::kLookup, false});
#else
  c.push_back({"avx512_vpopcntdq", nullptr, BinaryKernel::kLookup, false});
  c.push_back({"avx512", nullptr, BinaryKernel::kLookup, false});
  c.push_back({"avx2", nullptr, BinaryKernel::kLookup, false});
  c.push_back({"neon", nullptr, BinaryKernel::kLookup, false});
#endif
  return c;
}

struct Result {
  std::vector<float> values;
  std::vector<uint32_t> words;
  bool operator==(const Result& o) const {
    return values.size() == o.values.size() && words == o.words &&
           std::memcmp(values.data(), o.values.data(), values.size() * sizeof(float)) == 0;
  }
};

// One convolution with everything that can follow it, from fixed random data.
Result run_check(const ConvShape& s, int pad_value, Rectify rectify, bool residual, BinaryKernel kernel,
                 const Isa& isa) {
  std::mt19937 random(1);
  const auto bit = [&] { return random() & 1; };
  const int words = (s.in_channels + 31) / 32, inputs = s.group_inputs(), bytes = (inputs + 7) / 8;
  std::vector<uint32_t> signs(static_cast<size_t>(s.in_height) * s.in_width * words, 0);
  for (size_t p = 0; p < signs.size() / words; ++p)
    for (int c = 0; c < s.in_channels; ++c) signs[p * words + c / 32] |= static_cast<uint32_t>(bit()) << (c % 32);
  std::vector<uint8_t> weights(static_cast<size_t>(s.out_channels) * s.taps() * bytes, 0);
  for (size_t r = 0; r < weights.size() / bytes; ++r)
    for (int c = 0; c < inputs; ++c) weights[r * bytes + c / 8] |= static_cast<uint8_t>(bit() << (c % 8));
  const auto values = [&](size_t n) {
    std::vector<float> v(n);
    for (float& x : v) x = static_cast<float>(static_cast<int>(random() % 2001) - 1000) / 256.0f;
    return v;
  };
  const size_t channels = s.out_channels, pixels = s.pixels();
  const std::vector<float> scale = values(channels + kBlock), bias = values(channels + kBlock),
                           slope = values(channels + kBlock), shift = values(channels + kBlock),
                           threshold = values(channels + kBlock), added = values(pixels * channels);
  Result r;
  r.values.assign(pixels * channels, -1);
  r.words.assign(pixels * ((channels + 31) / 32), ~0u);
  Epilogue e;
  e.scale = scale.data(), e.bias = bias.data();
  e.residual = residual ? added.data() : nullptr;
  e.residual_channels = s.out_channels;
  e.rectify = rectify;
  e.low = -1.5f, e.high = 1.0f;
  e.slope = slope.data(), e.shift_in = shift.data(), e.shift_out = bias.data();
  e.output = r.values.data();
  e.output_stride = s.out_channels;
  if (s.groups == 1 || s.group_outputs() % 32 == 0) {
    e.sign_outputs = 1;
    e.signs[0] = {threshold.data(), r.words.data(), (s.out_channels + 31) / 32};
  }
  BinaryConv conv(s, pad_value, weights.data(), kernel, isa);
  ThreadPool alone(1);
  Memory shared(conv.shared_bytes()), thread(conv.thread_bytes());
  conv.run(signs.data(), e, alone, shared.data(), thread.data());
  return r;
}

// Whether an instruction set gives the reference's bits on shapes that reach each of its paths. Returns what differs,
// or "".
std::string check(BinaryKernel kernel, const Isa& isa) {
  struct Case {
    int channels, outputs, size, kernel, stride, pad, dilation, groups, pad_value;
    Rectify rectify;
    bool residual;
  };
  const Case cases[] = {
      {64, 64, 6, 3, 1, 1, 1, 1, 0, Rectify::kNone, true},
      {128, 128, 7, 3, 2, 1, 1, 1, 0, Rectify::kPrelu, false},
      {30, 70, 5, 3, 1, 1, 1, 1, 0, Rectify::kRelu, false},
      {16, 16, 7, 5, 1, 2, 1, 1, 1, Rectify::kShiftedPrelu, true},
      {260, 33, 5, 1, 1, 0, 1, 1, 0, Rectify::kNone, false},
      {12, 24, 9, 3, 1, 2, 2, 2, -1, Rectify::kPrelu, true},
      {20, 12, 7, 3, 2, 1, 1, 2, 0, Rectify::kClip, true},
      {1, 1, 3, 7, 1, 3, 1, 1, 0, Rectify::kNone, false},
      {600, 130, 3, 3, 1, 1, 1, 1, 0, Rectify::kNone, true},
  };
  for (const Case& c : cases) {
    ConvShape s;
    s.in_channels = c.channels, s.out_channels = c.outputs, s.groups = c.groups;
    s.in_height = s.in_width = c.size;
    s.kernel_height = s.kernel_width = c.kernel;
    s.stride_height = s.stride_width = c.stride;
    s.dilation_height = s.dilation_width = c.dilation;
    s.pad_top = s.pad_left = c.pad;
    s.out_height = s.out_width = (c.size + 2 * c.pad - c.dilation * (c.kernel - 1) - 1) / c.stride + 1;
    if (!(run_check(s, c.pad_value, c.rectify, c.residual, kernel, isa) ==
          run_check(s, c.pad_value, c.rectify, c.residual, BinaryKernel::kReference, isa_portable())))
      return std::to_string(c.channels) + " to " + std::to_string(c.outputs) + " channels, " +
             std::to_string(c.kernel) + "x" + std::to_string(c.kernel) + ", stride " + std::to_string(c.stride) +
             ": differs from the reference";
  }
  return "";
}

struct State {
  std::vector<KernelInfo> infos;
  std::vector<Choice> choices;                    // of each info
  Choice best{BinaryKernel::kPortable, nullptr};  // verified
};

// Looked at once per process.
const State& state() {
  static const State s = [] {
    State made;
    for (const Candidate& c : candidates()) {
      KernelInfo info;
      info.name = c.name;
      info.compiled = c.isa != nullptr;
      info.supported = c.supported;
      if (!info.compiled)
        info.note = "not for this architecture";
      else if (!info.supported)
        info.note = "this CPU does not have it";
      else
        info.note = check(c.kernel, *c.isa);
      info.verified = info.supported && info.note.empty();
      if (info.verified && !made.best.isa) made.best = {c.kernel, c.isa};
      made.infos.push_back(info);
      made.choices.push_back({c.kernel, c.isa});
    }
    if (!made.best.isa) made.best.isa = &isa_portable();
    for (const char* name : {"portable", "reference"}) {
      KernelInfo info;
      info.name = name;
      info.compiled = info.supported = info.verified = true;
      made.infos.push_back(info);
    }
    return made;
  }();
  return s;
}

}  // namespace

Choice choose_kernel(const std::string& name) {
  const State& s = state();
  if (name.empty()) return s.best;
  for (size_t i = 0; i < s.choices.size(); ++i)
    if (s.infos[i].name == name && s.infos[i].verified) return s.choices[i];
  // The plain kernels compute sums; what is real-valued stays with the best set, so that results agree.
  if (name == "portable") return {BinaryKernel::kPortable, s.best.isa};
  if (name == "reference") return {BinaryKernel::kReference, s.best.isa};
  std::string known;
  for (size_t i = 0; i < s.infos.size(); ++i) {
    const KernelInfo& info = s.infos[i];
    known += (i ? ", " : "") + info.name;
    if (info.name != name) continue;
    throw Error(ErrorCode::kArgument, "kernel \"" + name + "\" cannot be used: " + info.note);
  }
  throw Error(ErrorCode::kArgument, "kernel \"" + name + "\" is not known; known: " + known);
}

std::vector<KernelInfo> kernels() { return state().infos; }

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.rfind("model name", 0) == 0 || line.rfind("Model", 0) == 0) {
      const size_t colon = line.find(": ");
      if (colon != std::string::npos) return line.substr(colon + 2);
    }
#if defined(__aarch64__)
  return "aarch64";
#elif defined(__x86_64__)
  return "x86-64";
#else
  return "unknown";
#endif
}

std::string version() { return NASB_VERSION; }

}  // namespace nasb

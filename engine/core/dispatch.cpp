#include "dispatch.h"

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <vector>

#include "error.h"
#include "self_check.h"
#include "session.h"

namespace nasb {
namespace {

struct Candidate {
  const char* name;
  const Isa& (*isa)();  // null: not compiled for this architecture; else called only where it is supported
  BinaryKernel kernel;
  bool supported;
};

// Best first.
std::vector<Candidate> candidates() {
  std::vector<Candidate> c;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool popcount = avx512 && __builtin_cpu_supports("avx512vpopcntdq");
  c.push_back({"avx512_vpopcntdq", isa_avx512_vpopcntdq, BinaryKernel::kWords, popcount});
  c.push_back({"avx512", isa_avx512, BinaryKernel::kLookup, avx512});
  c.push_back({"avx2", isa_avx2, BinaryKernel::kLookup, avx2});
  c.push_back({"neon", nullptr, BinaryKernel::kLookup, false});
#elif defined(__aarch64__)
  c.push_back({"neon", isa_neon, BinaryKernel::kLookup, true});
  c.push_back({"avx512_vpopcntdq", nullptr, BinaryKernel::kLookup, false});
  c.push_back({"avx512", nullptr, BinaryKernel::kLookup, false});
  c.push_back({"avx2", nullptr, BinaryKernel::kLookup, false});
#else
  c.push_back({"avx512_vpopcntdq", nullptr, BinaryKernel::kLookup, false});
  c.push_back({"avx512", nullptr, BinaryKernel::kLookup, false});
  c.push_back({"avx2", nullptr, BinaryKernel::kLookup, false});
  c.push_back({"neon", nullptr, BinaryKernel::kLookup, false});
#endif
  c.push_back({"portable", isa_portable, BinaryKernel::kWords, true});
  return c;
}

// For tests alone: NASB_TEST_FAULT=KERNEL:PART makes that part of a kernel leave out the last channel (or tiles)
// while it is checked, which the check has to find.
Isa with_fault(const Candidate& c) {
  Isa isa = c.isa();
  const char* fault = std::getenv("NASB_TEST_FAULT");
  const std::string prefix = std::string(c.name) + ":";
  if (!fault || std::strncmp(fault, prefix.c_str(), prefix.size()) != 0) return isa;
  static Isa whole;
  whole = isa;
  const std::string part = fault + prefix.size();
  if (part == "epilogue")
    isa.epilogue = [](const Epilogue& e, const float* acc, int first, int pixels, int channel, int count) {
      whole.epilogue(e, acc, first, pixels, channel, count - 1);
    };
  if (part == "sums" && isa.lut_tile)
    isa.lut_tile = [](const LutLayer& l, const LutTile& t, int block, const Epilogue& e, int channel, int count) {
      whole.lut_tile(l, t, block, e, channel, count - 1);
    };
  if (part == "sums" && isa.word_tile)
    isa.word_tile = [](const WordLayer& l, const WordTile& t, int block, const Epilogue& e, int channel, int count) {
      whole.word_tile(l, t, block, e, channel, count - 1);
    };
  if (part == "gemm")
    isa.gemm_tile = [](const GemmLayer& l, const float* const* inputs, int first, int pixels, int channel, int count,
                       const Epilogue& e,
                       float* scratch) { whole.gemm_tile(l, inputs, first, pixels, channel, count - 1, e, scratch); };
  if (part == "winograd")
    isa.winograd_tile = [](const WinogradLayer& l, const float* values, int first, int pixels, int channels,
                           const Epilogue& e,
                           float* scratch) { whole.winograd_tile(l, values, first, pixels, channels - 1, e, scratch); };
  if (part == "winograd_inputs")
    isa.winograd_inputs = [](const float* line, int tiles, float* to) {
      whole.winograd_inputs(line, tiles - kWinogradStep, to);
    };
  if (part == "pool")
    isa.pool = [](const PoolRun& run, float* to) {
      PoolRun less = run;
      --less.count;
      whole.pool(less, to);
    };
  if (part == "depthwise")
    isa.depthwise = [](const float* const* taps, const float* weights, int stride, int tap_count, int count,
                       float* acc) { whole.depthwise(taps, weights, stride, tap_count, count - 1, acc); };
  return isa;
}

struct State {
  std::vector<KernelInfo> infos;
  std::vector<Choice> choices;  // of each info
  int best = -1;                // the first that is verified
};

// Looked at once per process.
const State& state() {
  static const State s = [] {
    State made;
    const SelfCheck check;
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
        info.note = check.run(c.kernel, with_fault(c));
      info.verified = info.supported && info.note.empty();
      if (info.verified && made.best < 0) made.best = static_cast<int>(made.infos.size());
      made.infos.push_back(info);
      made.choices.push_back({c.name, c.kernel, c.supported ? &c.isa() : nullptr});
    }
    // The plain kernels compute sums; what is real-valued stays with the best set, so that results agree.
    if (made.best >= 0) {
      const Isa* best = made.choices[made.best].isa;
      made.choices.back() = {"portable", BinaryKernel::kPortable, best};
      made.choices.push_back({"reference", BinaryKernel::kReference, best});
      made.infos.push_back({"reference", true, true, true, ""});
    }
    return made;
  }();
  return s;
}

}  // namespace

Choice choose_kernel(const std::string& name) {
  const State& s = state();
  if (s.best < 0)
    throw Error(ErrorCode::kInternal, "no kernel gives the right results on this CPU: " + s.infos.back().note);
  if (name.empty()) return s.choices[s.best];
  std::string known;
  for (size_t i = 0; i < s.infos.size(); ++i) {
    const KernelInfo& info = s.infos[i];
    known += (i ? ", " : "") + info.name;
    if (info.name != name) continue;
    if (info.verified) return s.choices[i];
    throw Error(ErrorCode::kArgument, "kernel \"" + name + "\" cannot be used: " + info.note);
  }
  throw Error(ErrorCode::kArgument, "kernel \"" + name + "\" is not known; known: " + known);
}

std::vector<std::string> kernel_warnings() {
  std::vector<std::string> lines;
  for (const KernelInfo& info : state().infos)
    if (info.compiled && info.supported && !info.verified)
      lines.push_back("kernel \"" + info.name + "\" failed its self-check and is not used: " + info.note);
  return lines;
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

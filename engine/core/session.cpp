#include "session.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <map>
#include <memory>
#include <set>

#include "dispatch.h"
#include "error.h"
#include "memory.h"
#include "onnx_reader.h"
#include "plan.h"
#include "simplify.h"

namespace nasb {
namespace {

constexpr int kMostThreads = 256;
// Bytes that one running call may take. Networks of images of 224x224 take 4 to 30 MB.
constexpr size_t kMostWorkspace = size_t{2} << 30;

int checked(int threads) {
  if (threads < 0 || threads > kMostThreads)
    throw Error(ErrorCode::kArgument, "threads is " + std::to_string(threads) +
                                          "; 0 (as many as the process may use) to " + std::to_string(kMostThreads));
  return threads > 0 ? threads : std::min(available_threads(), kMostThreads);
}

void refuse_large_workspace(const Plan& plan, int threads) {
  const size_t bytes = plan.workspace_bytes(threads);
  if (bytes <= kMostWorkspace) return;
  const Tensor& largest =
      *std::max_element(plan.tensors.begin(), plan.tensors.end(),
                        [](const Tensor& a, const Tensor& b) { return a.elements() < b.elements(); });
  throw Error(ErrorCode::kUnsupported, "a run would take " + std::to_string(bytes / 1000000) + " MB of memory, " +
                                           std::to_string(kMostWorkspace / 1000000) +
                                           " MB are the most; its largest tensor, \"" + largest.name + "\", has " +
                                           std::to_string(largest.channels) + " x " + std::to_string(largest.height) +
                                           " x " + std::to_string(largest.width) + " elements");
}

// The memory of one running call, reused by later ones.
struct Buffers {
  Buffers(const Plan& plan, int threads) : memory(plan.workspace_bytes(threads)) {
    workspace.arena = memory.data();
    workspace.offsets = &plan.offsets;
    workspace.shared = workspace.arena + plan.arena_bytes;
    workspace.threads = workspace.shared + plan.shared_bytes;
  }
  Memory memory;
  Workspace workspace;
};

void fill_image_tensor(const Tensor& t, const float* image, float* to) {
  const size_t plane = static_cast<size_t>(t.height) * t.width;
  for (size_t p = 0; p < plane; ++p)
    for (int c = 0; c < t.channels; ++c) to[p * t.channels + c] = image[c * plane + p];
}

// A tensor as the user knows it: channels first; signs as -1 and +1.
void hand_out(const Tensor& t, const Workspace& w, int id, float* to) {
  const size_t plane = static_cast<size_t>(t.height) * t.width;
  const int words = (t.channels + 31) / 32;
  for (size_t p = 0; p < plane; ++p)
    for (int c = 0; c < t.channels; ++c)
      to[c * plane + p] = !t.binary                                         ? w.floats(id)[p * t.channels + c]
                          : w.words(id)[p * words + c / 32] >> (c % 32) & 1 ? -1.0f
                                                                            : 1.0f;
}

}  // namespace

struct Session::Impl {
  Impl(const uint8_t* data, size_t size, const Options& options)
      : bytes(data, data + size), choice(choose_kernel(options.kernel)), pool(checked(options.threads)) {
    const onnx::Model model = onnx::read(data, size);
    Graph graph = lower(model);
    for (const Tensor& t : graph.tensors)
      if (!t.name.empty()) names.push_back(t.name);
    std::map<std::string, int> convolutions;
    for (const Layer& layer : graph.layers)
      if (layer.op == Op::kBinaryConv) ++convolutions[layer.name];
    for (const Layer& layer : graph.layers)  // of two with one name it cannot be told which is meant
      if (layer.op == Op::kBinaryConv && convolutions[layer.name] == 1) names.push_back(layer.name + ":accumulators");
    join_convolutions(graph, {});
    move_before_concat(graph, {});
    plan = make_plan(graph, {}, choice.kernel, *choice.isa);
    refuse_large_workspace(plan, pool.threads());
    metadata = model.metadata;
    input = graph.tensors[0].dims();
    output = graph.tensors[graph.output].dims();
  }

  ~Impl() {
    for (std::atomic<Buffers*>& slot : free) delete slot.load();
  }

  // Without a lock: a process may be forked while another thread is here.
  std::unique_ptr<Buffers> take(const Plan& of) const {
    if (&of == &plan)
      for (std::atomic<Buffers*>& slot : free)
        if (Buffers* b = slot.exchange(nullptr)) return std::unique_ptr<Buffers>(b);
    return std::make_unique<Buffers>(of, pool.threads());
  }

  void give_back(std::unique_ptr<Buffers> b) const {
    for (std::atomic<Buffers*>& slot : free) {
      Buffers* none = nullptr;
      if (slot.compare_exchange_strong(none, b.get())) return static_cast<void>(b.release());
    }
  }

  void begin(const Plan& of, const float* image, Workspace& w) const {
    w.image = image;
    if (of.image_tensor) fill_image_tensor(of.tensors[0], image, w.floats(0));
  }

  std::vector<uint8_t> bytes;  // of the file: inner tensors are handed out by a plan of their own
  Choice choice;
  mutable ThreadPool pool;
  Plan plan;
  std::map<std::string, std::string> metadata;
  std::vector<int64_t> input, output;
  std::vector<std::string> names;
  // Memory that no call has. More callers at once than processors are rare.
  mutable std::vector<std::atomic<Buffers*>> free = std::vector<std::atomic<Buffers*>>(available_threads());
};

Session::Session(const uint8_t* data, size_t size, const Options& options)
    : impl_(std::make_unique<Impl>(data, size, options)) {}
Session::~Session() = default;

const std::vector<int64_t>& Session::input_dims() const { return impl_->input; }
const std::vector<int64_t>& Session::output_dims() const { return impl_->output; }
const std::map<std::string, std::string>& Session::metadata() const { return impl_->metadata; }
int Session::threads() const { return impl_->pool.threads(); }
const std::string& Session::kernel() const { return impl_->choice.name; }
std::vector<std::string> Session::tensor_names() const { return impl_->names; }

size_t Session::workspace_bytes() const { return impl_->plan.workspace_bytes(impl_->pool.threads()); }

void Session::run(const float* images, int64_t batch, float* output) const {
  const Plan& plan = impl_->plan;
  const Tensor &in = plan.tensors[0], &out = plan.tensors[plan.output];
  std::unique_ptr<Buffers> buffers = impl_->take(plan);
  for (int64_t n = 0; n < batch; ++n) {
    impl_->begin(plan, images + n * in.elements(), buffers->workspace);
    for (const std::unique_ptr<Step>& step : plan.steps) step->run(buffers->workspace, impl_->pool);
    hand_out(out, buffers->workspace, plan.output, output + n * out.elements());
  }
  impl_->give_back(std::move(buffers));
}

std::map<std::string, Array> Session::inspect(const float* images, int64_t batch,
                                              const std::vector<std::string>& names) const {
  std::vector<std::string> accumulators;
  std::set<std::string> keep;
  const std::set<std::string> known(impl_->names.begin(), impl_->names.end());
  for (const std::string& name : names) {
    if (!known.count(name))
      throw Error(ErrorCode::kArgument, "\"" + name + "\" is not a tensor of this model (see tensor_names)");
    keep.insert(name);
    const size_t colon = name.rfind(":accumulators");
    if (colon != std::string::npos && colon + std::string(":accumulators").size() == name.size())
      accumulators.push_back(name.substr(0, colon));
  }
  Graph graph = lower(onnx::read(impl_->bytes.data(), impl_->bytes.size()), accumulators);
  join_convolutions(graph, keep);
  move_before_concat(graph, keep);
  const Plan plan = make_plan(graph, keep, impl_->choice.kernel, *impl_->choice.isa);
  refuse_large_workspace(plan, impl_->pool.threads());
  std::unique_ptr<Buffers> buffers = impl_->take(plan);
  std::map<std::string, Array> result;
  for (int id : plan.kept) {
    Array& array = result[plan.tensors[id].name];
    array.dims = plan.tensors[id].dims();
    array.dims.insert(array.dims.begin(), batch);
    array.values.resize(static_cast<size_t>(batch) * plan.tensors[id].elements());
  }
  for (int64_t n = 0; n < batch; ++n) {
    impl_->begin(plan, images + n * plan.tensors[0].elements(), buffers->workspace);
    for (const std::unique_ptr<Step>& step : plan.steps) step->run(buffers->workspace, impl_->pool);
    for (int id : plan.kept) {
      const Tensor& t = plan.tensors[id];
      hand_out(t, buffers->workspace, id, result[t.name].values.data() + n * t.elements());
    }
  }
  return result;
}

std::vector<LayerProfile> Session::profile(const float* image, int repeats) const {
  using Clock = std::chrono::steady_clock;
  const Plan& plan = impl_->plan;
  std::unique_ptr<Buffers> buffers = impl_->take(plan);
  std::vector<std::vector<double>> times(plan.steps.size());
  std::vector<int> active(plan.steps.size(), 1);
  ThreadPool::take_most_active();
  for (int r = 0; r < std::max(repeats, 1); ++r) {
    impl_->begin(plan, image, buffers->workspace);
    for (size_t i = 0; i < plan.steps.size(); ++i) {
      const Clock::time_point start = Clock::now();
      plan.steps[i]->run(buffers->workspace, impl_->pool);
      times[i].push_back(std::chrono::duration<double, std::milli>(Clock::now() - start).count());
      active[i] = std::max(active[i], ThreadPool::take_most_active());
    }
  }
  impl_->give_back(std::move(buffers));
  std::vector<LayerProfile> layers;
  for (size_t i = 0; i < plan.steps.size(); ++i) {
    std::nth_element(times[i].begin(), times[i].begin() + times[i].size() / 2, times[i].end());
    const Step& step = *plan.steps[i];
    LayerProfile p;
    p.name = step.name;
    p.operation = step.operation;
    p.kernel = step.kernel();
    p.threads = active[i];
    p.milliseconds = times[i][times[i].size() / 2];
    p.macs = step.macs;
    p.binary = step.binary;
    layers.push_back(p);
  }
  return layers;
}

}  // namespace nasb

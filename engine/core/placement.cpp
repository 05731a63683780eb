// Where tensors stand in memory.
#include "placement.h"

#include <algorithm>
#include <functional>
#include <numeric>
#include <queue>
#include <utility>
#include <vector>

#include "error.h"

namespace nasb {
namespace {

constexpr size_t kAlign = 64;

size_t align(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

class Placement {
 public:
  Placement(Plan& plan, const Graph& graph, const std::vector<bool>& kept)
      : plan_(plan), kept_(kept), root_(plan.tensors.size()) {
    std::iota(root_.begin(), root_.end(), 0);
    for (const Layer& layer : graph.layers)
      if (layer.op == Op::kAlias) root_[layer.output] = root_[layer.inputs[0]];
  }

  // Tensors whose lives do not overlap share memory.
  void run() {
    const size_t n = plan_.tensors.size();
    const int last_step = static_cast<int>(plan_.steps.size());
    std::vector<int> first(n, -1), last(n, -1);
    const auto touch = [&](int tensor, int step) {
      const int t = root(tensor);
      if (first[t] < 0) first[t] = step;
      last[t] = std::max(last[t], step);
    };
    const auto read = [&](int tensor, int step) {
      if (first[root(tensor)] < 0)
        throw Error(ErrorCode::kInternal,
                    "step \"" + plan_.steps[step]->name + "\" reads a tensor that no step before it writes");
      touch(tensor, step);
    };
    if (plan_.image_tensor) touch(0, 0);
    for (int i = 0; i < last_step; ++i) {
      const Step& step = *plan_.steps[i];
      for (int in : step.inputs)
        if (in != 0 || plan_.image_tensor) read(in, i);
      if (step.fused.residual >= 0) read(step.fused.residual, i);
      if (step.fused.store || step.fused.signs.empty()) touch(step.output, i);
      for (const Fused::Sign& s : step.fused.signs) touch(s.tensor, i);
      plan_.shared_bytes = std::max(plan_.shared_bytes, step.shared_bytes);
      plan_.thread_bytes = std::max(plan_.thread_bytes, step.thread_bytes);
    }
    for (size_t t = 0; t < n; ++t)
      if (kept_[t] && first[root(t)] >= 0) last[root(t)] = last_step;
    reuse_residuals(first, last);
    find_places(first, last);
    for (size_t t = 0; t < n; ++t) plan_.offsets[t] = plan_.offsets[root(t)];
  }

 private:
  // A step writes its output over its residual where nobody reads that later: each element is read just before it is
  // written, and half the memory passes through the caches.
  void reuse_residuals(std::vector<int>& first, std::vector<int>& last) {
    for (int i = 0; i < static_cast<int>(plan_.steps.size()); ++i) {
      const Step& step = *plan_.steps[i];
      if (step.fused.residual < 0 || !step.fused.store || step.fused.residual_channels != step.output_channels)
        continue;
      const int from = root(step.fused.residual), to = root(step.output);
      const bool read = std::any_of(step.inputs.begin(), step.inputs.end(), [&](int in) { return root(in) == from; });
      if (from == to || read || last[from] != i || first[to] != i || step.output_stride != step.output_channels)
        continue;
      last[from] = last[to];
      first[to] = last[to] = -1;
      root_[to] = from;
    }
  }

  // The tensor whose memory this one has.
  int root(int tensor) {
    while (root_[tensor] != tensor) tensor = root_[tensor] = root_[root_[tensor]];
    return tensor;
  }

  // The largest first, each at the lowest place that is free while it lives. That compares each with all, so that there
  // is a limit, far above what networks have. The rest, which are smaller, take turns in slots of one size.
  void find_places(const std::vector<int>& first, const std::vector<int>& last) {
    constexpr size_t kSearched = 4096;
    const size_t n = plan_.tensors.size();
    std::vector<size_t> bytes(n, 0);
    std::vector<int> order;
    for (size_t t = 0; t < n; ++t) {
      if (first[t] < 0) continue;
      const Tensor& x = plan_.tensors[t];
      const size_t pixels = static_cast<size_t>(x.height) * x.width;
      // An epilogue may read 32 channels behind the tensor.
      bytes[t] = align(
          (x.binary ? pixels * ((x.channels + 31) / 32) * sizeof(uint32_t) : pixels * x.channels * sizeof(float)) +
          3 * kAlign);
      order.push_back(static_cast<int>(t));
    }
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return bytes[a] > bytes[b]; });
    plan_.offsets.assign(n, 0);
    const auto rest = order.begin() + std::min(order.size(), kSearched);
    std::vector<int> placed;
    for (auto next = order.begin(); next != rest; ++next) {
      const int t = *next;
      size_t at = 0;
      for (int other : placed)  // sorted by place
        if (first[t] <= last[other] && first[other] <= last[t] && plan_.offsets[other] < at + bytes[t] &&
            at < plan_.offsets[other] + bytes[other])
          at = plan_.offsets[other] + bytes[other];
      plan_.offsets[t] = at;
      plan_.arena_bytes = std::max(plan_.arena_bytes, at + bytes[t]);
      placed.insert(std::upper_bound(placed.begin(), placed.end(), t,
                                     [&](int a, int b) { return plan_.offsets[a] < plan_.offsets[b]; }),
                    t);
    }
    if (rest == order.end()) return;
    const size_t slot = bytes[*rest];
    using Slot = std::pair<int, size_t>;  // the last step that reads it; where it is
    std::priority_queue<Slot, std::vector<Slot>, std::greater<>> slots;
    std::sort(rest, order.end(), [&](int a, int b) { return first[a] < first[b]; });
    for (auto next = rest; next != order.end(); ++next) {
      size_t& at = plan_.offsets[*next];
      if (!slots.empty() && slots.top().first < first[*next]) {
        at = slots.top().second;
        slots.pop();
      } else {
        at = plan_.arena_bytes;
        plan_.arena_bytes += slot;
      }
      slots.push({last[*next], at});
    }
  }

  Plan& plan_;
  const std::vector<bool>& kept_;
  std::vector<int> root_;  // see root()
};

}  // namespace

void place_tensors(Plan& plan, const Graph& graph, const std::vector<bool>& kept) {
  Placement(plan, graph, kept).run();
}

}  // namespace nasb

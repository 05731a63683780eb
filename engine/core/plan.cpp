#include "plan.h"

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>
#include <queue>
#include <utility>

#include "error.h"

namespace nasb {
namespace {

constexpr size_t kAlign = 64;

size_t align(size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

const char* op_name(Op op) {
  switch (op) {
    case Op::kConv:
      return "Conv";
    case Op::kBinaryConv:
      return "BinaryConv2d";
    case Op::kBinarize:
      return "Binarize";
    case Op::kUnpack:
      return "Unpack";
    case Op::kMaxPool:
      return "MaxPool";
    case Op::kAveragePool:
      return "AveragePool";
    case Op::kScale:
      return "Scale";
    case Op::kShift:
      return "Shift";
    case Op::kRelu:
      return "Relu";
    case Op::kPrelu:
      return "PRelu";
    case Op::kAdd:
    case Op::kAddGate:
      return "Add";
    case Op::kMultiply:
      return "Mul";
    case Op::kClip:
      return "Clip";
    case Op::kSigmoid:
      return "Sigmoid";
    case Op::kHardSigmoid:
      return "HardSigmoid";
    case Op::kHardSwish:
      return "HardSwish";
    case Op::kConcat:
      return "Concat";
    case Op::kCrop:
      return "Slice";
    case Op::kPad:
      return "Pad";
    case Op::kFlatten:
      return "Flatten";
    case Op::kAlias:
      return "Reshape";
  }
  return "?";
}

class Planner {
 public:
  Planner(const Graph& graph, const std::set<std::string>& keep, BinaryKernel kernel, const Isa& isa)
      : graph_(graph),
        kernel_(kernel),
        isa_(isa),
        readers_(graph.tensors.size()),
        kept_(graph.tensors.size()),
        ready_(graph.tensors.size()),
        first_channel_(graph.tensors.size()),
        root_(graph.tensors.size()),
        done_(graph.layers.size()) {
    for (size_t i = 0; i < graph.layers.size(); ++i)
      for (int in : graph.layers[i].inputs) readers_[in].push_back(static_cast<int>(i));
    maker_.assign(graph.tensors.size(), -1);
    for (size_t i = 0; i < graph.layers.size(); ++i) {
      const Layer& l = graph.layers[i];
      maker_[l.output] = static_cast<int>(i);
      ragged_ |= is_convolution(l) && l.shape.groups > 1 && l.shape.group_outputs() % 32 != 0;
    }
    for (size_t t = 0; t < graph.tensors.size(); ++t)
      if (keep.count(graph.tensors[t].name)) kept_[t] = true, plan_.kept.push_back(static_cast<int>(t));
    kept_[graph.output] = true;
    std::iota(root_.begin(), root_.end(), 0);
    for (const Layer& layer : graph.layers)
      if (layer.op == Op::kAlias) root_[layer.output] = root_[layer.inputs[0]];
  }

  Plan run() {
    const bool from_image = !kept_[0] && std::all_of(readers_[0].begin(), readers_[0].end(),
                                                     [&](int i) { return graph_.layers[i].op == Op::kConv; });
    plan_.image_tensor = !from_image;
    ready_[0] = true;
    for (size_t i = 0; i < graph_.layers.size(); ++i) {
      if (done_[i]) continue;
      const Layer& layer = graph_.layers[i];
      done_[i] = true;
      if (layer.op == Op::kAlias) {
        ready_[layer.output] = true;
        continue;
      }
      std::unique_ptr<Step> step = make_step(layer, graph_, kernel_, isa_, from_image && layer.inputs[0] == 0);
      if (has_epilogue(layer.op))
        fuse(layer, *step);
      else
        step->operation = op_name(layer.op);
      if (step->fused.first_channel == 0 && step->output_stride == step->output_channels) ready_[step->output] = true;
      plan_.steps.push_back(std::move(step));
    }
    for (const auto& step : plan_.steps)
      if (step->fused.residual >= 0) step->fused.residual_channels = graph_.tensors[step->fused.residual].channels;
    plan_.tensors = graph_.tensors;
    plan_.output = graph_.output;
    place();
    return std::move(plan_);
  }

 private:
  // What an epilogue has done already; each stage comes once, in this order.
  enum Stage { kAffine, kShift, kResidual, kRectify, kDone };

  // A concatenation whose parts are steps.
  struct Joined {
    bool in_place = false;   // each step writes its channels of the whole
    bool stored = false;     // somebody reads the whole as real values
    std::vector<int> signs;  // layers that binarize it
    size_t missing = 0;      // parts without a step as yet
  };

  // The one layer that reads a tensor nobody else wants, or -1.
  int sole_reader(int tensor) const {
    if (kept_[tensor] || readers_[tensor].size() != 1) return -1;
    const int reader = readers_[tensor][0];
    return done_[reader] ? -1 : reader;
  }

  void fuse(const Layer& layer, Step& step) {
    Fused& f = step.fused;
    // What the sum itself ends in, and how far along the stages the step has come.
    int stage = kAffine, current = layer.output;
    if (layer.op == Op::kConv || layer.op == Op::kBinaryConv) {
      f.scale = layer.scale.empty() ? AlignedVector<float>{} : padded(layer.scale);
      f.bias = padded(layer.bias);
      stage = kResidual;
      step.operation = op_name(layer.op);
    } else if (layer.op == Op::kMaxPool || layer.op == Op::kAveragePool) {
      step.operation = op_name(layer.op);
    } else {
      current = layer.inputs[0];  // an epilogue of its own: its first layer is fused like any other
      if (layer.op == Op::kAdd) {
        f.residual = layer.inputs[1];
        stage = kRectify;
        current = layer.output;
        step.operation = op_name(layer.op);
      } else if (layer.op != Op::kBinarize) {
        stage = take(layer, f, stage, -1);
        current = layer.output;
        step.operation = op_name(layer.op);
      }
    }
    if (layer.op != Op::kBinarize) {
      current = chain(step, stage, current);
      const int next = layer.op == Op::kConv ? sole_reader(current) : -1;
      if (next >= 0 && step.take_pool(graph_.layers[next])) {
        done_[next] = true;
        step.operation += std::string(" + ") + op_name(graph_.layers[next].op);
        current = chain(step, kAffine, graph_.layers[next].output);
      }
    }
    step.output = current;
    if (layer.op != Op::kBinarize && write_into_concat(step, current)) return;
    const bool first = layer.op == Op::kBinarize;
    bool others = kept_[current];
    // Signs are packed a word at a time: a group's channels must begin at one.
    const bool packs = layer.shape.groups <= 1 || layer.shape.group_outputs() % 32 == 0 || !is_convolution(layer);
    const std::vector<int>& readers = readers_[current];
    auto next = readers.begin();  // the binarizations in front of this one have been made
    if (first) next = std::lower_bound(next, readers.end(), static_cast<int>(&layer - graph_.layers.data()));
    for (; next != readers.end() && !(first && f.signs.size() == kMaxSignOutputs); ++next) {
      const int reader = *next;
      const Layer& l = graph_.layers[reader];
      if (l.op == Op::kBinarize && packs && (&l == &layer || !done_[reader]) && f.signs.size() < kMaxSignOutputs &&
          (!first || ready_[current])) {
        f.signs.push_back({l.output, padded(l.values)});
        done_[reader] = true;
        ready_[l.output] = true;
        step.operation += std::string(step.operation.empty() ? "" : " + ") + op_name(l.op);
      } else {
        others = true;
      }
    }
    f.store = others && !first;
    if (first) step.output_channels = graph_.tensors[current].channels;
  }

  // Takes layers into the step's epilogue as long as each is the only reader of the one before; returns the last
  // output.
  int chain(Step& step, int stage, int current) {
    Fused& f = step.fused;
    for (int next = sole_reader(current); next >= 0; next = sole_reader(current)) {
      const Layer& l = graph_.layers[next];
      const int then = take(l, f, stage, current);
      if (then < 0) break;
      stage = then;
      done_[next] = true;
      current = l.output;
      step.operation += std::string(" + ") + op_name(l.op);
      // A shift in front of PReLU and one behind it belong to it.
      if (f.rectify == Rectify::kPrelu && (!f.shift_in.empty() || !f.shift_out.empty()))
        f.rectify = Rectify::kShiftedPrelu;
    }
    // What is not there adds -0: x + -0 is x, while -0 + 0 would be +0.
    if (f.rectify == Rectify::kShiftedPrelu) {
      if (f.shift_in.empty()) f.shift_in.assign(f.slope.size(), -0.0f);
      if (f.shift_out.empty()) f.shift_out.assign(f.slope.size(), -0.0f);
    }
    if (!f.scale.empty() && f.bias.empty()) f.bias.assign(f.scale.size(), -0.0f);
    return current;
  }

  // Where a tensor is read by a concatenation alone, and so are its other parts, each step writes its channels of the
  // whole.
  bool write_into_concat(Step& step, int current) {
    const int reader = readers_[current].size() == 1 && !kept_[current] ? readers_[current][0] : -1;
    if (reader < 0 || graph_.layers[reader].op != Op::kConcat) return false;
    const Layer& concat = graph_.layers[reader];
    Joined& joined = joined_by(concat);
    if (!joined.in_place) return false;
    Fused& f = step.fused;
    f.first_channel = first_channel_[current];
    const bool last = --joined.missing == 0;
    const int whole = concat.output, channels = graph_.tensors[current].channels;
    step.output = whole;
    step.output_stride = graph_.tensors[whole].channels;
    step.operation += " (part of Concat)";
    f.store = joined.stored;
    for (int next : joined.signs) {
      const Layer& l = graph_.layers[next];
      const auto begin = l.values.begin() + f.first_channel;
      f.signs.push_back({l.output, padded(std::vector<float>(begin, begin + channels))});
      if (last) done_[next] = ready_[l.output] = true;
    }
    ready_[current] = true;
    if (last) done_[reader] = ready_[whole] = true;
    return true;
  }

  // Made once for each concatenation: all its parts must get the same answer, and looking through all of them for each
  // would take the square of their number.
  Joined& joined_by(const Layer& concat) {
    const auto [found, added] = joined_.try_emplace(concat.output);
    Joined& joined = found->second;
    if (!added) return joined;
    joined.stored = kept_[concat.output];
    for (int reader : readers_[concat.output])
      if (graph_.layers[reader].op == Op::kBinarize)
        joined.signs.push_back(reader);
      else
        joined.stored = true;
    joined.in_place = can_join(concat, joined.signs.size());
    joined.missing = concat.inputs.size();
    int channel = 0;
    for (int in : concat.inputs) {
      first_channel_[in] = channel;
      channel += graph_.tensors[in].channels;
    }
    return joined;
  }

  bool can_join(const Layer& concat, size_t signs) const {
    if (signs > kMaxSignOutputs || (signs && ragged_)) return false;
    int channel = 0;
    for (int in : concat.inputs) {
      if (kept_[in] || readers_[in].size() != 1 || (signs && channel % 32) || maker_[in] < 0) return false;
      const Op op = graph_.layers[maker_[in]].op;
      if (!has_epilogue(op) || op == Op::kBinarize) return false;
      channel += graph_.tensors[in].channels;
    }
    return true;
  }

  static bool is_convolution(const Layer& layer) { return layer.op == Op::kConv || layer.op == Op::kBinaryConv; }

  // Takes a layer into the epilogue. Returns the stage after it, or -1 where its turn is over.
  int take(const Layer& l, Fused& f, int stage, int current) const {
    switch (l.op) {
      case Op::kScale:
        if (stage > kAffine || !f.scale.empty()) return -1;
        f.scale = padded(l.values);
        return kShift;
      case Op::kShift: {
        if (stage <= kShift) {
          f.bias = padded(l.values);
          return kResidual;
        }
        const int next = sole_reader(l.output);
        if (stage <= kRectify && f.shift_in.empty() && next >= 0 && graph_.layers[next].op == Op::kPrelu) {
          f.shift_in = padded(l.values);
          return kRectify;
        }
        if (stage == kDone && f.rectify == Rectify::kPrelu && f.shift_out.empty()) {
          f.shift_out = padded(l.values);
          return kDone;
        }
        if (stage == kDone && f.rectify == Rectify::kShiftedPrelu && f.shift_out.empty()) {
          f.shift_out = padded(l.values);
          return kDone;
        }
        return -1;
      }
      case Op::kAdd: {
        if (stage > kResidual || l.inputs[0] == l.inputs[1]) return -1;
        const int other = l.inputs[0] == current ? l.inputs[1] : l.inputs[0];
        const bool repeats = graph_.tensors[current].channels < graph_.tensors[l.output].channels;
        if (!ready_[other] || repeats) return -1;
        f.residual = other;
        return kRectify;
      }
      case Op::kRelu:
        if (stage > kRectify || !f.shift_in.empty()) return -1;
        f.rectify = Rectify::kRelu;
        return kDone;
      case Op::kClip:
        if (stage > kRectify || !f.shift_in.empty()) return -1;
        f.rectify = Rectify::kClip;
        f.low = l.low, f.high = l.high;
        return kDone;
      case Op::kPrelu:
        if (stage > kRectify) return -1;
        f.rectify = Rectify::kPrelu;
        f.slope = padded(l.values);
        return kDone;
      default:
        return -1;
    }
  }

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

  // Tensors whose lives do not overlap share memory.
  void place() {
    const size_t n = graph_.tensors.size();
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

  // The largest first, each at the lowest place that is free while it lives. That compares each with all, so that there
  // is a limit, far above what networks have. The rest, which are smaller, take turns in slots of one size.
  void find_places(const std::vector<int>& first, const std::vector<int>& last) {
    constexpr size_t kSearched = 4096;
    const size_t n = graph_.tensors.size();
    std::vector<size_t> bytes(n, 0);
    std::vector<int> order;
    for (size_t t = 0; t < n; ++t) {
      if (first[t] < 0) continue;
      const Tensor& x = graph_.tensors[t];
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

  const Graph& graph_;
  BinaryKernel kernel_;
  const Isa& isa_;
  std::vector<std::vector<int>> readers_;
  std::vector<bool> kept_;          // must be in memory when the run ends
  std::vector<bool> ready_;         // written by a step that has been made already
  std::vector<int> maker_;          // the layer that computes a tensor, or -1
  std::map<int, Joined> joined_;    // by the whole
  std::vector<int> first_channel_;  // of a part, in the whole
  bool ragged_ = false;             // somewhere a group's outputs do not fill words of signs
  std::vector<int> root_;           // see root()
  std::vector<bool> done_;
  Plan plan_;
};

}  // namespace

Plan make_plan(const Graph& graph, const std::set<std::string>& keep, BinaryKernel kernel, const Isa& isa) {
  return Planner(graph, keep, kernel, isa).run();
}

}  // namespace nasb

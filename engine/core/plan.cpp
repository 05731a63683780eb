#include "plan.h"

#include <algorithm>
#include <map>
#include <utility>

#include "placement.h"

namespace nasb {
namespace {

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
    place_tensors(plan_, graph_, kept_);
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
  std::vector<bool> done_;
  Plan plan_;
};

}  // namespace

Plan make_plan(const Graph& graph, const std::set<std::string>& keep, BinaryKernel kernel, const Isa& isa) {
  return Planner(graph, keep, kernel, isa).run();
}

}  // namespace nasb

// Real convolutions and linear layers: packed weights, borders, tiles of pixels, pooling behind them.
#include <algorithm>
#include <cstring>

#include "steps.h"
#include "winograd.h"

namespace nasb {
namespace {

constexpr int kTile = 48;  // pixels of a work item; a multiple of every micro-kernel's rows
static_assert(kTile == kWinogradTiles * kWinogradOutputs);
constexpr int kPoolTile = 16;  // pixels of a row whose epilogue is one call

class ConvStep : public Step {
 public:
  ConvStep(const Layer& layer, const Isa& isa, bool from_image) : s_(layer.shape), isa_(isa), from_image_(from_image) {
    macs = s_.macs();
    if (Winograd::fits(layer)) {
      winograd_ = std::make_unique<Winograd>(layer, isa);
      shared_bytes = winograd_->shared_bytes();
      thread_bytes = winograd_->thread_bytes();
      return;
    }
    padded_height_ = (s_.out_height - 1) * s_.stride_height + (s_.kernel_height - 1) * s_.dilation_height + 1;
    padded_width_ = (s_.out_width - 1) * s_.stride_width + (s_.kernel_width - 1) * s_.dilation_width + 1;
    copies_ = from_image || s_.pad_top || s_.pad_left || padded_height_ > s_.in_height || padded_width_ > s_.in_width;
    if (!copies_) padded_width_ = s_.in_width;
    depthwise_ = s_.groups == s_.in_channels && s_.groups == s_.out_channels && s_.groups > 1;
    if (copies_) shared_bytes = aligned(sizeof(float) * padded_height_ * padded_width_ * s_.in_channels);
    const int taps = s_.taps(), inputs = s_.group_inputs();
    // A row of taps is contiguous where nothing lies between them.
    const bool rows = s_.groups == 1 && s_.dilation_width == 1;
    for (int ky = 0; ky < s_.kernel_height; ++ky)
      for (int kx = 0; kx < (rows ? 1 : s_.kernel_width); ++kx)
        segments_.push_back((ky * s_.dilation_height * padded_width_ + kx * s_.dilation_width) * s_.in_channels);
    segment_length_ = rows ? s_.kernel_width * inputs : inputs;
    if (depthwise_) {
      weights_.assign(static_cast<size_t>(taps) * s_.in_channels + kBlock, 0);
      for (int c = 0; c < s_.in_channels; ++c)
        for (int t = 0; t < taps; ++t)
          weights_[static_cast<size_t>(t) * s_.in_channels + c] = layer.weights[static_cast<size_t>(c) * taps + t];
      thread_bytes = aligned(sizeof(float) * kBlock) + aligned(sizeof(void*) * taps);
      return;
    }
    const int columns = isa.gemm_columns, outputs = s_.group_outputs(), depth = taps * inputs;
    group_size_ = static_cast<size_t>((outputs + columns - 1) / columns) * columns * depth;
    weights_.assign(group_size_ * s_.groups, 0);
    for (int o = 0; o < s_.out_channels; ++o) {
      const int g = o / outputs, own = o % outputs;
      float* to =
          weights_.data() + g * group_size_ + static_cast<size_t>(own / columns) * columns * depth + own % columns;
      for (int t = 0; t < taps; ++t)
        for (int c = 0; c < inputs; ++c)
          to[static_cast<size_t>(t * inputs + c) * columns] =
              layer.weights[(static_cast<size_t>(o) * inputs + c) * taps + t];
    }
    thread_bytes = aligned(sizeof(float) * kTile * kBlock) + aligned(sizeof(void*) * kTile);
  }

  void run(const Workspace& w, ThreadPool& pool) const override {
    const float* x = from_image_ ? nullptr : w.floats(inputs[0]);
    float* to = reinterpret_cast<float*>(w.shared);
    if (winograd_)
      winograd_->transform(x, from_image_ ? w.image : nullptr, to, w.threads, thread_bytes, pool), x = to;
    else if (copies_)
      copy_padded(x, w.image, to, pool), x = to;
    const Epilogue e = epilogue(w);
    if (depthwise_) return run_depthwise(x, e, w, pool);
    if (pooled_) return run_pooled(x, e, w, pool);
    if (winograd_) return run_rows(x, e, w, pool);
    const int pixels = s_.pixels(), tiles = (pixels + kTile - 1) / kTile, outputs = s_.group_outputs();
    const int blocks = (outputs + kBlock - 1) / kBlock;
    const int splits = channel_splits(tiles * s_.groups, blocks, pool);
    pool.parallel(tiles * s_.groups * splits, [&](int item, int thread) {
      uint8_t* scratch = w.threads + thread_bytes * thread;
      const int split = item % splits, g = item / splits % s_.groups, begin = item / splits / s_.groups * kTile;
      const int from = blocks * split / splits * kBlock, to = std::min(outputs, blocks * (split + 1) / splits * kBlock);
      sum(x, g, begin, begin, std::min(kTile, pixels - begin), from, to, e, scratch);
    });
  }

  // A pooled map is made row by row from a ring of convolved rows, which never leave the cache.
  bool take_pool(const Layer& layer) override {
    const ConvShape& p = layer.shape;
    if (fused.residual >= 0 || layer.op != Op::kMaxPool || depthwise_ || s_.groups > 1 || p.dilation_height != 1 ||
        p.dilation_width != 1)
      return false;
    pooled_ = true;
    pool_ = p;
    convolved_ = std::move(fused);
    fused = Fused{};
    ring_bytes_ = aligned(sizeof(float) * p.kernel_height * s_.out_width * s_.out_channels);
    tile_bytes_ = thread_bytes;
    thread_bytes += ring_bytes_ + aligned(sizeof(float) * kPoolTile * kBlock) + aligned(sizeof(void*) * p.taps());
    return true;
  }

  std::string kernel() const override {
    return std::string(winograd_ ? "winograd_" : depthwise_ ? "depthwise_" : "gemm_") + isa_.name;
  }

 private:
  // The input with its border of zeros, channels last.
  void copy_padded(const float* x, const float* image, float* to, ThreadPool& pool) const {
    const int channels = s_.in_channels;
    const size_t row = static_cast<size_t>(padded_width_) * channels;
    const int left = std::min(s_.pad_left, padded_width_),
              inside = std::max(0, std::min(s_.in_width, padded_width_ - left));
    constexpr int kRows = 4;
    pool.parallel((padded_height_ + kRows - 1) / kRows, [&](int item, int) {
      for (int r = item * kRows; r < std::min(padded_height_, (item + 1) * kRows); ++r) {
        float* out = to + r * row;
        const int y = r - s_.pad_top;
        if (y < 0 || y >= s_.in_height) {
          std::memset(out, 0, row * sizeof(float));
          continue;
        }
        std::memset(out, 0, sizeof(float) * left * channels);
        float* body = out + static_cast<size_t>(left) * channels;
        std::memset(body + static_cast<size_t>(inside) * channels, 0,
                    sizeof(float) * (padded_width_ - left - inside) * channels);
        if (!from_image_) {
          std::memcpy(body, x + static_cast<size_t>(y) * s_.in_width * channels, sizeof(float) * inside * channels);
          continue;
        }
        const size_t plane = static_cast<size_t>(s_.in_height) * s_.in_width;
        const float* from = image + static_cast<size_t>(y) * s_.in_width;
        if (channels == 3) {
          for (int i = 0; i < inside; ++i) {
            body[3 * i] = from[i];
            body[3 * i + 1] = from[plane + i];
            body[3 * i + 2] = from[2 * plane + i];
          }
          continue;
        }
        constexpr int kColumns = 16;  // what is written stays in the first cache until all channels are there
        for (int begin = 0; begin < inside; begin += kColumns)
          for (int c = 0; c < channels; ++c)
            for (int i = begin; i < std::min(inside, begin + kColumns); ++i)
              body[static_cast<size_t>(i) * channels + c] = from[c * plane + i];
      }
    });
  }

  // Sums of `count` pixels from `begin` on, for the channels [from, to) of a group, into e's pixels from `first_pixel`
  // on.
  void sum(const float* x, int group, int begin, int first_pixel, int count, int from, int to, const Epilogue& e,
           uint8_t* scratch) const {
    const float** first = reinterpret_cast<const float**>(scratch + aligned(sizeof(float) * kTile * kBlock));
    int y = begin / s_.out_width, column = begin % s_.out_width;
    for (int p = 0; p < count; ++p) {
      const size_t at = static_cast<size_t>(y) * s_.stride_height * padded_width_ + column * s_.stride_width;
      first[p] = x + at * s_.in_channels + group * s_.group_inputs();
      if (++column == s_.out_width) column = 0, ++y;
    }
    GemmLayer layer;
    layer.weights = weights_.data() + group * group_size_;
    layer.segments = segments_.data();
    layer.segment_count = static_cast<int>(segments_.size());
    layer.segment_length = segment_length_;
    layer.first_output = group * s_.group_outputs();
    isa_.gemm_tile(layer, first, first_pixel, count, from, to - from, e, reinterpret_cast<float*>(scratch));
  }

  // A tile of a row from column `begin` on, into e's pixels from `first_pixel` on.
  void sum_tile(const float* x, int row, int begin, int first_pixel, const Epilogue& e, uint8_t* scratch) const {
    const int count = std::min(kTile, s_.out_width - begin);
    if (winograd_)
      winograd_->sum(x, row, begin, first_pixel, count, e, scratch);
    else
      sum(x, 0, row * s_.out_width + begin, first_pixel, count, 0, s_.out_channels, e, scratch);
  }

  void run_rows(const float* x, const Epilogue& e, const Workspace& w, ThreadPool& pool) const {
    const int tiles = (s_.out_width + kTile - 1) / kTile;
    pool.parallel(s_.out_height * tiles, [&](int item, int thread) {
      const int row = item / tiles, begin = item % tiles * kTile;
      sum_tile(x, row, begin, row * s_.out_width + begin, e, w.threads + thread_bytes * thread);
    });
  }

  void run_pooled(const float* x, const Epilogue& e, const Workspace& w, ThreadPool& pool) const {
    const ConvShape& p = pool_;
    const int bands = pool.threads() == 1 ? 1 : std::min(p.out_height, 2 * pool.threads());
    const size_t row_floats = static_cast<size_t>(s_.out_width) * s_.out_channels;
    pool.parallel(bands, [&](int band, int thread) {
      uint8_t* scratch = w.threads + thread_bytes * thread;
      float* ring = reinterpret_cast<float*>(scratch + tile_bytes_);
      float* acc = reinterpret_cast<float*>(scratch + tile_bytes_ + ring_bytes_);
      const float** taps = reinterpret_cast<const float**>(acc + kPoolTile * kBlock);
      Epilogue rows = parameters(convolved_, s_.out_channels);
      int made = -1;  // the last convolved row
      for (int oy = p.out_height * band / bands; oy < p.out_height * (band + 1) / bands; ++oy) {
        const int top = std::max(0, oy * p.stride_height - p.pad_top);
        const int end = std::min(s_.out_height, oy * p.stride_height - p.pad_top + p.kernel_height);
        for (int r = std::max(made + 1, top); r < end; made = r++) {
          rows.output = ring + r % p.kernel_height * row_floats;
          for (int begin = 0; begin < s_.out_width; begin += kTile) sum_tile(x, r, begin, begin, rows, scratch);
        }
        for (int c = 0; c < s_.out_channels; c += kBlock) {
          const int channels = std::min(kBlock, s_.out_channels - c);
          for (int begin = 0; begin < p.out_width; begin += kPoolTile) {
            const int count = std::min(kPoolTile, p.out_width - begin);
            for (int i = 0, columns; i < count; i += columns) {
              const int x0 = (begin + i) * p.stride_width - p.pad_left;
              const int left = std::max(0, x0), right = std::min(s_.out_width, x0 + p.kernel_width);
              // Outputs whose taps lie inside of a row are made together.
              columns = right - left < p.kernel_width ? 1 : (s_.out_width - right) / p.stride_width + 1;
              columns = std::min(columns, count - i);
              int n = 0;
              for (int y = top; y < end; ++y)
                for (int column = left; column < right; ++column)
                  taps[n++] =
                      ring + y % p.kernel_height * row_floats + static_cast<size_t>(column) * s_.out_channels + c;
              const size_t step = static_cast<size_t>(p.stride_width) * s_.out_channels;
              isa_.pool({taps, n, columns, static_cast<size_t>(channels), step, kBlock, true, 1.0f}, acc + i * kBlock);
            }
            isa_.epilogue(e, acc, oy * p.out_width + begin, count, c, channels);
          }
        }
      }
    });
  }

  void run_depthwise(const float* x, const Epilogue& e, const Workspace& w, ThreadPool& pool) const {
    pool.parallel(s_.out_height, [&](int oy, int thread) {
      float* acc = reinterpret_cast<float*>(w.threads + thread_bytes * thread);
      const float** taps =
          reinterpret_cast<const float**>(w.threads + thread_bytes * thread + aligned(sizeof(float) * kBlock));
      for (int ox = 0; ox < s_.out_width; ++ox) {
        const size_t at = static_cast<size_t>(oy) * s_.stride_height * padded_width_ + ox * s_.stride_width;
        for (int c = 0; c < s_.in_channels; c += kBlock) {
          const int count = std::min(kBlock, s_.in_channels - c);
          for (size_t t = 0; t < segments_.size(); ++t) taps[t] = x + at * s_.in_channels + segments_[t] + c;
          isa_.depthwise(taps, weights_.data() + c, s_.in_channels, s_.taps(), count, acc);
          isa_.epilogue(e, acc, oy * s_.out_width + ox, 1, c, count);
        }
      }
    });
  }

  ConvShape s_;
  const Isa& isa_;
  std::unique_ptr<Winograd>
      winograd_;  // where it fits; then of the members below only the pooling's and from_image_ count
  bool from_image_, copies_ = false, depthwise_ = false, pooled_ = false;
  ConvShape pool_;
  Fused convolved_;  // what follows the convolution, where pooling was taken in
  size_t ring_bytes_ = 0, tile_bytes_ = 0;
  int padded_height_ = 0, padded_width_ = 0, segment_length_ = 0;
  size_t group_size_ = 0;
  AlignedVector<float> weights_;
  std::vector<int32_t> segments_;
};

}  // namespace

std::unique_ptr<Step> make_conv_step(const Layer& layer, const Isa& isa, bool from_image) {
  return std::make_unique<ConvStep>(layer, isa, from_image);
}

}  // namespace nasb

// Pooling, whatever its window: rows of outputs in long runs, so that what a run costs besides its values is small.
#include <algorithm>
#include <limits>

#include "steps.h"

namespace nasb {
namespace {

constexpr int kRun = 2048;  // floats that are made at once, so that they stay in the first cache

class PoolStep : public Step {
 public:
  PoolStep(const Layer& layer, const Isa& isa)
      : s_(layer.shape),
        isa_(isa),
        largest_(layer.op == Op::kMaxPool),
        count_pads_(layer.count_pads),
        pad_bottom_(layer.begin[1]),
        pad_right_(layer.begin[2]),
        reach_((s_.kernel_width - 1) * s_.dilation_width) {
    columns_ = std::min(s_.out_width, std::max(1, kRun / s_.in_channels));
    if (columns_ == s_.out_width)  // at least two items, for two threads
      rows_ = std::max(1, std::min(kRun / (s_.out_width * s_.in_channels), (s_.out_height + 1) / 2));
    const size_t vertical = largest_ ? static_cast<size_t>(rows_) * read_width(columns_) * s_.in_channels : 0;
    made_at_ = aligned(sizeof(float) * vertical);
    const size_t made = static_cast<size_t>(rows_) * columns_ * s_.in_channels + kBlock;
    taps_at_ = made_at_ + aligned(sizeof(float) * made);
    thread_bytes = taps_at_ + aligned(sizeof(void*) * s_.taps());
  }
  void run(const Workspace& w, ThreadPool& pool) const override {
    const float* x = w.floats(inputs[0]);
    Epilogue e = epilogue(w);
    e.acc_stride = s_.in_channels;
    pool.parallel((s_.out_height + rows_ - 1) / rows_, [&](int item, int thread) {
      uint8_t* scratch = w.threads + thread_bytes * thread;
      const int row = item * rows_;
      Part part{row, std::min(rows_, s_.out_height - row), 0, 0, reinterpret_cast<const float**>(scratch + taps_at_)};
      for (; part.column < s_.out_width; part.column += part.columns) {
        part.columns = std::min(columns_, s_.out_width - part.column);
        const int pixel = row * s_.out_width + part.column, pixels = part.rows * part.columns;
        // Without anything to follow, values are made where they belong.
        const bool plain = is_plain(e);
        float* made = plain ? e.output + static_cast<size_t>(pixel) * e.output_stride
                            : reinterpret_cast<float*>(scratch + made_at_);
        if (largest_)
          largest(x, part, reinterpret_cast<float*>(scratch), made);
        else
          average(x, part, made);
        for (int c = 0; !plain && c < s_.in_channels; c += kBlock)
          isa_.epilogue(e, made + c, pixel, pixels, c, std::min(kBlock, s_.in_channels - c));
      }
    });
  }
  std::string kernel() const override { return std::string("pool_") + isa_.name; }

 private:
  // Outputs that are made at once; more than one row only where they are whole ones.
  struct Part {
    int row, rows, column, columns;
    const float** taps;  // scratch
  };

  bool is_plain(const Epilogue& e) const {
    return e.output && !e.scale && !e.bias && !e.residual && e.rectify == Rectify::kNone && e.sign_outputs == 0 &&
           e.output_stride == s_.in_channels;
  }
  // Inputs in a row that so many outputs of it read.
  int read_width(int columns) const { return (columns - 1) * s_.stride_width + reach_ + 1; }
  int top(int row) const { return row * s_.stride_height - s_.pad_top; }
  int left(int column) const { return column * s_.stride_width - s_.pad_left; }

  // (Each window has a tap inside of the image: lowering refuses others.)
  // The largest of each column of taps first, with -inf outside of the image, and of these the largest of each row.
  void largest(const float* x, const Part& p, float* read, float* made) const {
    constexpr float kNothing = -std::numeric_limits<float>::infinity();
    const size_t channels = s_.in_channels, row_floats = s_.in_width * channels;
    const size_t width = read_width(p.columns) * channels;
    const int first = left(p.column), from = std::max(0, first);
    const int to = std::max(from, std::min(s_.in_width, first + read_width(p.columns)));
    const size_t before = std::min((from - first) * channels, width), inside = (to - from) * channels;
    for (int row = 0; row < p.rows; ++row) {
      float* line = read + row * width;
      std::fill(line, line + before, kNothing);
      std::fill(line + std::min(before + inside, width), line + width, kNothing);
    }
    const int reach = (s_.kernel_height - 1) * s_.dilation_height;
    for (int row = 0, rows; row < p.rows; row += rows) {
      const int y = top(p.row + row);
      // Rows of outputs whose taps all lie inside are made together.
      rows = y < 0 || y + reach >= s_.in_height ? 1 : (s_.in_height - 1 - reach - y) / s_.stride_height + 1;
      rows = std::min(rows, p.rows - row);
      int taps = 0;
      for (int ky = 0; ky < s_.kernel_height; ++ky)
        if (const int iy = y + ky * s_.dilation_height; iy >= 0 && iy < s_.in_height)
          p.taps[taps++] = x + iy * row_floats + from * channels;
      float* line = read + row * width + before;
      isa_.pool({p.taps, taps, rows, inside, s_.stride_height * row_floats, width, true, 1.0f}, line);
    }
    for (int kx = 0; kx < s_.kernel_width; ++kx) p.taps[kx] = read + kx * s_.dilation_width * channels;
    const size_t step = s_.stride_width * channels, made_width = p.columns * channels;
    if (s_.stride_width == 1) {
      isa_.pool({p.taps, s_.kernel_width, p.rows, made_width, width, made_width, true, 1.0f}, made);
      return;
    }
    for (int row = 0; row < p.rows; ++row, made += made_width) {
      isa_.pool({p.taps, s_.kernel_width, p.columns, channels, step, channels, true, 1.0f}, made);
      for (int kx = 0; kx < s_.kernel_width; ++kx) p.taps[kx] += width;
    }
  }

  // Outputs whose taps lie inside of a row are made together, the others alone.
  void average(const float* x, const Part& p, float* made) const {
    const size_t channels = s_.in_channels;
    for (int row = 0; row < p.rows; ++row) {
      for (int i = 0, columns; i < p.columns; i += columns, made += columns * channels) {
        const int ix = left(p.column + i);
        columns = ix < 0 || ix + reach_ >= s_.in_width ? 1 : (s_.in_width - 1 - reach_ - ix) / s_.stride_width + 1;
        columns = std::min(columns, p.columns - i);
        int counted;
        const int taps = window(x, top(p.row + row), ix, p.taps, counted);
        const float factor = 1.0f / static_cast<float>(counted);
        isa_.pool({p.taps, taps, columns, channels, s_.stride_width * channels, channels, false, factor}, made);
      }
    }
  }

  // The taps inside of the image of the window whose corner is there; `counted`: what their average divides by.
  int window(const float* x, int top, int left, const float** taps, int& counted) const {
    const auto before = [](int first, int count, int dilation, int end) {  // taps that lie before `end`
      return first >= end ? 0 : std::min(count, (end - 1 - first) / dilation + 1);
    };
    const auto rows = [&](int end) { return before(top, s_.kernel_height, s_.dilation_height, end); };
    const auto columns = [&](int end) { return before(left, s_.kernel_width, s_.dilation_width, end); };
    int n = 0;
    for (int ky = rows(0); ky < rows(s_.in_height); ++ky)
      for (int kx = columns(0); kx < columns(s_.in_width); ++kx) {
        const size_t iy = top + ky * s_.dilation_height, ix = left + kx * s_.dilation_width;
        taps[n++] = x + (iy * s_.in_width + ix) * s_.in_channels;
      }
    counted = count_pads_ ? rows(s_.in_height + pad_bottom_) * columns(s_.in_width + pad_right_) : n;
    return n;
  }

  ConvShape s_;
  const Isa& isa_;
  bool largest_, count_pads_;
  int pad_bottom_, pad_right_;
  int reach_;               // from a window's first input of a row to its last one
  int columns_, rows_ = 1;  // of a Part, at most
  size_t made_at_, taps_at_;
};

}  // namespace

std::unique_ptr<Step> make_pool_step(const Layer& layer, const Isa& isa) {
  return std::make_unique<PoolStep>(layer, isa);
}

}  // namespace nasb

// Fuzzing harness of all that reads a file: the C API, the C++ session with its inner tensors, and the metadata's JSON.
// Any bytes are either taken or refused; what is small enough also runs, and fused gives what one layer after the other
// gives.
#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/graph.h"
#include "core/session.h"
#include "nasb.h"
#include "preprocess/json.h"
#include "preprocess/preprocessing.h"

namespace {

// Bounds what one input may cost.
constexpr double kMostWork = 1 << 20;
constexpr int kMostSide = 512;

constexpr int kWidth = 5, kHeight = 4, kPixels = kWidth * kHeight * 3;  // of the image that is prepared

void check(bool holds) {
  if (!holds) std::abort();
}

// Elements and MACs of one image.
double work(const nasb::Graph& graph) {
  double sum = 0;
  for (const nasb::Tensor& t : graph.tensors) sum += t.elements();
  for (const nasb::Layer& l : graph.layers) {
    const double taps = l.op == nasb::Op::kMaxPool || l.op == nasb::Op::kAveragePool ? l.shape.taps() : 0;
    sum += l.shape.macs() + taps * graph.tensors[l.output].elements();
  }
  return sum;
}

size_t elements(const std::vector<int64_t>& dims) {
  size_t product = 1;
  for (const int64_t dim : dims) product *= static_cast<size_t>(dim);
  return product;
}

std::vector<float> some_image(size_t size) {
  std::vector<float> image(size);
  for (size_t i = 0; i < size; ++i) image[i] = static_cast<float>(i % 7) - 3.0f;
  return image;
}

bool equal(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

// As a program in C does it.
void through_c(const uint8_t* data, size_t size, bool small) {
  nasb_options options = NASB_OPTIONS_DEFAULT;
  options.threads = 1;
  nasb_session* session = nullptr;
  const nasb_status status = nasb_create_from_memory(data, size, &options, &session);
  check((status == NASB_OK) == (session != nullptr));
  check(status != NASB_ERROR_INTERNAL && status != NASB_ERROR_ARGUMENT);
  if (!session) {
    const char* text = nasb_last_error();
    return check(*text != '\0' && !std::strpbrk(text, "\r\n"));
  }
  for (size_t i = 0; i < nasb_class_count(session); ++i) check(nasb_class_name(session, i) != nullptr);
  check(nasb_class_name(session, nasb_class_count(session)) == nullptr);
  if (small) {
    std::vector<float> image = some_image(nasb_input_size(session)), output(nasb_output_size(session));
    check(nasb_run(session, image.data(), 1, output.data()) == NASB_OK);
    const char* text = nasb_metadata(session, "nasb.preprocessing");
    const uint8_t pixels[kPixels] = {1, 2, 3};
    if (text && nasb::Preprocessing::parse(text).resize <= kMostSide)
      check(nasb_preprocess(session, pixels, kWidth, kHeight, 3, image.data()) == NASB_OK);
  }
  nasb_destroy(session);
}

// All inner tensors, among them `output`.
void through_cpp(const uint8_t* data, size_t size, bool small, const std::string& output) {
  static const char* const kKernels[] = {"", "portable", "reference"};
  nasb::Options options;
  options.threads = 1;
  options.kernel = kKernels[size % 3];
  const nasb::Session session(data, size, options);
  if (!small) return;
  const std::vector<float> image = some_image(elements(session.input_dims()));
  std::vector<float> fused(elements(session.output_dims()));
  session.run(image.data(), 1, fused.data());
  const auto inner = session.inspect(image.data(), 1, session.tensor_names());
  check(std::equal(fused.begin(), fused.end(), inner.at(output).values.begin(), equal));
}

void read_text(const std::string& text) {
  nasb::json::parse(text);
  const nasb::Preprocessing steps = nasb::Preprocessing::parse(text);
  if (steps.resize > kMostSide) return;
  const nasb::Image image{kWidth, kHeight, 3, std::vector<uint8_t>(kPixels, 200)};
  std::vector<float> made(elements({steps.channels, steps.size, steps.size}));
  steps.apply(image, made.data());
}

template <class Body>
void refusable(const Body& body) {
  try {
    body();
  } catch (const nasb::Error&) {  // a refusal
  }
}

}  // namespace

// The kernels' self-check, once in a process, is no part of the time of an input.
extern "C" int LLVMFuzzerInitialize(int*, char***) {
  nasb::kernels();
  return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  bool small = false;
  std::string output;
  refusable([&] {
    const nasb::onnx::Model model = nasb::onnx::read(data, size);
    small = work(nasb::lower(model)) <= kMostWork;
    output = model.outputs[0].name;
  });
  through_c(data, size, small);
  refusable([&] { through_cpp(data, size, small, output); });
  refusable([&] { read_text(std::string(reinterpret_cast<const char*>(data), size)); });
  return 0;
}

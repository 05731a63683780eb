// nasb-run: classifies an image by a 1-bit ONNX file, without Python. Uses the C API alone.
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "core/utf8.h"
#include "image_file.h"
#include "nasb.h"

namespace {

using nasb::UserError;

const char* const kHelp =
    "usage: nasb-run MODEL.onnx IMAGE [--threads N] [--top K] [--repeat N] [--kernel NAME] [--json]\n"
    "\n"
    "Classify an image by a network that nasb exported. IMAGE is .ppm / .pgm (binary, 8 bits) or .npy: uint8 [H, W, 3] "
    "pixels, which\n"
    "are resized, cropped and normalized as the file says; or float32 [C, H, W] or [N, C, H, W], which is the "
    "network's input.\n"
    "\n"
    "  --threads N    threads; 0: as many as the process may use (default: 0)\n"
    "  --top K        classes to print for each image; 0: all (default: 3)\n"
    "  --repeat N     run N times and print the median time and its quartiles (default: 1)\n"
    "  --kernel NAME  of binary convolutions: reference, portable, avx2, avx512, avx512_vpopcntdq, neon (default: the "
    "best that works here)\n"
    "  --json         print JSON\n"
    "  --version      print the version\n";

struct Arguments {
  std::string model, image, kernel;
  int threads = 0, top = 3, repeat = 1;
  bool json = false;
};

int whole_number(const std::string& option, const char* text, int least) {
  char* end = nullptr;
  const long value = text == nullptr ? 0 : std::strtol(text, &end, 10);
  if (text == nullptr || *text == '\0' || *end != '\0' || value < least || value > 1000000) {
    throw UserError(option + " is \"" + (text == nullptr ? "" : text) + "\"; give a whole number from " +
                    std::to_string(least) + " to 1000000");
  }
  return static_cast<int>(value);
}

Arguments parse(int count, char** words) {
  Arguments result;
  std::vector<std::string> positional;
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    const auto value = [&] { return i + 1 < count ? words[++i] : nullptr; };
    if (word == "--threads") {
      result.threads = whole_number(word, value(), 0);
    } else if (word == "--top") {
      result.top = whole_number(word, value(), 0);
    } else if (word == "--repeat") {
      result.repeat = whole_number(word, value(), 1);
    } else if (word == "--kernel") {
      const char* name = value();
      if (name == nullptr) throw UserError("--kernel: a name is missing");
      result.kernel = name;
    } else if (word == "--json") {
      result.json = true;
    } else if (word.size() > 1 && word[0] == '-') {
      throw UserError("unknown option " + word + "; see nasb-run --help");
    } else {
      positional.push_back(word);
    }
  }
  if (positional.size() != 2) throw UserError("give MODEL.onnx and one IMAGE; see nasb-run --help");
  result.model = positional[0];
  result.image = positional[1];
  return result;
}

void check(nasb_status status) {
  if (status != NASB_OK) throw UserError(nasb_last_error());
}

std::string text_of(const int64_t* shape, size_t count) {
  std::string result = "[";
  for (size_t i = 0; i < count; ++i) result += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return result + "]";
}

// The network's input, and how many images it is.
std::vector<float> prepare(const nasb_session* session, const std::string& path, size_t* batch) {
  nasb::ImageFile file = nasb::read_image_file(path);
  if (file.is_pixels()) {
    *batch = 1;
    std::vector<float> image(nasb_input_size(session));
    check(nasb_preprocess(session, file.pixels.data(), file.width, file.height, file.channels, image.data()));
    return image;
  }
  int64_t shape[3];
  check(nasb_input_shape(session, shape));
  if (!std::equal(shape, shape + 3, file.shape.begin() + 1)) {
    throw UserError(path + ": its images are " + text_of(file.shape.data() + 1, 3) + "; the network takes " +
                    text_of(shape, 3));
  }
  *batch = static_cast<size_t>(file.shape[0]);
  return std::move(file.values);
}

struct Class {
  size_t index;
  double probability;
  float score;
};

std::vector<Class> best_classes(const float* scores, size_t count, size_t top) {
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] > scores[b]; });
  double sum = 0;
  for (size_t i = 0; i < count; ++i) sum += std::exp(static_cast<double>(scores[i]) - scores[order[0]]);
  std::vector<Class> result;
  for (size_t i = 0; i < std::min(top, count); ++i) {
    result.push_back(
        {order[i], std::exp(static_cast<double>(scores[order[i]]) - scores[order[0]]) / sum, scores[order[i]]});
  }
  return result;
}

std::string class_name(const nasb_session* session, size_t index) {
  const char* name = nasb_class_name(session, index);
  return name == nullptr ? "class " + std::to_string(index) : name;
}

// As a string of JSON; a path's bytes that are no UTF-8 become U+FFFD.
std::string quoted(const std::string& text) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(text.data());
  std::string result = "\"";
  for (size_t at = 0, length; at < text.size(); at += std::max(length, size_t{1})) {
    const uint8_t c = bytes[at];
    length = nasb::utf8_length(bytes + at, text.size() - at);
    if (length == 0) {
      result += "\xEF\xBF\xBD";
    } else if (c < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\u%04x", static_cast<unsigned>(c));
      result += escape;
    } else {
      if (c == '"' || c == '\\') result += '\\';
      result.append(text, at, length);
    }
  }
  return result + "\"";
}

std::string json_number(double value, const char* format) {
  if (!std::isfinite(value)) return "null";
  char text[64];
  std::snprintf(text, sizeof text, format, value);
  return text;
}

// At a share of the sorted times, between neighbours in proportion.
double quantile(const std::vector<double>& sorted, double share) {
  const double at = share * static_cast<double>(sorted.size() - 1);
  const size_t low = static_cast<size_t>(at), high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (at - static_cast<double>(low)) * (sorted[high] - sorted[low]);
}

// Of NaN or infinite scores no probability can be made.
void refuse_infinite(const std::string& model, const std::vector<float>& scores, size_t classes) {
  const auto found = std::find_if(scores.begin(), scores.end(), [](float score) { return !std::isfinite(score); });
  if (found == scores.end()) return;
  const size_t at = static_cast<size_t>(found - scores.begin());
  throw UserError(model + ": the score of class " + std::to_string(at % classes) + " is " +
                  (std::isnan(*found) ? "NaN" : "infinite") + " for image " + std::to_string(at / classes) +
                  "; the image or the file's weights are not finite");
}

void run(const Arguments& arguments) {
  nasb_options options = NASB_OPTIONS_DEFAULT;
  options.threads = arguments.threads;
  options.kernel = arguments.kernel.c_str();
  nasb_session* made = nullptr;
  check(nasb_create_from_file(arguments.model.c_str(), &options, &made));
  const std::unique_ptr<nasb_session, decltype(&nasb_destroy)> session(made, &nasb_destroy);

  size_t batch = 0;
  const std::vector<float> images = prepare(made, arguments.image, &batch);
  const size_t classes = nasb_output_size(made);
  std::vector<float> scores(batch * classes);
  std::vector<double> times;
  for (int i = 0; i < arguments.repeat; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    check(nasb_run(made, images.data(), batch, scores.data()));
    times.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
  }
  refuse_infinite(arguments.model, scores, classes);
  std::sort(times.begin(), times.end());
  const double median = quantile(times, 0.5), lower = quantile(times, 0.25), upper = quantile(times, 0.75);

  const size_t top = arguments.top == 0 ? classes : static_cast<size_t>(arguments.top);
  if (arguments.json) {
    std::printf(
        "{\"model\": %s, \"image\": %s, \"engine\": \"%s\", \"threads\": %d, "
        "\"kernel\": %s,\n",
        quoted(arguments.model).c_str(), quoted(arguments.image).c_str(), nasb_version(), nasb_threads(made),
        quoted(nasb_kernel(made)).c_str());
    std::printf(
        " \"repeat\": %d, \"batch\": %zu, \"milliseconds\": {\"median\": %.4f, \"lower_quartile\": %.4f, "
        "\"upper_quartile\": %.4f},\n",
        arguments.repeat, batch, median, lower, upper);
    std::printf(" \"results\": [");
    for (size_t i = 0; i < batch; ++i) {
      std::printf("%s[", i > 0 ? ",\n  " : "");
      const std::vector<Class> best = best_classes(scores.data() + i * classes, classes, top);
      for (size_t k = 0; k < best.size(); ++k) {
        std::printf("%s{\"class\": %s, \"index\": %zu, \"probability\": %s, \"score\": %s}", k > 0 ? ", " : "",
                    quoted(class_name(made, best[k].index)).c_str(), best[k].index,
                    json_number(best[k].probability, "%.6g").c_str(), json_number(best[k].score, "%.9g").c_str());
      }
      std::printf("]");
    }
    std::printf("]}\n");
    return;
  }
  for (size_t i = 0; i < batch; ++i) {
    std::printf("%s%s: ", arguments.image.c_str(), batch > 1 ? ("[" + std::to_string(i) + "]").c_str() : "");
    const std::vector<Class> best = best_classes(scores.data() + i * classes, classes, top);
    for (size_t k = 0; k < best.size(); ++k) {
      std::printf("%s%s %.1f%%", k > 0 ? ", " : "", class_name(made, best[k].index).c_str(), 100 * best[k].probability);
    }
    std::printf("\n");
  }
  if (arguments.repeat > 1) {
    std::printf("median %.3f ms (quartiles %.3f to %.3f), %zu image%s, %d runs, %d thread%s, kernel %s\n", median,
                lower, upper, batch, batch > 1 ? "s" : "", arguments.repeat, nasb_threads(made),
                nasb_threads(made) > 1 ? "s" : "", nasb_kernel(made));
  }
}

}  // namespace

int main(int count, char** words) {
  for (int i = 1; i < count; ++i) {
    const std::string word = words[i];
    if (word == "--help" || word == "-h") {
      std::fputs(kHelp, stdout);
      return 0;
    }
    if (word == "--version") {
      std::printf("nasb-run %s\n", nasb_version());
      return 0;
    }
  }
  try {
    run(parse(count, words));
    if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0)
      throw UserError(std::string("the result cannot be written: ") + std::strerror(errno));
    return 0;
  } catch (const UserError& error) {
    std::fprintf(stderr, "nasb-run: %s\n", error.what());
    return 2;
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "nasb-run: out of memory\n");
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "nasb-run: %s\n", error.what());
    return 1;
  }
}

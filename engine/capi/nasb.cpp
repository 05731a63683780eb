// The C API over nasb::Session: every entry catches everything.
#include "nasb.h"

#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/session.h"
#include "preprocess/file.h"
#include "preprocess/json.h"
#include "preprocess/preprocessing.h"

struct nasb_session {
  nasb_session(const uint8_t* data, size_t size, const nasb::Options& options) : session(data, size, options) {}

  nasb::Session session;
  std::vector<std::string> class_names;
  std::optional<nasb::Preprocessing> preprocessing;
};

namespace {

thread_local char last_error[2048];

// Keeps one line: names in a message come from the file.
nasb_status failed(nasb_status status, const char* text) {
  std::snprintf(last_error, sizeof last_error, "%s", text);
  for (char* c = last_error; *c != '\0'; ++c) {
    if (*c == '\n' || *c == '\r') *c = ' ';
  }
  return status;
}

nasb_status status_of(nasb::ErrorCode code) {
  switch (code) {
    case nasb::ErrorCode::kFile:
      return NASB_ERROR_FILE;
    case nasb::ErrorCode::kUnsupported:
      return NASB_ERROR_UNSUPPORTED;
    case nasb::ErrorCode::kArgument:
      return NASB_ERROR_ARGUMENT;
    case nasb::ErrorCode::kInternal:
      break;
  }
  return NASB_ERROR_INTERNAL;
}

template <typename Body>
nasb_status guarded(const Body& body) {
  try {
    body();
    return NASB_OK;
  } catch (const nasb::Error& error) {
    return failed(status_of(error.code()), error.what());
  } catch (const std::bad_alloc&) {
    return failed(NASB_ERROR_MEMORY, "out of memory");
  } catch (const std::exception& error) {
    return failed(NASB_ERROR_INTERNAL, error.what());
  } catch (...) {
    return failed(NASB_ERROR_INTERNAL, "unknown exception");
  }
}

[[noreturn]] void refuse(const char* text) { throw nasb::Error(nasb::ErrorCode::kArgument, text); }

nasb::Options options_of(const nasb_options* options) {
  nasb::Options result;
  if (options == nullptr) return result;
  if (options->struct_size < sizeof(nasb_options))
    refuse("options.struct_size is too small; begin with NASB_OPTIONS_DEFAULT");
  result.threads = options->threads;
  if (options->kernel != nullptr) result.kernel = options->kernel;
  return result;
}

std::vector<std::string> read_class_names(const std::string& text) {
  std::vector<std::string> names;
  std::set<std::string> different;
  const nasb::json::Value list = nasb::json::parse(text);
  for (const nasb::json::Value& item : list.items) {
    if (item.kind != nasb::json::Kind::kText) break;
    names.push_back(item.text);
    if (!different.insert(item.text).second)
      throw nasb::Error(nasb::ErrorCode::kFile, "names \"" + item.text + "\" twice");
  }
  if (list.kind != nasb::json::Kind::kList || names.size() != list.items.size()) {
    throw nasb::Error(nasb::ErrorCode::kFile, "is not a list of texts");
  }
  return names;
}

size_t product(const std::vector<int64_t>& dims) {
  size_t result = 1;
  for (const int64_t dim : dims) result *= static_cast<size_t>(dim);
  return result;
}

// Once per process: results stay right without the kernel, but the user should know why they come slower.
void warn_of_kernels() {
  static const bool warned = [] {
    for (const std::string& line : nasb::kernel_warnings()) std::fprintf(stderr, "nasb: %s\n", line.c_str());
    return true;
  }();
  static_cast<void>(warned);
}

std::unique_ptr<nasb_session> create(const uint8_t* data, size_t size, const nasb_options* options) {
  warn_of_kernels();
  auto session = std::make_unique<nasb_session>(data, size, options_of(options));
  const auto& metadata = session->session.metadata();
  if (const auto found = metadata.find("nasb.class_names"); found != metadata.end()) {
    try {
      session->class_names = read_class_names(found->second);
    } catch (const nasb::Error& error) {
      throw nasb::Error(error.code(), std::string("metadata \"nasb.class_names\": ") + error.what());
    }
    const size_t classes = product(session->session.output_dims());
    if (session->class_names.size() != classes) {
      throw nasb::Error(nasb::ErrorCode::kFile,
                        "metadata \"nasb.class_names\": has " + std::to_string(session->class_names.size()) +
                            " names, but the network has " + std::to_string(classes) + " outputs");
    }
  }
  if (const auto found = metadata.find("nasb.preprocessing"); found != metadata.end()) {
    session->preprocessing = nasb::Preprocessing::parse(found->second);
    const nasb::Preprocessing& steps = *session->preprocessing;
    if (session->session.input_dims() != std::vector<int64_t>{steps.channels, steps.size, steps.size}) {
      throw nasb::Error(nasb::ErrorCode::kFile,
                        "metadata \"nasb.preprocessing\": does not make images of the network's input shape");
    }
  }
  return session;
}

}  // namespace

int nasb_api_version(void) { return NASB_API_VERSION; }

const char* nasb_version(void) {
  static const std::string* const text = new std::string(nasb::version());
  return text->c_str();
}

const char* nasb_last_error(void) { return last_error; }

nasb_status nasb_create_from_file(const char* path, const nasb_options* options, nasb_session** session) {
  return guarded([&] {
    if (session == nullptr) refuse("session is NULL");
    *session = nullptr;
    if (path == nullptr) refuse("path is NULL");
    try {
      const std::string bytes = nasb::read_file(path);
      *session = create(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), options).release();
    } catch (const nasb::Error& error) {
      if (error.code() == nasb::ErrorCode::kArgument) throw;
      throw nasb::Error(error.code(), std::string(path) + ": " + error.what());
    }
  });
}

nasb_status nasb_create_from_memory(const void* data, size_t size, const nasb_options* options,
                                    nasb_session** session) {
  return guarded([&] {
    if (session == nullptr) refuse("session is NULL");
    *session = nullptr;
    if (data == nullptr) refuse("data is NULL");
    *session = create(static_cast<const uint8_t*>(data), size, options).release();
  });
}

void nasb_destroy(nasb_session* session) { delete session; }

nasb_status nasb_input_shape(const nasb_session* session, int64_t shape[3]) {
  return guarded([&] {
    if (session == nullptr || shape == nullptr) refuse("session or shape is NULL");
    const std::vector<int64_t>& dims = session->session.input_dims();
    if (dims.size() != 3) refuse("the network's input is not an image [channels, height, width]");
    for (size_t i = 0; i < 3; ++i) shape[i] = dims[i];
  });
}

size_t nasb_input_size(const nasb_session* session) {
  return session == nullptr ? 0 : product(session->session.input_dims());
}

size_t nasb_output_size(const nasb_session* session) {
  return session == nullptr ? 0 : product(session->session.output_dims());
}

int nasb_threads(const nasb_session* session) { return session == nullptr ? 0 : session->session.threads(); }

const char* nasb_kernel(const nasb_session* session) {
  return session == nullptr ? nullptr : session->session.kernel().c_str();
}

size_t nasb_class_count(const nasb_session* session) { return session == nullptr ? 0 : session->class_names.size(); }

const char* nasb_class_name(const nasb_session* session, size_t index) {
  return index < nasb_class_count(session) ? session->class_names[index].c_str() : nullptr;
}

const char* nasb_metadata(const nasb_session* session, const char* key) {
  if (session == nullptr || key == nullptr) return nullptr;
  for (const auto& [name, value] : session->session.metadata()) {
    if (name == key) return value.c_str();
  }
  return nullptr;
}

nasb_status nasb_preprocess(const nasb_session* session, const uint8_t* pixels, int32_t width, int32_t height,
                            int32_t channels, float* image) {
  return guarded([&] {
    if (session == nullptr || pixels == nullptr || image == nullptr) refuse("session, pixels or image is NULL");
    if (!session->preprocessing)
      refuse("the file does not say how images are prepared (no metadata \"nasb.preprocessing\")");
    session->preprocessing->check(width, height, channels);
    nasb::Image given{width, height, channels, {}};
    given.pixels.assign(
        pixels, pixels + static_cast<size_t>(width) * static_cast<size_t>(height) * static_cast<size_t>(channels));
    session->preprocessing->apply(given, image);
  });
}

nasb_status nasb_run(const nasb_session* session, const float* images, size_t batch, float* output) {
  return guarded([&] {
    if (session == nullptr) refuse("session is NULL");
    if (batch == 0) return;
    if (images == nullptr || output == nullptr) refuse("images or output is NULL");
    if (batch > (size_t{1} << 30)) refuse("batch is too large");
    session->session.run(images, static_cast<int64_t>(batch), output);
  });
}

// The Python module nasb_engine._core: checks of types and texts are made in Python (nasb_engine/_session.py); here
// only what needs the core.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <utility>

#include "core/error.h"
#include "core/measure.h"
#include "core/session.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Images = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;
using Outputs = nb::ndarray<float, nb::c_contig, nb::device::cpu>;

int64_t elements(const std::vector<int64_t>& dims) {
  int64_t product = 1;
  for (const int64_t dim : dims) product *= dim;
  return product;
}

// Images are [batch, C, H, W] with the session's own [C, H, W]: the core trusts its callers with the sizes of buffers.
int64_t checked_batch(const nasb::Session& session, const Images& images) {
  const std::vector<int64_t>& dims = session.input_dims();
  bool equal = images.ndim() == dims.size() + 1;
  for (size_t i = 0; equal && i < dims.size(); ++i) equal = static_cast<int64_t>(images.shape(i + 1)) == dims[i];
  if (!equal) throw nasb::Error(nasb::ErrorCode::kArgument, "the images do not have the shape of the network's input");
  return static_cast<int64_t>(images.shape(0));
}

void run(const nasb::Session& session, const Images& images, const Outputs& outputs) {
  const int64_t batch = checked_batch(session, images);
  if (static_cast<int64_t>(outputs.size()) != batch * elements(session.output_dims())) {
    throw nasb::Error(nasb::ErrorCode::kArgument, "the outputs do not have the size of the network's output");
  }
  nb::gil_scoped_release release;
  session.run(images.data(), batch, outputs.data());
}

nb::object to_numpy(nasb::Array&& array) {
  auto* owned = new nasb::Array(std::move(array));
  nb::capsule owner(owned, [](void* pointer) noexcept { delete static_cast<nasb::Array*>(pointer); });
  std::vector<size_t> shape(owned->dims.begin(), owned->dims.end());
  return nb::cast(nb::ndarray<nb::numpy, float>(owned->values.data(), shape.size(), shape.data(), owner));
}

nb::dict inspect(const nasb::Session& session, const Images& images, const std::vector<std::string>& names) {
  const int64_t batch = checked_batch(session, images);
  std::map<std::string, nasb::Array> arrays;
  {
    nb::gil_scoped_release release;
    arrays = session.inspect(images.data(), batch, names);
  }
  nb::dict result;
  for (auto& [name, array] : arrays) result[name.c_str()] = to_numpy(std::move(array));
  return result;
}

nb::list profile(const nasb::Session& session, const Images& images, int repeats) {
  if (checked_batch(session, images) != 1) throw nasb::Error(nasb::ErrorCode::kArgument, "profile takes one image");
  std::vector<nasb::LayerProfile> layers;
  {
    nb::gil_scoped_release release;
    layers = session.profile(images.data(), repeats);
  }
  nb::list result;
  for (const nasb::LayerProfile& layer : layers) {
    nb::dict record;
    record["layer"] = layer.name;
    record["operation"] = layer.operation;
    record["kernel"] = layer.kernel;
    record["threads"] = layer.threads;
    record["milliseconds"] = layer.milliseconds;
    record["macs"] = layer.macs;
    record["binary"] = layer.binary;
    result.append(record);
  }
  return result;
}

std::vector<double> measure(const std::string& kind, int in_channels, int in_height, int in_width, int out_channels,
                            int kernel_size, int stride, int padding, int dilation, int groups, bool residual,
                            bool sign_output, int repeats, int threads, const std::string& kernel) {
  nasb::MeasuredOperation operation;
  operation.kind = kind;
  operation.residual = residual;
  operation.sign_output = sign_output;
  nasb::ConvShape& s = operation.shape;
  s.in_channels = in_channels, s.in_height = in_height, s.in_width = in_width, s.out_channels = out_channels;
  s.kernel_height = s.kernel_width = kernel_size, s.groups = groups;
  s.stride_height = s.stride_width = stride, s.dilation_height = s.dilation_width = dilation;
  s.pad_top = s.pad_left = padding;
  const auto size = [&](int64_t in) {
    const int64_t room = in + 2 * int64_t{padding} - int64_t{dilation} * (int64_t{kernel_size} - 1) - 1;
    return stride > 0 && room >= 0 && room < (1 << 20) ? static_cast<int>(room / stride + 1) : 0;
  };
  s.out_height = size(in_height);
  s.out_width = size(in_width);
  nb::gil_scoped_release release;
  return nasb::measure(operation, repeats, threads, kernel);
}

}  // namespace

NB_MODULE(_core, m) {
  m.doc() = "The engine's core; use nasb_engine.Session.";
  nb::exception<nasb::Error>(m, "EngineError", PyExc_ValueError).attr("__module__") = "nasb_engine";

  nb::class_<nasb::Session>(m, "Session")
      .def(
          "__init__",
          [](nasb::Session* self, nb::bytes data, int threads, const std::string& kernel) {
            nasb::Options options;
            options.threads = threads;
            options.kernel = kernel;
            const auto* bytes = static_cast<const uint8_t*>(data.data());
            const size_t size = data.size();
            nb::gil_scoped_release release;
            new (self) nasb::Session(bytes, size, options);
          },
          "data"_a, "threads"_a, "kernel"_a)
      .def("run", &run, "images"_a.noconvert(), "outputs"_a.noconvert())
      .def("inspect", &inspect, "images"_a.noconvert(), "names"_a)
      .def("profile", &profile, "image"_a.noconvert(), "repeats"_a)
      .def_prop_ro("input_dims", &nasb::Session::input_dims)
      .def_prop_ro("output_dims", &nasb::Session::output_dims)
      .def_prop_ro("metadata", &nasb::Session::metadata)
      .def_prop_ro("threads", &nasb::Session::threads)
      .def_prop_ro("kernel", &nasb::Session::kernel)
      .def_prop_ro("workspace_bytes", &nasb::Session::workspace_bytes)
      .def_prop_ro("tensor_names", &nasb::Session::tensor_names);

  m.def("measure", &measure, "kind"_a, "in_channels"_a, "in_height"_a, "in_width"_a, "out_channels"_a,
        "kernel_size"_a = 1, "stride"_a = 1, "padding"_a = 0, "dilation"_a = 1, "groups"_a = 1, "residual"_a = true,
        "sign_output"_a = false, "repeats"_a = 20, "threads"_a = 1, "kernel"_a = "");
  m.def("kernels", [] {
    nb::list result;
    for (const nasb::KernelInfo& kernel : nasb::kernels()) {
      nb::dict record;
      record["name"] = kernel.name;
      record["compiled"] = kernel.compiled;
      record["supported"] = kernel.supported;
      record["verified"] = kernel.verified;
      record["note"] = kernel.note;
      result.append(record);
    }
    return result;
  });
  m.def("kernel_warnings", &nasb::kernel_warnings);
  m.def("cpu_name", &nasb::cpu_name);
  m.def("version", &nasb::version);
}

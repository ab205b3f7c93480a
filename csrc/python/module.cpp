// segkernels._C: host-side helpers that touch no tensor.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
#if defined(__clang__)
  info["compiler"] = std::string("clang ") + __clang_version__;
#elif defined(__GNUC__)
  info["compiler"] = std::string("gcc ") + __VERSION__;
#else
  info["compiler"] = "unknown";
#endif
  info["flags"] = SEGKERNELS_CXX_FLAGS;
  info["torch_floor"] = SEGKERNELS_TORCH_FLOOR;
  info["torch_build"] = SEGKERNELS_TORCH_BUILD;
  info["nvcc"] = SEGKERNELS_NVCC;
  info["cuda_archs"] = SEGKERNELS_CUDA_ARCHS;
  return info;
}

// The level that the loader picks for functions marked SEGKERNELS_CLONES (csrc/common/simd.h).
const char* simd_level() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) {
    return "x86-64-v4";
  }
  if (__builtin_cpu_supports("x86-64-v3")) {
    return "x86-64-v3";
  }
  return "x86-64";
#else
  return "baseline";
#endif
}

// COCO's string of run lengths: differences to the run before the last, five bits a character, the sixth bit set where
// more follow.
std::string rle_string(const int64_t* counts, int64_t size) {
  std::string text;
  for (int64_t i = 0; i < size; ++i) {
    int64_t value = i > 2 ? counts[i] - counts[i - 2] : counts[i];
    bool more = true;
    while (more) {
      const int64_t bits = value & 31;
      value >>= 5;
      more = value != (bits & 16 ? -1 : 0);
      text.push_back(static_cast<char>(48 + bits + (more ? 32 : 0)));
    }
  }
  return text;
}

// `runs` and `offsets` are int64 arrays; mask n has runs[offsets[n]] to runs[offsets[n + 1]].
py::list rle_strings(const py::buffer& runs, const py::buffer& offsets) {
  const py::buffer_info run_info = runs.request(), offset_info = offsets.request();
  for (const py::buffer_info* info : {&run_info, &offset_info}) {
    if (info->ndim != 1 || info->itemsize != 8 || (info->shape[0] > 1 && info->strides[0] != 8)) {
      throw py::value_error("rle_strings: expected contiguous int64 arrays of one dimension");
    }
  }
  const int64_t* counts = static_cast<const int64_t*>(run_info.ptr);
  const int64_t* bounds = static_cast<const int64_t*>(offset_info.ptr);
  py::list strings;
  for (int64_t n = 0; n + 1 < offset_info.shape[0]; ++n) {
    if (bounds[n] < 0 || bounds[n] > bounds[n + 1] || bounds[n + 1] > run_info.shape[0]) {
      throw py::value_error("rle_strings: expected offsets that ascend within the runs");
    }
    strings.append(py::bytes(rle_string(counts + bounds[n], bounds[n + 1] - bounds[n])));
  }
  return strings;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Host-side helpers of segkernels: build information, the SIMD level in use and COCO's run-length strings.";
  m.def("build_info", &build_info, "Compilers, flags, GPU architectures and the oldest torch this build loads in.");
  m.def("simd_level", &simd_level, "Instruction set level the CPU kernels run at on this machine.");
  m.def("rle_strings", &rle_strings, "COCO's compressed strings of run lengths, one for each pair of offsets.");
}

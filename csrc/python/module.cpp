// segkernels._C: host-side helpers that touch no tensor.
#include <pybind11/pybind11.h>

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

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Host-side helpers of segkernels: build information and the SIMD level in use.";
  m.def("build_info", &build_info, "Compilers, flags, GPU architectures and the oldest torch this build loads in.");
  m.def("simd_level", &simd_level, "Instruction set level the CPU kernels run at on this machine.");
}

// Argument checks shared by every host function. They run before any parallel region: below torch 2.13 a throw inside
// parallel_for loses its message.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <initializer_list>
#include <sstream>
#include <string>

#include "huge_pages.h"

namespace segkernels {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string shape_string(const Tensor& tensor) {
  std::ostringstream text;
  text << '[';
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    text << (d ? ", " : "") << tensor.size(d);
  }
  text << ']';
  return text.str();
}

inline void check_dim(const Tensor& tensor, int64_t dim, const char* op, const char* argument) {
  STD_TORCH_CHECK(tensor.dim() == dim, op, ": expected ", argument, " to have ", dim, " dimensions, got shape ",
                  shape_string(tensor));
}

inline void check_same_shape(const Tensor& a, const Tensor& b, const char* op, const char* name_a, const char* name_b) {
  bool same = a.dim() == b.dim();
  for (int64_t d = 0; same && d < a.dim(); ++d) {
    same = a.size(d) == b.size(d);
  }
  STD_TORCH_CHECK(same, op, ": expected ", name_a, " and ", name_b, " to have the same shape, got ", shape_string(a),
                  " and ", shape_string(b));
}

inline void check_same_dtype(const Tensor& a, const Tensor& b, const char* op, const char* name_a, const char* name_b) {
  STD_TORCH_CHECK(a.scalar_type() == b.scalar_type(), op, ": expected ", name_a, " and ", name_b,
                  " to have the same dtype, got ", a.scalar_type(), " and ", b.scalar_type());
}

// Dense NHWC strides that are not also NCHW: the answer torch gives for suggest_memory_format.
inline bool is_channels_last(const Tensor& tensor) {
  if (tensor.dim() != 4 || tensor.stride(1) != 1 || tensor.is_contiguous()) {
    return false;
  }
  int64_t expected = 1;
  for (int64_t d : {1, 3, 2, 0}) {
    if (tensor.size(d) != 1 && tensor.stride(d) != expected) {
      return false;
    }
    expected *= tensor.size(d);
  }
  return true;
}

inline torch::headeronly::MemoryFormat memory_format(bool channels_last) {
  return channels_last ? torch::headeronly::MemoryFormat::ChannelsLast : torch::headeronly::MemoryFormat::Contiguous;
}

// The tensor itself when it is already dense in that layout, a dense copy otherwise.
inline Tensor to_dense(const Tensor& tensor, bool channels_last) {
  // The dispatcher takes a microsecond even when there is nothing to copy.
  if (channels_last ? is_channels_last(tensor) : tensor.is_contiguous()) {
    return tensor;
  }
  return torch::stable::contiguous(tensor, memory_format(channels_last));
}

// torch::stable::empty costs three microseconds, the shim below it less than one.
inline Tensor empty_strided(int64_t dim, const int64_t* sizes, const int64_t* strides, ScalarType dtype,
                            const Tensor& like) {
  using torch::stable::detail::from, torch::stable::detail::to;
  const torch::stable::Device device = like.device();
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dim, sizes, strides, to<int32_t>(from(dtype)),
                                                         to<int32_t>(from(device.type())), device.index(), &handle));
  return Tensor(handle);
}

// Strides of a dense tensor whose last stored extent is sizes[order[dim - 1]]. As torch lays out empty tensors, an
// extent of zero counts as one.
inline Tensor empty_dense(int64_t dim, const int64_t* sizes, const int64_t* order, ScalarType dtype,
                          const Tensor& like) {
  int64_t strides[4];
  int64_t stride = 1;
  for (int64_t i = dim; i-- > 0;) {
    const int64_t d = order[i];
    strides[d] = stride;
    STD_TORCH_CHECK(!__builtin_mul_overflow(stride, std::max<int64_t>(sizes[d], 1), &stride),
                    "segkernels: expected an output of less than 2^63 elements");
  }
  Tensor result = empty_strided(dim, sizes, strides, dtype, like);
  if (stride >= kAlwaysMapped / 8 && like.is_cpu()) {
    prefer_huge_pages(result.mutable_data_ptr(), result.numel() * static_cast<int64_t>(result.element_size()));
  }
  return result;
}

// Contiguous, of up to four dimensions, on the device of `like`.
inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType dtype, const Tensor& like) {
  constexpr int64_t kOrder[] = {0, 1, 2, 3};
  return empty_dense(sizes.size(), sizes.begin(), kOrder, dtype, like);
}

inline Tensor empty_nchw(int64_t n, int64_t c, int64_t h, int64_t w, ScalarType dtype, const Tensor& like,
                         bool channels_last) {
  constexpr int64_t kPlanes[] = {0, 1, 2, 3}, kPixels[] = {0, 2, 3, 1};
  const int64_t sizes[] = {n, c, h, w};
  return empty_dense(4, sizes, channels_last ? kPixels : kPlanes, dtype, like);
}

}  // namespace segkernels

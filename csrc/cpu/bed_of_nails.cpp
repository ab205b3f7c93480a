// Bed of nails on the CPU: a value and zeros, or one value of each block back. Values are moved without looking at
// them, so kernels are instantiated by element size.
#include <torch/csrc/stable/library.h>

#include <cstring>

#include "../common/max_unpool2d.h"
#include "../common/parallel.h"
#include "../common/simd.h"

namespace segkernels {
namespace {

template <typename T>
SEGKERNELS_CLONES void spread_row(const T* input, int64_t width, int64_t scale, T* output) {
  if (scale == 2) {
    for (int64_t x = 0; x < width; ++x) {
      output[2 * x] = input[x];
      output[2 * x + 1] = T(0);
    }
    return;
  }
  std::fill_n(output, width * scale, T(0));
  for (int64_t x = 0; x < width; ++x) {
    output[x * scale] = input[x];
  }
}

template <typename T>
SEGKERNELS_CLONES void pick_row(const T* grad, int64_t width, int64_t scale, T* grad_input) {
  if (scale == 2) {
    for (int64_t x = 0; x < width; ++x) {
      grad_input[x] = grad[2 * x];
    }
    return;
  }
  for (int64_t x = 0; x < width; ++x) {
    grad_input[x] = grad[x * scale];
  }
}

// Rows of the small tensor, all images and (NCHW) channels; a pixel is `step` values.
struct Rows {
  int64_t count, width, step;
};

Rows rows_of(const Tensor& tensor, int64_t height, int64_t width, bool channels_last) {
  const int64_t channels = tensor.size(1);
  return {tensor.size(0) * height * (channels_last ? 1 : channels), width, channels_last ? channels : 1};
}

void check_scale(const std::vector<int64_t>& scale, const char* op) {
  STD_TORCH_CHECK(scale.size() == 2 && scale[0] > 0 && scale[1] > 0, op, ": expected scale to be two positive ints");
}

Tensor bed_of_nails_cpu(const Tensor& input,  // [N, C, h, w]
                        std::vector<int64_t> scale) {
  check_dim(input, 4, "bed_of_nails", "input");
  check_scale(scale, "bed_of_nails");
  const bool channels_last = is_channels_last(input);
  const Tensor values = to_dense(input, channels_last);
  Tensor output = empty_nchw(input.size(0), input.size(1), input.size(2) * scale[0], input.size(3) * scale[1],
                             input.scalar_type(), input, channels_last);
  const Rows rows = rows_of(input, input.size(2), input.size(3), channels_last);
  const int64_t row = rows.width * rows.step;
  const int64_t block = scale[0] * scale[1] * row;  // output rows of one input row
  dispatch_element(input, "bed_of_nails", [&]<typename T>() {
    const T* in = static_cast<const T*>(values.const_data_ptr());
    T* out = static_cast<T*>(output.mutable_data_ptr());
    parallel_items(rows.count, block, [&](int64_t begin, int64_t end) {
      for (int64_t y = begin; y < end; ++y) {
        T* to = out + y * block;
        if (rows.step == 1) {
          spread_row(in + y * row, rows.width, scale[1], to);
        } else {
          for (int64_t x = 0; x < rows.width; ++x) {
            T* pixel = to + x * scale[1] * rows.step;
            std::memcpy(static_cast<void*>(pixel), in + y * row + x * rows.step, rows.step * sizeof(T));
            std::memset(static_cast<void*>(pixel + rows.step), 0, (scale[1] - 1) * rows.step * sizeof(T));
          }
        }
        std::memset(static_cast<void*>(to + scale[1] * row), 0, (scale[0] - 1) * scale[1] * row * sizeof(T));
      }
    });
  });
  return output;
}

Tensor bed_of_nails_backward_cpu(const Tensor& grad_output,  // [N, C, H, W]
                                 std::vector<int64_t> scale) {
  check_dim(grad_output, 4, "bed_of_nails_backward", "grad_output");
  check_scale(scale, "bed_of_nails_backward");
  STD_TORCH_CHECK(grad_output.size(2) % scale[0] == 0 && grad_output.size(3) % scale[1] == 0,
                  "bed_of_nails_backward: expected grad_output in whole blocks of ", scale[0], "x", scale[1], ", got ",
                  shape_string(grad_output));
  const bool channels_last = is_channels_last(grad_output);
  const Tensor grad = to_dense(grad_output, channels_last);
  const int64_t h = grad.size(2) / scale[0];
  const int64_t w = grad.size(3) / scale[1];
  Tensor grad_input = empty_nchw(grad.size(0), grad.size(1), h, w, grad.scalar_type(), grad, channels_last);
  const Rows rows = rows_of(grad, h, w, channels_last);
  const int64_t row = rows.width * rows.step;
  dispatch_element(grad, "bed_of_nails_backward", [&]<typename T>() {
    const T* from = static_cast<const T*>(grad.const_data_ptr());
    T* to = static_cast<T*>(grad_input.mutable_data_ptr());
    parallel_items(rows.count, scale[1] * row, [&](int64_t begin, int64_t end) {
      for (int64_t y = begin; y < end; ++y) {
        const T* source = from + y * scale[0] * scale[1] * row;
        if (rows.step == 1) {
          pick_row(source, rows.width, scale[1], to + y * row);
          continue;
        }
        for (int64_t x = 0; x < rows.width; ++x) {
          std::memcpy(static_cast<void*>(to + y * row + x * rows.step), source + x * scale[1] * rows.step,
                      rows.step * sizeof(T));
        }
      }
    });
  });
  return grad_input;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("bed_of_nails", TORCH_BOX(&bed_of_nails_cpu));
  m.impl("bed_of_nails_backward", TORCH_BOX(&bed_of_nails_backward_cpu));
}

}  // namespace segkernels

// Bed of nails on the CPU: a value and zeros, or one value of each block back. Values are moved without looking at
// them, so kernels are instantiated by element size.
#include <torch/csrc/stable/library.h>

#include <cstring>

#include "../common/bed_of_nails.h"
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

Tensor bed_of_nails_cpu(const Tensor& input,  // [N, C, h, w]
                        std::vector<int64_t> scale) {
  const Upsample2dShape s = bed_of_nails_shape(input, scale, "bed_of_nails");
  const Tensor values = to_dense(input, s.channels_last);
  Tensor output = empty_nchw(s.batch, s.channels, s.out_h, s.out_w, input.scalar_type(), input, s.channels_last);
  const int64_t step = s.step();
  const int64_t row = s.in_w * step;
  const int64_t block = scale[0] * scale[1] * row;  // output rows of one input row
  dispatch_element(input, "bed_of_nails", [&]<typename T>() {
    const T* in = static_cast<const T*>(values.const_data_ptr());
    T* out = static_cast<T*>(output.mutable_data_ptr());
    parallel_items(s.images() * s.in_h, block, [&](int64_t begin, int64_t end) {
      for (int64_t y = begin; y < end; ++y) {
        T* to = out + y * block;
        if (step == 1) {
          spread_row(in + y * row, s.in_w, scale[1], to);
        } else {
          for (int64_t x = 0; x < s.in_w; ++x) {
            T* pixel = to + x * scale[1] * step;
            std::memcpy(static_cast<void*>(pixel), in + y * row + x * step, step * sizeof(T));
            std::memset(static_cast<void*>(pixel + step), 0, (scale[1] - 1) * step * sizeof(T));
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
  const Upsample2dShape s = bed_of_nails_backward_shape(grad_output, scale, "bed_of_nails_backward");
  const Tensor grad = to_dense(grad_output, s.channels_last);
  Tensor grad_input = empty_nchw(s.batch, s.channels, s.out_h, s.out_w, grad.scalar_type(), grad, s.channels_last);
  const int64_t step = s.step();
  const int64_t row = s.out_w * step;
  dispatch_element(grad, "bed_of_nails_backward", [&]<typename T>() {
    const T* from = static_cast<const T*>(grad.const_data_ptr());
    T* to = static_cast<T*>(grad_input.mutable_data_ptr());
    parallel_items(s.images() * s.out_h, scale[1] * row, [&](int64_t begin, int64_t end) {
      for (int64_t y = begin; y < end; ++y) {
        const T* source = from + y * scale[0] * scale[1] * row;
        if (step == 1) {
          pick_row(source, s.out_w, scale[1], to + y * row);
          continue;
        }
        for (int64_t x = 0; x < s.out_w; ++x) {
          std::memcpy(static_cast<void*>(to + y * row + x * step), source + x * scale[1] * step, step * sizeof(T));
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

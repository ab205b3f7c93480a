// Backward of max-pooling on the CPU: every input element gathers from the windows that it lies in, in a fixed order,
// and is written once, zeros included. Windows that do not overlap only move values, so they are handled by element
// size. Large overlapping windows, where most of the gathered entries would be zero, are scattered plane by plane
// instead.
//
// An index that names no element of the plane adds nothing: a window without any position inside the input has one.
#include <torch/csrc/stable/library.h>

#include <cstring>
#include <type_traits>

#include "../common/check.h"
#include "../common/dispatch.h"
#include "../common/max_pool2d.h"
#include "../common/parallel.h"
#include "../common/simd.h"
#include "../common/vecmath.h"

namespace segkernels {
namespace {

constexpr int64_t kChunk = 128;         // channels whose sums are held on the stack
constexpr int64_t kScatterWindow = 25;  // overlapping windows of more positions are scattered
constexpr int64_t kScatterChannels = 16;

// Entry i of a run is a match when it names `wanted`: the window offset, or the flat position of entry 0's tap, which
// moves on by `step` from entry to entry.
template <typename index_t>
SEGKERNELS_INLINE bool matches(index_t index, int64_t wanted, int64_t step, int64_t i) {
  if constexpr (sizeof(index_t) == 1) {
    return index == static_cast<uint8_t>(wanted);
  } else {
    return index == wanted + i * step;
  }
}

template <typename T>
SEGKERNELS_INLINE auto widen(T value) {
  if constexpr (std::is_integral_v<T>) {
    return value;
  } else if constexpr (std::is_same_v<T, half>) {
    return half_bits_to_float(value.x);
  } else {
    return static_cast<accumulate_t<T>>(value);
  }
}

// T is the dtype where windows overlap, an unsigned integer of its size where they do not.
template <typename T>
using sum_t = std::conditional_t<std::is_integral_v<T>, T, accumulate_t<T>>;

template <typename T, typename index_t>
SEGKERNELS_CLONES void select_matches(const T* grad, const index_t* indices, int64_t count, int64_t wanted,
                                      int64_t step, sum_t<T>* result) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const sum_t<T> value = widen(grad[i]);
    result[i] = matches(indices[i], wanted, step, i) ? value : sum_t<T>(0);
  }
}

// Two neighbouring taps into the two neighbouring elements that they alone reach.
template <typename T, typename index_t>
SEGKERNELS_CLONES void select_pairs(const T* grad, const index_t* indices, int64_t count, int64_t wanted,
                                    T* __restrict result) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const T value = grad[i];
    result[2 * i] = matches(indices[i], wanted, 2, i) ? value : T(0);
    result[2 * i + 1] = matches(indices[i], wanted + 1, 2, i) ? value : T(0);
  }
}

template <typename T, typename index_t>
SEGKERNELS_CLONES void add_matches(const T* grad, const index_t* indices, int64_t count, int64_t wanted, int64_t step,
                                   sum_t<T>* sum) {
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const sum_t<T> value = widen(grad[i]);
    sum[i] += matches(indices[i], wanted, step, i) ? value : sum_t<T>(0);
  }
}

template <typename T, typename S>
SEGKERNELS_INLINE T narrow(S sum) {
  if constexpr (std::is_same_v<T, half>) {
    return half(float_to_half_bits(sum), half::from_bits());
  } else {
    return static_cast<T>(sum);
  }
}

// sum[phase * length + j] is element j * stride + phase of a row of `width`.
template <typename sum_t, typename T>
SEGKERNELS_CLONES void interleave(const sum_t* sum, int64_t length, int64_t stride, int64_t width, T* row) {
  if (stride == 1) {
    for (int64_t j = 0; j < width; ++j) {
      row[j] = narrow<T>(sum[j]);
    }
  } else if (stride == 2) {
    const int64_t pairs = width / 2;
#pragma GCC ivdep
    for (int64_t j = 0; j < pairs; ++j) {
      row[2 * j] = narrow<T>(sum[j]);
      row[2 * j + 1] = narrow<T>(sum[length + j]);
    }
    if (width % 2) {
      row[width - 1] = narrow<T>(sum[pairs]);
    }
  } else {
    for (int64_t phase = 0; phase < std::min(stride, width); ++phase) {
      for (int64_t j = 0; j * stride + phase < width; ++j) {
        row[j * stride + phase] = narrow<T>(sum[phase * length + j]);
      }
    }
  }
}

// For every input position of one axis, the taps that reach it and the outputs they belong to, in the order of taps.
struct Reach {
  int64_t tap, output;
};

class Reaches {
 public:
  Reaches(const std::vector<TapRange>& ranges, int64_t in, int64_t stride, int64_t pad, int64_t dilation)
      : start_(in + 1) {
    for (int64_t position = 0; position < in; ++position) {
      for (int64_t k = 0; k < static_cast<int64_t>(ranges.size()) && position + pad >= k * dilation; ++k) {
        const int64_t distance = position + pad - k * dilation;
        if (distance % stride == 0 && ranges[k].contains(distance / stride)) {
          reaches_.push_back({k, distance / stride});
        }
      }
      start_[position + 1] = static_cast<int64_t>(reaches_.size());
    }
  }
  const Reach* begin(int64_t position) const {
    return reaches_.data() + start_[position];
  }
  const Reach* end(int64_t position) const {
    return reaches_.data() + start_[position + 1];
  }

 private:
  std::vector<int64_t> start_;
  std::vector<Reach> reaches_;
};

struct GatherPlan : MaxPool2dPlan {
  explicit GatherPlan(const MaxPool2dPlan& p)
      : MaxPool2dPlan(p),
        row_reaches(p.rows, p.in_h, p.stride_h, p.pad_h, p.dilation_h),
        column_reaches(p.columns, p.in_w, p.stride_w, p.pad_w, p.dilation_w) {}

  Reaches row_reaches, column_reaches;
};

// NCHW: input rows [begin, end) of all planes.
template <typename T, typename index_t>
void gather_rows(const GatherPlan& p, const T* grad_output, const index_t* indices, T* grad_input, int64_t begin,
                 int64_t end) {
  constexpr bool offsets = sizeof(index_t) == 1;
  const bool pairs = std::is_integral_v<T> && p.kernel_w == 2 && p.stride_w == 2 && p.dilation_w == 1 && p.pad_w == 0;
  const int64_t length = (p.in_w + p.stride_w - 1) / p.stride_w;
  std::vector<sum_t<T>> sum(pairs ? 0 : std::min(p.stride_w, p.in_w) * length);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t plane = item / p.in_h;
    const int64_t y = item - plane * p.in_h;
    T* row = grad_input + item * p.in_w;
    const bool reached = p.row_reaches.begin(y) != p.row_reaches.end(y);
    if (!reached) {
      std::fill_n(row, p.in_w, T(0));
      continue;
    }
    std::fill(sum.begin(), sum.end(), sum_t<T>(0));
    for (const Reach* r = p.row_reaches.begin(y); r != p.row_reaches.end(y); ++r) {
      const T* grad = grad_output + plane * p.out_plane() + r->output * p.out_w;
      const index_t* index = indices + plane * p.out_plane() + r->output * p.out_w;
      if constexpr (std::is_integral_v<T>) {
        if (pairs) {
          const int64_t count = p.columns[1].end;
          const int64_t wanted = offsets ? r->tap * 2 : y * p.in_w;
          select_pairs(grad, index, count, wanted, row);
          std::fill(row + 2 * count, row + p.in_w, T(0));
          if (p.columns[0].end > count) {
            select_matches(grad + count, index + count, 1, offsets ? wanted : wanted + 2 * count, 2, row + 2 * count);
          }
          continue;
        }
      }
      for (int64_t kw = 0; kw < p.kernel_w; ++kw) {
        const TapRange range = p.columns[kw];
        if (range.begin < range.end) {
          const int64_t column = range.begin * p.stride_w + kw * p.dilation_w - p.pad_w;
          const int64_t wanted = offsets ? r->tap * p.kernel_w + kw : y * p.in_w + column;
          // A row of one stride's phase is contiguous, so that any stride runs in vector lanes.
          add_matches(grad + range.begin, index + range.begin, range.end - range.begin, wanted, p.stride_w,
                      sum.data() + column % p.stride_w * length + column / p.stride_w);
        }
      }
    }
    if (!pairs) {
      interleave(sum.data(), length, p.stride_w, p.in_w, row);
    }
  }
}

// channels_last: input rows [begin, end) of all images.
template <typename T, typename index_t>
void gather_pixels(const GatherPlan& p, const T* grad_output, const index_t* indices, T* grad_input, int64_t begin,
                   int64_t end) {
  sum_t<T> buffer[kChunk];
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / p.in_h;
    const int64_t y = item - n * p.in_h;
    for (int64_t x = 0; x < p.in_w; ++x) {
      for (int64_t c = 0; c < p.channels; c += kChunk) {
        const int64_t count = std::min(kChunk, p.channels - c);
        T* result = grad_input + (item * p.in_w + x) * p.channels + c;
        sum_t<T>* sum = buffer;
        if constexpr (std::is_same_v<T, sum_t<T>>) {
          sum = result;
        }
        bool written = false;
        for (const Reach* row = p.row_reaches.begin(y); row != p.row_reaches.end(y); ++row) {
          for (const Reach* column = p.column_reaches.begin(x); column != p.column_reaches.end(x); ++column) {
            const int64_t entry = (n * p.out_plane() + row->output * p.out_w + column->output) * p.channels + c;
            const int64_t wanted = sizeof(index_t) == 1 ? row->tap * p.kernel_w + column->tap : y * p.in_w + x;
            const auto accumulate = written ? add_matches<T, index_t> : select_matches<T, index_t>;
            accumulate(grad_output + entry, indices + entry, count, wanted, 0, sum);
            written = true;
          }
        }
        if (!written) {
          std::fill_n(result, count, T(0));
        } else if constexpr (!std::is_same_v<T, sum_t<T>>) {
          interleave(sum, count, 1, count, result);
        }
      }
    }
  }
}

// Flat position of an entry, or -1 where it names no element of the plane.
template <typename index_t>
int64_t flat_position(const MaxPool2dPlan& p, index_t index, int64_t y, int64_t x) {
  if constexpr (sizeof(index_t) == 1) {
    const int64_t kh = index / p.kernel_w;
    const int64_t kw = index - kh * p.kernel_w;
    const bool inside = kh < p.kernel_h && p.rows[kh].contains(y) && p.columns[kw].contains(x);
    const int64_t row = y * p.stride_h - p.pad_h + kh * p.dilation_h;
    return inside ? row * p.in_w + x * p.stride_w - p.pad_w + kw * p.dilation_w : -1;
  } else {
    return index >= 0 && index < p.in_plane() ? index : -1;
  }
}

// Items are planes (NCHW) or groups of channels of one image (channels_last); sums stay in the cache until they are
// whole.
template <typename T, typename index_t>
void scatter(const MaxPool2dPlan& p, int64_t groups, int64_t width, const T* grad_output, const index_t* indices,
             T* grad_input, int64_t begin, int64_t end) {
  std::vector<accumulate_t<T>> sum(p.in_plane() * width);
  const int64_t step = p.channels_last ? p.channels : 1;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / groups;
    const int64_t c = (item - n * groups) * width;
    const int64_t count = std::min(width, p.channels - c);
    const int64_t in_start = p.channels_last ? n * p.channels * p.in_plane() + c : item * p.in_plane();
    const int64_t out_start = p.channels_last ? n * p.channels * p.out_plane() + c : item * p.out_plane();
    std::fill(sum.begin(), sum.end(), accumulate_t<T>(0));
    for (int64_t pixel = 0; pixel < p.out_plane(); ++pixel) {
      const int64_t y = pixel / p.out_w;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t entry = out_start + pixel * step + i;
        const int64_t position = flat_position(p, indices[entry], y, pixel - y * p.out_w);
        if (position >= 0) {
          sum[position * width + i] += widen(grad_output[entry]);
        }
      }
    }
    for (int64_t pixel = 0; pixel < p.in_plane(); ++pixel) {
      for (int64_t i = 0; i < count; ++i) {
        grad_input[in_start + pixel * step + i] = narrow<T>(sum[pixel * width + i]);
      }
    }
  }
}

template <typename T, typename index_t>
void gather_all(const MaxPool2dPlan& plan, const T* grad_output, const index_t* indices, T* grad_input) {
  const GatherPlan p(plan);
  const int64_t rows = (p.channels_last ? p.batch : p.planes()) * p.in_h;
  parallel_items(rows, p.in_w * (p.channels_last ? p.channels : 1), [&](int64_t begin, int64_t end) {
    const auto gather = p.channels_last ? gather_pixels<T, index_t> : gather_rows<T, index_t>;
    gather(p, grad_output, indices, grad_input, begin, end);
  });
}

template <typename T, typename index_t>
void scatter_all(const MaxPool2dPlan& p, const T* grad_output, const index_t* indices, T* grad_input) {
  const int64_t width = p.channels_last ? std::min(kScatterChannels, p.channels) : 1;
  const int64_t groups = (p.channels + width - 1) / width;
  parallel_items(p.batch * groups, (p.in_plane() + p.out_plane()) * width, [&](int64_t begin, int64_t end) {
    scatter(p, groups, width, grad_output, indices, grad_input, begin, end);
  });
}

Tensor max_pool2d_backward_cpu(const Tensor& grad_output,  // [N, C, h, w]
                               const Tensor& indices,      // [N, C, h, w]
                               IntList input_size, IntList kernel_size, IntList stride, IntList padding,
                               IntList dilation) {
  const MaxPool2dPlan p(max_pool2d_backward_params(grad_output, indices, input_size, kernel_size, stride, padding,
                                                   dilation, "max_pool2d_backward"));
  const Tensor grad = to_dense(grad_output, p.channels_last);
  const Tensor places = to_dense(indices, p.channels_last);
  Tensor grad_input = empty_nchw(p.batch, p.channels, p.in_h, p.in_w, grad.scalar_type(), grad, p.channels_last);
  if (grad_input.numel() == 0) {
    return grad_input;
  }
  dispatch_floating(grad.scalar_type(), "max_pool2d_backward", [&]<typename scalar_t>() {
    dispatch_index(indices.scalar_type(), "max_pool2d_backward", [&]<typename index_t>() {
      const auto run = [&]<typename T>(const auto& all) {
        all(p, static_cast<const T*>(grad.const_data_ptr()), static_cast<const index_t*>(places.const_data_ptr()),
            static_cast<T*>(grad_input.mutable_data_ptr()));
      };
      using bits_t = std::conditional_t<sizeof(scalar_t) == 8, uint64_t,
                                        std::conditional_t<sizeof(scalar_t) == 4, uint32_t, uint16_t>>;
      if (p.disjoint_windows()) {
        run.template operator()<bits_t>(gather_all<bits_t, index_t>);
      } else if (p.window() <= kScatterWindow) {
        run.template operator()<scalar_t>(gather_all<scalar_t, index_t>);
      } else {
        run.template operator()<scalar_t>(scatter_all<scalar_t, index_t>);
      }
    });
  });
  return grad_input;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("max_pool2d_backward", TORCH_BOX(&max_pool2d_backward_cpu));
}

}  // namespace segkernels

// Max-pooling on the CPU. Half types are compared through an integer key of their bits, so no value is ever converted.
//
// A window is reduced to its maximum and the offset of it (row-major kernel position) in vector lanes: neighbouring
// outputs of a row (NCHW) or neighbouring channels of a pixel (channels_last). The common windows keep both in
// registers; any other window, and the border, walks over its taps and updates a run of outputs in the cache. Offsets
// become flat indices at the end, when those are wanted.
#include "../common/max_pool2d.h"

#include <torch/csrc/stable/library.h>

#include <cstring>
#include <limits>
#include <type_traits>

#include "../common/dispatch.h"
#include "../common/parallel.h"
#include "../common/simd.h"

namespace segkernels {
namespace {

constexpr int64_t kChunk = 128;  // outputs whose window offsets are held on the stack

// Where window offsets go: nowhere (bits == 0), as they are (8), or as flat positions (64).
struct IndexTarget {
  void* data;
  int64_t bits;
};

// Window offsets in lanes as wide as the values', so that one mask selects both.
template <typename T>
using offset_t = std::conditional_t<sizeof(T) == 2, int16_t, std::conditional_t<sizeof(T) == 4, int32_t, int64_t>>;
constexpr int64_t kHalfWindow = INT16_MAX;

// What decides a comparison: key(v) of the value at hand, bar(key) of the maximum so far, and takes_over(key, bar),
// whether a value met later in raster order replaces it. As in torch the first maximum stays, and the last NaN is kept.
template <typename scalar_t>
struct Order {
  using value_t = scalar_t;
  static constexpr value_t lowest() {
    return -std::numeric_limits<scalar_t>::infinity();
  }
  static SEGKERNELS_INLINE value_t key(value_t v) {
    return v;
  }
  static SEGKERNELS_INLINE value_t bar(value_t key) {
    return key;
  }
  static SEGKERNELS_INLINE bool takes_over(value_t key, value_t bar) {
    return (key > bar) | (key != key);
  }
};

template <int infinity>
struct HalfOrder {
  using value_t = uint16_t;
  static constexpr value_t lowest() {
    return 0x8000 | infinity;
  }
  // Ordered as the number is, with one key for both zeros. Every NaN has the largest, and a bar that another NaN
  // passes.
  static SEGKERNELS_INLINE int16_t key(value_t bits) {
    const int16_t magnitude = bits & 0x7fff;
    const int16_t number = static_cast<int16_t>(bits) < 0 ? static_cast<int16_t>(-magnitude) : magnitude;
    return magnitude > infinity ? int16_t{0x7fff} : number;
  }
  static SEGKERNELS_INLINE int16_t bar(int16_t key) {
    return key < 0x7ffe ? key : int16_t{0x7ffe};
  }
  // A mask instead of a bool keeps GCC from turning the selects into branches.
  static SEGKERNELS_INLINE int16_t takes_over(int16_t key, int16_t bar) {
    return static_cast<int16_t>(-(key > bar));
  }
};
template <>
struct Order<half> : HalfOrder<0x7c00> {};
template <>
struct Order<bfloat16> : HalfOrder<0x7f80> {};

// A run of outputs through all taps of windows that lie inside the input: tap (kh, kw) of output i is
// first[kh * row_step + kw * tap_step + i * step].
template <typename order, int kernel, int step>
SEGKERNELS_CLONES void reduce_window(const typename order::value_t* first, int64_t row_step, int64_t tap_step,
                                     int64_t count, typename order::value_t* output,
                                     offset_t<typename order::value_t>* offsets) {
  using T = typename order::value_t;
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    T best = first[i * step];
    auto bar = order::bar(order::key(best));
    offset_t<T> offset = 0;
#pragma GCC unroll 16
    for (int k = 1; k < kernel * kernel; ++k) {
      const T v = first[k / kernel * row_step + k % kernel * tap_step + i * step];
      const auto key = order::key(v);
      const auto take = order::takes_over(key, bar);
      best = take ? v : best;
      bar = take ? order::bar(key) : bar;
      offset = take ? static_cast<offset_t<T>>(k) : offset;
    }
    output[i] = best;
    offsets[i] = offset;
  }
}

// The same for `taps` neighbouring taps of one row of any window; `output` and `offsets` hold the maximum so far.
template <typename order, int taps>
SEGKERNELS_CLONES void reduce_taps(const typename order::value_t* first, int64_t tap_step, int64_t step, int64_t count,
                                   int64_t first_offset, typename order::value_t* output,
                                   offset_t<typename order::value_t>* offsets) {
  using T = typename order::value_t;
  const auto update = [&](int64_t constant_step) SEGKERNELS_INLINE_LAMBDA {
#pragma GCC ivdep
    for (int64_t i = 0; i < count; ++i) {
      T best = output[i];
      auto bar = order::bar(order::key(best));
      offset_t<T> offset = offsets[i];
      const auto compare = [&](int k) SEGKERNELS_INLINE_LAMBDA {
        const T v = first[k * tap_step + i * constant_step];
        const auto key = order::key(v);
        const auto take = order::takes_over(key, bar);
        best = take ? v : best;
        bar = take ? order::bar(key) : bar;
        offset = take ? static_cast<offset_t<T>>(first_offset + k) : offset;
      };
      // Written out: GCC keeps a loop of one turn, and then does not vectorise the one around it.
      compare(0);
      if constexpr (taps == 4) {
        compare(1);
        compare(2);
        compare(3);
      }
      output[i] = best;
      offsets[i] = offset;
    }
  };
  static_assert(taps == 1 || taps == 4);
  // A constant step is what lets the compiler use vector loads; other steps are faster with branches.
  if (step == 1) {
    update(1);
  } else if constexpr (taps == 1) {
    if (step == 2) {
      update(2);
      return;
    }
    for (int64_t i = 0; i < count; ++i) {
      const T v = first[i * step];
      if (order::takes_over(order::key(v), order::bar(order::key(output[i])))) {
        output[i] = v;
        offsets[i] = static_cast<offset_t<T>>(first_offset);
      }
    }
  }
}

template <typename offset_type>
SEGKERNELS_CLONES void store_offsets(const offset_type* offsets, int64_t count, uint8_t* indices) {
  for (int64_t i = 0; i < count; ++i) {
    indices[i] = static_cast<uint8_t>(offsets[i] < 0 ? 0 : offsets[i]);
  }
}

// Flat positions; `origin` is that of the first output's window corner, which may lie in the padding. `next_row` is the
// way from the end of a window's row to the start of its next.
template <typename offset_type>
SEGKERNELS_CLONES void store_positions(const offset_type* offsets, int64_t count, int64_t origin, int64_t step,
                                       int32_t kernel_h, int32_t kernel_w, int32_t dilation_w, int64_t next_row,
                                       int64_t* indices) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t across = origin + i * step + static_cast<int64_t>(offsets[i]) * dilation_w;
    const int64_t down = (offsets[i] >= kernel_w ? next_row : 0) + (offsets[i] >= 2 * kernel_w ? next_row : 0);
    indices[i] = offsets[i] < 0 ? -1 : across + down;
  }
  for (int32_t kh = 3; kh < kernel_h; kh += 2) {
    for (int64_t i = 0; i < count; ++i) {
      indices[i] += (offsets[i] >= kh * kernel_w ? next_row : 0) + (offsets[i] >= (kh + 1) * kernel_w ? next_row : 0);
    }
  }
}

// Indices of the outputs from `entry` on.
template <typename offset_type>
void store_indices(const MaxPool2dPlan& p, const offset_type* offsets, int64_t count, int64_t origin, int64_t step,
                   const IndexTarget& indices, int64_t entry) {
  if (indices.bits == 8) {
    store_offsets(offsets, count, static_cast<uint8_t*>(indices.data) + entry);
  } else if (indices.bits == 64) {
    store_positions(offsets, count, origin, step, static_cast<int32_t>(p.kernel_h), static_cast<int32_t>(p.kernel_w),
                    static_cast<int32_t>(p.dilation_w), p.dilation_h * p.in_w - p.kernel_w * p.dilation_w,
                    static_cast<int64_t*>(indices.data) + entry);
  }
}

int64_t first_tap(const std::vector<TapRange>& ranges, int64_t output) {
  const auto found = std::find_if(ranges.begin(), ranges.end(), [&](TapRange r) { return r.contains(output); });
  return found == ranges.end() ? -1 : found - ranges.begin();
}

// Offset of the first position inside the input, which an all -inf window returns; -1 for a window that has none.
int32_t first_offset(const MaxPool2dPlan& p, int64_t y, int64_t x) {
  const int64_t kh = first_tap(p.rows, y);
  const int64_t kw = first_tap(p.columns, x);
  return kh < 0 || kw < 0 ? -1 : static_cast<int32_t>(kh * p.kernel_w + kw);
}

template <typename T>
using ReduceWindow = void (*)(const T*, int64_t, int64_t, int64_t, T*, offset_t<T>*);

// The reduction with all taps in registers, or null for windows that have none.
template <typename order>
ReduceWindow<typename order::value_t> fixed_window(const MaxPool2dPlan& p) {
  if (p.kernel_h != p.kernel_w) {
    return nullptr;
  }
  const int64_t step = p.channels_last ? 1 : p.stride_w;
  if (p.kernel_h == 2 && step <= 2) {
    return step == 1 ? reduce_window<order, 2, 1> : reduce_window<order, 2, 2>;
  }
  if (p.kernel_h == 3 && step <= 2) {
    return step == 1 ? reduce_window<order, 3, 1> : reduce_window<order, 3, 2>;
  }
  return nullptr;
}

// NCHW: output rows [begin, end) of all planes.
template <typename order>
void pool_rows(const MaxPool2dPlan& p, const typename order::value_t* input, typename order::value_t* output,
               const IndexTarget& indices, int64_t begin, int64_t end) {
  const auto reduce_fixed = fixed_window<order>(p);
  offset_t<typename order::value_t> offsets[kChunk];
  for (int64_t item = begin; item < end; ++item) {
    const int64_t plane = item / p.out_h;
    const int64_t y = item - plane * p.out_h;
    const auto* in = input + plane * p.in_plane();
    const int64_t corner = (y * p.stride_h - p.pad_h) * p.in_w - p.pad_w;
    // Outputs [left, right) have their whole window inside.
    const bool whole = reduce_fixed && p.rows.front().contains(y) && p.rows.back().contains(y);
    const int64_t left = whole ? p.columns.front().begin : 0;
    const int64_t right = whole ? p.columns.back().end : 0;
    for (int64_t x = 0, count = 0; x < p.out_w; x += count) {
      const bool inside = x >= left && x < right;
      const int64_t stop = inside ? right : x < left && left < right ? left : p.out_w;
      count = std::min(kChunk, stop - x);
      auto* out = output + item * p.out_w + x;
      if (inside) {
        reduce_fixed(in + corner + x * p.stride_w, p.dilation_h * p.in_w, p.dilation_w, count, out, offsets);
      } else {
        for (int64_t i = 0; i < count; ++i) {
          out[i] = order::lowest();
          offsets[i] = first_offset(p, y, x + i);
        }
        for (int64_t k = 0; k < p.window(); ++k) {
          const int64_t kh = k / p.kernel_w;
          const int64_t kw = k - kh * p.kernel_w;
          const int64_t from = std::max(p.columns[kw].begin, x);
          const int64_t to = std::min(p.columns[kw].end, x + count);
          if (p.rows[kh].contains(y) && from < to) {
            const int64_t tap = corner + kh * p.dilation_h * p.in_w + kw * p.dilation_w + from * p.stride_w;
            reduce_taps<order, 1>(in + tap, 0, p.stride_w, to - from, k, out + (from - x), offsets + (from - x));
          }
        }
      }
      store_indices(p, offsets, count, corner + x * p.stride_w, p.stride_w, indices, item * p.out_w + x);
    }
  }
}

// channels_last: output rows [begin, end) of all images, all channels of a pixel at once.
template <typename order>
void pool_pixels(const MaxPool2dPlan& p, const typename order::value_t* input, typename order::value_t* output,
                 const IndexTarget& indices, int64_t begin, int64_t end) {
  const auto reduce_fixed = fixed_window<order>(p);
  offset_t<typename order::value_t> offsets[kChunk];
  const int64_t channels = p.channels;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t n = item / p.out_h;
    const int64_t y = item - n * p.out_h;
    const auto* image = input + n * p.in_plane() * channels;
    const bool whole_rows = p.rows.front().contains(y) && p.rows.back().contains(y);
    for (int64_t x = 0; x < p.out_w; ++x) {
      // Taps [left, right) of a window's row are inside.
      const int64_t left = std::max<int64_t>(0, first_tap(p.columns, x));
      int64_t right = p.kernel_w;
      while (right > left && !p.columns[right - 1].contains(x)) {
        --right;
      }
      const bool whole = whole_rows && right - left == p.kernel_w;
      const int64_t corner = (y * p.stride_h - p.pad_h) * p.in_w + x * p.stride_w - p.pad_w;
      const int64_t entry = (item * p.out_w + x) * channels;
      for (int64_t c = 0; c < channels; c += kChunk) {
        const int64_t count = std::min(kChunk, channels - c);
        auto* out = output + entry + c;
        if (whole && reduce_fixed) {
          reduce_fixed(image + corner * channels + c, p.dilation_h * p.in_w * channels, p.dilation_w * channels, count,
                       out, offsets);
        } else {
          std::fill_n(out, count, order::lowest());
          std::fill_n(offsets, count, first_offset(p, y, x));
          for (int64_t kh = 0; kh < p.kernel_h; ++kh) {
            if (!p.rows[kh].contains(y)) {
              continue;
            }
            const auto* row = image + (corner + kh * p.dilation_h * p.in_w) * channels + c;
            const int64_t step = p.dilation_w * channels;
            int64_t kw = left;
            for (; kw + 4 <= right; kw += 4) {
              reduce_taps<order, 4>(row + kw * step, step, 1, count, kh * p.kernel_w + kw, out, offsets);
            }
            for (; kw < right; ++kw) {
              reduce_taps<order, 1>(row + kw * step, step, 1, count, kh * p.kernel_w + kw, out, offsets);
            }
          }
        }
        store_indices(p, offsets, count, corner, 0, indices, entry + c);
      }
    }
  }
}

template <typename order>
void pool_all(const MaxPool2dPlan& p, const typename order::value_t* input, typename order::value_t* output,
              const IndexTarget& indices) {
  const int64_t rows = p.channels_last ? p.batch * p.out_h : p.planes() * p.out_h;
  const int64_t row_elements = p.out_w * p.window() * (p.channels_last ? p.channels : 1);
  parallel_items(rows, row_elements, [&](int64_t begin, int64_t end) {
    const auto pool = p.channels_last ? pool_pixels<order> : pool_rows<order>;
    pool(p, input, output, indices, begin, end);
  });
}

std::tuple<Tensor, Tensor> max_pool2d_cpu(const Tensor& input,  // [N, C, H, W]
                                          IntList kernel_size, IntList stride, IntList padding, IntList dilation,
                                          bool ceil_mode, int64_t index_bits) {
  const MaxPool2dPlan p(
      max_pool2d_params(input, kernel_size, stride, padding, dilation, ceil_mode, index_bits, "max_pool2d"));
  if (input.element_size() == 2 && kernel_size[0] * kernel_size[1] > kHalfWindow) {
    const auto [output, indices] = max_pool2d_cpu(torch::stable::to(input, ScalarType::Float), kernel_size, stride,
                                                  padding, dilation, ceil_mode, index_bits);
    return {torch::stable::to(output, input.scalar_type()), indices};
  }
  const Tensor values = to_dense(input, p.channels_last);
  const ScalarType index_type = index_bits == 64 ? ScalarType::Long : ScalarType::Byte;
  Tensor output = empty_nchw(p.batch, p.channels, p.out_h, p.out_w, input.scalar_type(), input, p.channels_last);
  Tensor indices = index_bits == 0
                       ? empty({0}, index_type, input)
                       : empty_nchw(p.batch, p.channels, p.out_h, p.out_w, index_type, input, p.channels_last);
  if (output.numel() == 0) {
    return {output, indices};
  }
  dispatch_floating(input.scalar_type(), "max_pool2d", [&]<typename scalar_t>() {
    using order = Order<scalar_t>;
    using T = typename order::value_t;
    pool_all<order>(p, static_cast<const T*>(values.const_data_ptr()), static_cast<T*>(output.mutable_data_ptr()),
                    {index_bits == 0 ? nullptr : indices.mutable_data_ptr(), index_bits});
  });
  return {output, indices};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("max_pool2d", TORCH_BOX(&max_pool2d_cpu));
}

}  // namespace segkernels

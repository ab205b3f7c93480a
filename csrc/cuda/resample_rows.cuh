// What the resampling kernels share on the GPU. A row, of a plane in NCHW or of an image in channels_last, is one run
// of elements in memory whatever the layout. A thread owns some elements of the row and walks down a strip of output
// rows, so that places and weights of columns are computed once a strip, and what rows have in common stays in
// registers.
#pragma once

#include "../common/cuda.cuh"
#include "../common/upsample2d_shape.h"

namespace segkernels {

template <typename T>
constexpr int kWide = 16 / sizeof(T);  // elements of one access

template <typename T>
struct __align__(16) Wide {
  T values[kWide<T>];
};

inline bool is_wide(const void* data) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0;
}

// Places inside a row are 32 bits wide.
inline void check_rows(const Upsample2dShape& s, const char* op) {
  const int64_t step = s.channels_last ? s.channels : 1;
  STD_TORCH_CHECK(
      std::max(s.in_w, s.out_w) <= INT32_MAX / std::max<int64_t>(step, 1) && std::max(s.in_h, s.out_h) <= INT32_MAX, op,
      ": expected at most 2^31-1 rows of at most 2^31-1 elements, got ", s.channels, " channels of ", s.in_h, "x",
      s.in_w, " and ", s.out_h, "x", s.out_w);
}

// A power of two of threads for `items` neighbouring ones, so that several short rows share a block.
inline unsigned int threads_for(int64_t items) {
  unsigned int threads = 8;
  while (threads < kThreads && threads < items) {
    threads *= 2;
  }
  return threads;
}

// Strips of output rows, and tiles of elements across them.
struct RowStrips {
  static constexpr int kRows = 16;

  int64_t first_image;  // planes in NCHW; of a launch
  uint32_t images;
  int in_h, out_h;
  int in_row, channels;          // elements of a row and of a pixel
  uint32_t out_row;              // elements
  uint32_t rows, strips, tiles;  // rows of a strip
  bool wide_pixels;              // pixels are moved by vectors
  bool wide_rows;                // output rows are: a thread owns neighbours, else elements a block's width apart
  dim3 block;

  template <typename T>
  RowStrips(const Upsample2dShape& s, const T* input, const T* output)
      : in_h(static_cast<int>(s.in_h)),
        out_h(static_cast<int>(s.out_h)),
        channels(s.channels_last ? static_cast<int>(s.channels) : 1) {
    in_row = static_cast<int>(s.in_w) * channels;
    out_row = static_cast<uint32_t>(s.out_w * channels);
    strips = (out_h + kRows - 1) / kRows;
    rows = (out_h + strips - 1) / strips;
    wide_pixels = channels % kWide<T> == 0 && is_wide(input) && is_wide(output);
    // Neighbours of a smaller output read far from each other: there the loads matter.
    wide_rows = wide_pixels || (out_row % kWide<T> == 0 && s.out_w >= s.in_w && is_wide(output));
    const unsigned int width = threads_for((out_row + kWide<T> - 1) / kWide<T>);
    tiles = (out_row + width * kWide<T> - 1) / (width * kWide<T>);
    block = dim3(width, kThreads / width);
  }

  // Calls launch(grid) for as many images at once as blocks and threads can be numbered for in 32 bits.
  template <typename F>
  void for_each_launch(int64_t all_images, const F& launch) {
    const int64_t most = std::max<int64_t>(1, (int64_t{1} << 30) / (static_cast<int64_t>(strips) * tiles));
    for (first_image = 0; first_image < all_images; first_image += most) {
      images = static_cast<uint32_t>(std::min(most, all_images - first_image));
      launch(dim3(blocks_for(static_cast<int64_t>(images) * strips * tiles, static_cast<int>(block.y))));
    }
  }
};

// The part of a row that a thread owns: element k is at first + k * step.
struct OwnElements {
  uint32_t first, step;
};

// Calls f(image, begin, end, own) for the strip [begin, end) of this thread.
template <typename T, typename F>
__device__ __forceinline__ void with_strip(const RowStrips& s, const F& f) {
  const uint32_t item = blockIdx.x * blockDim.y + threadIdx.y;
  const uint32_t strip = item / s.tiles;
  const uint32_t image = strip / s.strips;
  const uint32_t first = (item - strip * s.tiles) * blockDim.x * kWide<T> + threadIdx.x * (s.wide_rows ? kWide<T> : 1);
  if (image < s.images && first < s.out_row) {
    const int begin = static_cast<int>(strip - image * s.strips) * static_cast<int>(s.rows);
    f(s.first_image + image, begin, min(begin + static_cast<int>(s.rows), s.out_h),
      OwnElements{first, s.wide_rows ? 1 : blockDim.x});
  }
}

// Elements of a row at `places`; of a whole pixel only the first place counts.
template <typename T>
__device__ __forceinline__ Wide<T> load_elements(const RowStrips& s, const T* row, const int (&places)[kWide<T>]) {
  if (s.wide_pixels) {
    return *reinterpret_cast<const Wide<T>*>(row + places[0]);
  }
  Wide<T> elements;
#pragma unroll
  for (int k = 0; k < kWide<T>; ++k) {
    elements.values[k] = row[places[k]];
  }
  return elements;
}

template <typename T>
__device__ __forceinline__ void store_elements(const RowStrips& s, T* row, const OwnElements& own,
                                               const Wide<T>& elements) {
  if (s.wide_rows) {
    *reinterpret_cast<Wide<T>*>(row + own.first) = elements;
    return;
  }
#pragma unroll
  for (int k = 0; k < kWide<T>; ++k) {
    const uint32_t place = own.first + k * own.step;
    if (place < s.out_row) {
      row[place] = elements.values[k];
    }
  }
}

// Column and channel of an owned element; those beyond the row repeat its last one, and are not stored.
struct ElementPlace {
  int x, c;

  __device__ ElementPlace(const RowStrips& s, const OwnElements& own, int k) {
    const uint32_t place = min(own.first + k * own.step, s.out_row - 1);
    const uint32_t pixel = place / s.channels;
    x = static_cast<int>(pixel);
    c = static_cast<int>(place - pixel * s.channels);
  }
};

// Takes each output pixel from one source pixel, Axis::source(output), or is zero where that is negative: nothing but
// loads and stores, whose bytes are all that counts.
template <typename T, typename Axis>
__global__ void __launch_bounds__(kThreads) take_pixels_kernel(RowStrips s, Axis rows, Axis columns,
                                                               const T* __restrict__ input,  // [N, C, h, w]
                                                               T* __restrict__ output) {     // [N, C, H, W]
  with_strip<T>(s, [&](int64_t image, int begin, int end, const OwnElements& own) {
    int places[kWide<T>];
    bool taken[kWide<T>];
#pragma unroll
    for (int k = 0; k < kWide<T>; ++k) {
      const ElementPlace element(s, own, k);
      const int source = static_cast<int>(columns.source(element.x));
      taken[k] = source >= 0;
      places[k] = max(source, 0) * s.channels + element.c;
    }
    Wide<T> elements{};
    int held = -1;  // the source row whose elements those are
    for (int y = begin; y < end; ++y) {
      const int source = static_cast<int>(rows.source(y));
      if (source != held) {
        held = source;
        elements = {};
        if (source >= 0) {
          elements = load_elements(s, input + (image * s.in_h + source) * s.in_row, places);
        }
#pragma unroll
        for (int k = 0; k < kWide<T>; ++k) {
          elements.values[k] = taken[k] ? elements.values[k] : T(0);
        }
      }
      store_elements(s, output + (image * s.out_h + y) * s.out_row, own, elements);
    }
  });
}

// Unsigned elements stand for values of any dtype of their size.
template <typename T, typename Axis>
void take_pixels(const Upsample2dShape& shape, const Axis& rows, const Axis& columns, const Tensor& input,
                 const Tensor& output) {
  const DeviceScope scope(input);
  const T* from = static_cast<const T*>(input.const_data_ptr());
  T* to = static_cast<T*>(output.mutable_data_ptr());
  RowStrips s(shape, from, to);
  s.for_each_launch(shape.images(), [&](dim3 grid) {
    launch(take_pixels_kernel<T, Axis>, grid, s.block, 0, scope.stream(), s, rows, columns, from, to);
  });
}

}  // namespace segkernels

// Drives the row kernels over a tensor: the forward of a depthwise convolution, and the gradient of its input.
#pragma once

#include <vector>

#include "../common/conv2d.h"
#include "../common/depthwise_conv2d.h"
#include "../common/parallel.h"

namespace segkernels {

// A dense tensor of `groups` times `planes` channels, seen group by group; `kLanes` groups stand side by side.
template <int kLanes>
struct DepthwiseLayout {
  int64_t groups, planes, height, width;

  int64_t blocks() const {
    return (groups + kLanes - 1) / kLanes;
  }
  int64_t start(int64_t n, int64_t block, int64_t plane) const {
    if constexpr (kLanes == 1) {
      return ((n * groups + block) * planes + plane) * height * width;
    } else {
      return n * groups * planes * height * width + block * kLanes * planes + plane;
    }
  }
  DepthwiseStrides strides(int64_t block) const {
    if constexpr (kLanes == 1) {
      return {width, 1, 0, 1};
    } else {
      const int64_t channels = groups * planes;
      return {width * channels, channels, planes, std::min<int64_t>(kLanes, groups - block * kLanes)};
    }
  }
};

// [groups, planes, taps] as [blocks, planes, taps, lanes] in the type of the sums.
template <int kLanes, typename acc_t, typename T>
std::vector<acc_t> pack_depthwise(const T* from, int64_t groups, int64_t planes, int64_t taps) {
  std::vector<acc_t> to((groups + kLanes - 1) / kLanes * kLanes * planes * taps);
  for (int64_t group = 0; group < groups; ++group) {
    for (int64_t i = 0; i < planes * taps; ++i) {
      to[(group / kLanes * planes * taps + i) * kLanes + group % kLanes] =
          to_compute<acc_t>(from[group * planes * taps + i]);
    }
  }
  return to;
}

// The same for where results go.
template <typename acc_t>
struct DepthwiseTarget {
  void* data;
  int64_t size;
  void (*store)(const acc_t* from, int64_t phase, const DepthwiseStrides&, const DepthwiseColumns&, void* row);

  void* at(int64_t offset) const {
    return static_cast<char*>(data) + offset * size;
  }
};

template <int kLanes, typename T>
DepthwiseTarget<accumulate_t<T>> depthwise_target(T* data) {
  using acc_t = accumulate_t<T>;
  return {data, sizeof(T),
          [](const acc_t* from, int64_t phase, const DepthwiseStrides& strides, const DepthwiseColumns& columns,
             void* row) { store_depthwise_row<kLanes>(from, phase, strides, columns, static_cast<T*>(row)); }};
}

// Every destination plane sums over the source planes of its group. Forward: one source plane, `multiplier`
// destinations; gradient of the input: the other way round.
template <typename acc_t, int kLanes>
struct DepthwiseConvolution {
  DepthwiseAxis rows;
  DepthwiseColumns columns;
  int64_t batch, kernel_h, kernel_w;
  DepthwiseLayout<kLanes> source, dest;

  DepthwiseConvolution(const Conv2dParams& p, bool transposed)
      : rows(axis(p.in_h, p.out_h, p.kernel_h, p.stride_h, p.pad_h, p.dilation_h, transposed)),
        columns(axis(p.in_w, p.out_w, p.kernel_w, p.stride_w, p.pad_w, p.dilation_w, transposed)),
        batch(p.batch),
        kernel_h(p.kernel_h),
        kernel_w(p.kernel_w),
        source{p.groups, 1, p.in_h, p.in_w},
        dest{p.groups, p.multiplier(), p.out_h, p.out_w} {
    if (transposed) {
      std::swap(source, dest);
    }
  }

  static DepthwiseAxis axis(int64_t in, int64_t out, int64_t kernel, int64_t stride, int64_t pad, int64_t dilation,
                            bool transposed) {
    return {transposed ? out : in, transposed ? in : out, kernel, stride, pad, dilation, transposed};
  }

  // Bands of rows where planes are too few to share out. Results do not depend on them.
  int64_t band_rows() const {
    constexpr int64_t kUnits = 32;
    const int64_t units = std::max<int64_t>(1, batch * source.blocks());
    const int64_t bands = (kUnits + units - 1) / units;
    return std::min(dest.height, std::max((dest.height + bands - 1) / bands, 2 * rows.reach()));
  }

  // `weight` and `bias` are packed; `bias` may be null.
  void run(const DepthwiseSource<acc_t>& from, const acc_t* weight, const acc_t* bias,
           const DepthwiseTarget<acc_t>& to) const {
    const int64_t band = band_rows();
    const int64_t bands = (dest.height + band - 1) / band;
    const int64_t cost = band * (source.planes * source.width + dest.planes * dest.width) * kLanes;
    parallel_items(batch * source.blocks() * bands, cost, [&](int64_t begin, int64_t end) {
      std::vector<DepthwiseRing<acc_t, kLanes>> rings(source.planes, {from, rows.reach(), columns});
      std::vector<DepthwiseTap<acc_t>> taps(source.planes * kernel_h * kernel_w);
      std::vector<acc_t> results((columns.dest_count + kDepthwiseLanes) * kLanes);
      for (int64_t unit = begin; unit < end; ++unit) {
        const int64_t block = unit / bands % source.blocks();
        const int64_t n = unit / bands / source.blocks();
        for (int64_t q = 0; q < source.planes; ++q) {
          rings[q].start(source.start(n, block, q), source.strides(block));
        }
        const int64_t first = unit % bands * band;
        for (int64_t y = first; y < std::min(first + band, dest.height); ++y) {
          row(rings, taps, results, weight, bias, to, n, block, y);
        }
      }
    });
  }

  void row(std::vector<DepthwiseRing<acc_t, kLanes>>& rings, std::vector<DepthwiseTap<acc_t>>& taps,
           std::vector<acc_t>& results, const acc_t* weight, const acc_t* bias, const DepthwiseTarget<acc_t>& to,
           int64_t n, int64_t block, int64_t y) const {
    static constexpr acc_t kZeros[kDepthwiseLanes] = {};
    const int64_t planes = source.planes * dest.planes;
    const DepthwiseStrides strides = dest.strides(block);
    for (int64_t q = 0; q < dest.planes; ++q) {
      const acc_t* add = bias ? bias + (block * dest.planes + q) * kLanes : kZeros;
      void* const result = to.at(dest.start(n, block, q) + y * strides.row);
      for (int64_t phase = 0; phase < columns.dest_phases; ++phase) {
        int64_t count = 0;
        for (int64_t plane = 0; plane < source.planes; ++plane) {
          const acc_t* kernel = weight + (block * planes + q + plane) * kernel_h * kernel_w * kLanes;
          for (int64_t i = 0; i < kernel_h; ++i) {
            const int64_t at = rows.feed(y, i);
            if (at < 0) {
              continue;
            }
            const acc_t* values = rings[plane].row(at);
            for (const DepthwiseColumns::Tap& tap : columns.taps[phase]) {
              taps[count++] = {values + tap.offset * kLanes, kernel + (i * kernel_w + tap.tap) * kLanes};
            }
          }
        }
        if constexpr (kLanes == 1) {
          depthwise_row(taps.data(), count, *add, columns.dest_count, results.data());
        } else {
          depthwise_row(taps.data(), count, add, columns.dest_count, results.data());
        }
        to.store(results.data(), phase, strides, columns, result);
      }
    }
  }
};

}  // namespace segkernels

// Softmax over logits that are upsampled bilinearly on the way: vectors run over the classes, which lie side by side,
// so that neither interpolation nor its transpose gathers. An output row is blended from two source rows, then its
// pixels.
#pragma once

#include "../common/bilinear.h"
#include "softmax_pixels.h"

namespace segkernels {
namespace {

// Logit of the classes that pad a pixel to whole vectors: its exponential is 0, and it can be interpolated.
constexpr float kNoClass = -1e30f;

template <typename T>
struct UpsampledColumns {
  std::vector<int64_t> low;                // [W]
  std::vector<T> low_weight, high_weight;  // [W]

  explicit UpsampledColumns(const SoftmaxParams& p) : low(p.out_w), low_weight(p.out_w), high_weight(p.out_w) {
    for (int64_t x = 0; x < p.out_w; ++x) {
      const BilinearTap<T> tap = bilinear_axis<T>(p.in_w, p.out_w, p.align_corners).tap(x);
      low[x] = tap.low;
      low_weight[x] = tap.low_weight;
      high_weight[x] = tap.high_weight;
    }
  }
};

// Rows [begin, end) of the output that read source row `source` first.
struct RowRange {
  int64_t begin, end;
};

template <typename T>
std::vector<RowRange> source_rows(const SoftmaxParams& p) {
  std::vector<RowRange> ranges(p.in_h, RowRange{0, 0});
  for (int64_t y = 0; y < p.out_h; ++y) {
    RowRange& range = ranges[bilinear_axis<T>(p.in_h, p.out_h, p.align_corners).tap(y).low];
    range.begin = range.end == 0 ? y : range.begin;
    range.end = y + 1;
  }
  return ranges;
}

// A source row as [w + 1, classes padded]; the last column is there twice, so that every column has a right neighbour.
template <typename T>
void load_source_row(const SoftmaxParams& p, const Planes& inputs, int64_t n, int64_t y, T* row) {
  const int64_t width = padded(p.classes);
  dispatch_floating(inputs.dtype, kSoftmaxStatistics, [&]<typename scalar_t>() {
    if constexpr (std::is_same_v<accumulate_t<scalar_t>, T>) {
      const scalar_t* from = static_cast<const scalar_t*>(inputs.data);
      const int64_t step = inputs.step();
      for (int64_t c = 0; c < p.classes; ++c) {
        const scalar_t* plane = from + inputs.start(n, c) + y * p.in_w * step;
        for (int64_t x = 0; x < p.in_w; ++x) {
          row[x * width + c] = to_compute<T>(plane[x * step]);
        }
      }
    }
  });
  for (int64_t x = 0; x < p.in_w; ++x) {
    std::fill(row + x * width + p.classes, row + (x + 1) * width, static_cast<T>(kNoClass));
  }
  std::copy(row + (p.in_w - 1) * width, row + p.in_w * width, row + p.in_w * width);
}

template <typename T>
SEGKERNELS_CLONES void blend(const T* low, const T* high, T low_weight, T high_weight, int64_t count, T* row) {
  for (int64_t i = 0; i < count; ++i) {
    row[i] = low[i] * low_weight + high[i] * high_weight;
  }
}

template <typename T>
SEGKERNELS_CLONES void add_scaled(const T* from, T weight, int64_t count, T* to) {
  for (int64_t i = 0; i < count; ++i) {
    to[i] += from[i] * weight;
  }
}

SEGKERNELS_INLINE float largest_lane(f32x8 x) {
  const auto larger = [](float a, float b) SEGKERNELS_INLINE_LAMBDA { return a > b ? a : b; };
  return larger(larger(larger(x[0], x[4]), larger(x[2], x[6])), larger(larger(x[1], x[5]), larger(x[3], x[7])));
}
SEGKERNELS_INLINE double largest_lane(double x) {
  return x;
}

// Pixels [begin, begin + count) of a blended row: tile [count, classes padded] = exp(x - max), and what PixelBlock
// keeps of it.
template <typename T>
SEGKERNELS_CLONES void upsampled_softmax(const T* row, const UpsampledColumns<T>& columns, int64_t begin,
                                         int64_t classes, const T* slope, const T* weights, PixelBlock<T>& block,
                                         T* tile) {
  using V = typename Lanes<T>::vector;
  const int64_t width = padded(classes);
  for (int64_t i = 0; i < block.count; ++i) {
    const int64_t x = begin + i;
    const T* low = row + columns.low[x] * width;
    const T* high = low + width;
    T* pixel = tile + i * width;
    if (block.bins[i] == classes) {
      std::fill(pixel, pixel + width, T(0));
      block.sum[i] = 1;
      block.label_shift[i] = block.label_exp[i] = block.smoothed[i] = block.dot[i] = 0;
      continue;
    }
    const V low_weight = V{} + columns.low_weight[x];
    const V high_weight = V{} + columns.high_weight[x];
    V most = load_vector<V>(low) * low_weight + load_vector<V>(high) * high_weight;
    store_vector(pixel, most);
    for (int64_t c = Lanes<T>::count; c < width; c += Lanes<T>::count) {
      const V value = load_vector<V>(low + c) * low_weight + load_vector<V>(high + c) * high_weight;
      store_vector(pixel + c, value);
      most = value > most ? value : most;
    }
    const T max = largest_lane(most);
    block.label_shift[i] = pixel[block.bins[i]] - max;
    if (weights) {
      V smoothed{};
      for (int64_t c = 0; c < width; c += Lanes<T>::count) {
        smoothed += load_vector<V>(weights + c) * (load_vector<V>(pixel + c) - max);
      }
      block.smoothed[i] = static_cast<T>(sum_lanes(smoothed));
    }
    V sum{}, dot{};
    for (int64_t c = 0; c < width; c += Lanes<T>::count) {
      const V e = exp_nonpositive(load_vector<V>(pixel + c) - max);
      store_vector(pixel + c, e);
      sum += e;
      if (slope) {
        dot += e * load_vector<V>(slope + c);
      }
    }
    block.sum[i] = static_cast<T>(sum_lanes(sum));
    block.dot[i] = static_cast<T>(sum_lanes(dot));
    block.label_exp[i] = pixel[block.bins[i]];
  }
  for (int64_t i = block.count; i < padded(block.count); ++i) {
    block.sum[i] = 1;
    block.label_shift[i] = block.label_exp[i] = block.smoothed[i] = block.dot[i] = 0;
  }
}

template <typename T>
SEGKERNELS_CLONES void sum_upsampled(const T* tile, const PixelBlock<T>& block, int64_t classes, double* region) {
  using V = typename Lanes<T>::vector;
  const int64_t width = padded(classes);
  for (int64_t c = 0; c < width; c += Lanes<T>::count) {
    V even{}, odd{};
    int64_t i = 0;
    for (; i + 2 <= block.count; i += 2) {
      even += load_vector<V>(tile + i * width + c) * block.inverse[i];
      odd += load_vector<V>(tile + (i + 1) * width + c) * block.inverse[i + 1];
    }
    if (i < block.count) {
      even += load_vector<V>(tile + i * width + c) * block.inverse[i];
    }
    T lanes[Lanes<T>::count];
    store_vector(lanes, even + odd);
    for (int64_t k = 0; k < Lanes<T>::count && c + k < classes; ++k) {
      region[(c + k) * kRegionSums + 1] += static_cast<double>(lanes[k]);
    }
  }
}

// Adds the gradients of the pixels to the columns that they were interpolated from: gradient [w + 1, classes padded].
template <typename T>
SEGKERNELS_CLONES void upsampled_gradients(const T* tile, const UpsampledColumns<T>& columns, int64_t begin,
                                           const PixelBlock<T>& block, const T* slope, const T* weights,
                                           int64_t classes, T* gradient) {
  using V = typename Lanes<T>::vector;
  const int64_t width = padded(classes);
  for (int64_t first = 0; first < block.count;) {
    const int64_t column = columns.low[begin + first];
    int64_t last = first + 1;
    while (last < block.count && columns.low[begin + last] == column) {
      ++last;
    }
    T* low = gradient + column * width;
    T* high = low + width;
    for (int64_t c = 0; c < width; c += Lanes<T>::count) {
      V to_low = load_vector<V>(low + c);
      V to_high = load_vector<V>(high + c);
      const V own = slope ? load_vector<V>(slope + c) : V{};
      for (int64_t i = first; i < last; ++i) {
        V value = load_vector<V>(tile + i * width + c) * block.inverse[i] * (own + block.shift[i]);
        if (weights) {
          value -= load_vector<V>(weights + c) * block.smoothing[i];
        }
        to_low += value * columns.low_weight[begin + i];
        to_high += value * columns.high_weight[begin + i];
      }
      store_vector(low + c, to_low);
      store_vector(high + c, to_high);
    }
    for (int64_t i = first; i < last; ++i) {
      if (block.bins[i] < classes) {
        low[block.bins[i]] += block.extra[i] * columns.low_weight[begin + i];
        high[block.bins[i]] += block.extra[i] * columns.high_weight[begin + i];
      }
    }
    first = last;
  }
}

// Consecutive source rows, an item of parallel work: their number depends on the shape only.
constexpr int64_t kBands = 8;  // of a sample

inline int64_t band_rows(const SoftmaxParams& p) {
  return (p.in_h + kBands - 1) / kBands;
}

// Walks the output rows of one band and calls f(block, tile, y, begin) on blocks of softmax values, then row(source, y,
// tap) after each output row and, after the last one that reads `source` first, done(source).
template <typename T>
class BandWalk {
 public:
  BandWalk(const SoftmaxParams& p, const Planes& inputs, const Labels& labels, const UpsampledColumns<T>& columns)
      : p_(p),
        inputs_(inputs),
        labels_(labels),
        columns_(columns),
        size_((p.in_w + 1) * padded(p.classes)),
        low_(size_),
        high_(size_),
        row_(size_),
        tile_(std::min(kPixels, p.out_w) * padded(p.classes)) {}

  int64_t size() const {
    return size_;
  }

  template <typename Block, typename Row>
  void rows(int64_t n, int64_t source, RowRange range, const ClassValues<T>& values, bool smoothed, const Block& f,
            const Row& row) {
    if (range.begin == range.end) {
      return;
    }
    load(n, source);
    const T* slope = values.probability.empty() ? nullptr : values.probability.data();
    for (int64_t y = range.begin; y < range.end; ++y) {
      const BilinearTap<T> tap = bilinear_axis<T>(p_.in_h, p_.out_h, p_.align_corners).tap(y);
      blend(low_.data(), high_.data(), tap.low_weight, tap.high_weight, size_, row_.data());
      for (int64_t begin = 0; begin < p_.out_w; begin += kPixels) {
        const int64_t pixel = n * p_.pixels() + y * p_.out_w + begin;
        pixels_.load(labels_, pixel, std::min(kPixels, p_.out_w - begin), static_cast<int32_t>(p_.classes), values);
        upsampled_softmax(row_.data(), columns_, begin, p_.classes, slope, smoothed ? values.smoothing.data() : nullptr,
                          pixels_, tile_.data());
        f(pixels_, tile_.data(), pixel, begin);
      }
      row(tap);
    }
  }

 private:
  void load(int64_t n, int64_t source) {
    const int64_t next = std::min(source + 1, p_.in_h - 1);
    if (n * p_.in_h + source == high_loaded_) {
      std::swap(low_, high_);
    } else {
      load_source_row(p_, inputs_, n, source, low_.data());
    }
    load_source_row(p_, inputs_, n, next, high_.data());
    high_loaded_ = n * p_.in_h + next;
  }

  const SoftmaxParams& p_;
  const Planes& inputs_;
  const Labels& labels_;
  const UpsampledColumns<T>& columns_;
  int64_t size_;
  std::vector<T> low_, high_, row_, tile_;
  PixelBlock<T> pixels_;
  int64_t high_loaded_ = -1;
};

}  // namespace
}  // namespace segkernels

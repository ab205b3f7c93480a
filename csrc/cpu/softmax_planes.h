// Softmax over logits of the target's size: a block of pixels by all classes stays in cache, vectors run over pixels.
#pragma once

#include "softmax_pixels.h"

namespace segkernels {
namespace {

constexpr int64_t kSoftmaxChunk = 4096;  // pixels of one sample; fixed, so that sums do not depend on threads

// Largest logit of each pixel, and a copy of all in `tile` [C, kPixels]: planes a power of two apart evict each other
// from the caches, so that a second pass over the tensor would go to memory again. `rows` may be `tile`.
template <typename T>
SEGKERNELS_CLONES void largest_logits(const T* rows, int64_t step, int64_t classes, int64_t count, T* tile, T* max) {
  using V = typename Lanes<T>::vector;
  constexpr int64_t kLine = 64 / sizeof(T);
  for (int64_t c = 0; c < classes; ++c) {
    const T* row = rows + c * step;
    T* to = tile + c * kPixels;
    // The hardware's prefetcher starts anew in every plane.
    for (int64_t i = 0; c + 1 < classes && i < count; i += kLine) {
      __builtin_prefetch(row + step + i);
    }
    if (c == 0) {
      std::copy(row, row + count, max);
    }
    for (int64_t i = 0; i < count; i += Lanes<T>::count) {
      const V x = load_vector<V>(row + i);
      const V most = load_vector<V>(max + i);
      store_vector(to + i, x);
      store_vector(max + i, x > most ? x : most);
    }
  }
}

// tile [C, step] = exp(x - max), and its sum; also the sum of tile * slope where slopes are given.
template <typename T>
SEGKERNELS_CLONES void exponentials(int64_t classes, int64_t count, const T* max, const T* slope, int64_t step, T* tile,
                                    T* sum, T* dot) {
  using V = typename Lanes<T>::vector;
  std::fill(sum, sum + count, T(0));
  std::fill(dot, dot + count, T(0));
  for (int64_t c = 0; c < classes; ++c) {
    T* row = tile + c * step;
    if (slope) {
      for (int64_t i = 0; i < count; i += Lanes<T>::count) {
        const V e = exp_nonpositive(load_vector<V>(row + i) - load_vector<V>(max + i));
        store_vector(row + i, e);
        store_vector(sum + i, load_vector<V>(sum + i) + e);
        store_vector(dot + i, load_vector<V>(dot + i) + e * slope[c]);
      }
    } else {
      for (int64_t i = 0; i < count; i += Lanes<T>::count) {
        const V e = exp_nonpositive(load_vector<V>(row + i) - load_vector<V>(max + i));
        store_vector(row + i, e);
        store_vector(sum + i, load_vector<V>(sum + i) + e);
      }
    }
  }
}

template <typename T>
SEGKERNELS_CLONES void weigh_logits(const T* tile, int64_t step, int64_t classes, int64_t count, const T* max,
                                    const T* weights, T* smoothed) {
  std::fill(smoothed, smoothed + count, T(0));
  for (int64_t c = 0; c < classes; ++c) {
    for (int64_t i = 0; i < count; ++i) {
      smoothed[i] += weights[c] * (tile[c * step + i] - max[i]);
    }
  }
}

// Adds the sum of every class's probabilities.
template <typename T>
SEGKERNELS_CLONES void sum_probabilities(const T* tile, int64_t step, const T* inverse, int64_t classes, int64_t count,
                                         double* region) {
  using V = typename Lanes<T>::vector;
  for (int64_t c = 0; c < classes; ++c) {
    const T* row = tile + c * step;
    V even{}, odd{};
    int64_t i = 0;
    for (; i + 2 * Lanes<T>::count <= count; i += 2 * Lanes<T>::count) {
      even += load_vector<V>(row + i) * load_vector<V>(inverse + i);
      odd += load_vector<V>(row + i + Lanes<T>::count) * load_vector<V>(inverse + i + Lanes<T>::count);
    }
    if (i < count) {
      even += load_vector<V>(row + i) * load_vector<V>(inverse + i);
    }
    region[c * kRegionSums + 1] += sum_lanes(even + odd);
  }
}

template <typename T>
SEGKERNELS_CLONES void plane_gradients(const T* tile, const PixelBlock<T>& block, const ClassValues<T>& values,
                                       int64_t classes, int64_t count, bool smoothed, int64_t step, T* output) {
  using V = typename Lanes<T>::vector;
  T labels[kPixels];
  for (int64_t i = 0; i < count; ++i) {
    labels[i] = static_cast<T>(block.bins[i]);
  }
  for (int64_t c = 0; c < classes; ++c) {
    const T* row = tile + c * kPixels;
    T* to = output + c * step;
    const T slope = values.probability.empty() ? T(0) : values.probability[c];
    const T weight = smoothed ? values.smoothing[c] : T(0);
    const V own = V{} + static_cast<T>(c);
    for (int64_t i = 0; i < count; i += Lanes<T>::count) {
      V gradient =
          load_vector<V>(row + i) * load_vector<V>(block.inverse + i) * (load_vector<V>(block.shift + i) + slope);
      if (smoothed) {
        gradient -= load_vector<V>(block.smoothing + i) * weight;
      }
      // A comparison costs less than a second visit to the label's plane.
      gradient += load_vector<V>(labels + i) == own ? load_vector<V>(block.extra + i) : V{};
      store_vector(to + i, gradient);
    }
  }
}

// One block of all classes: labels, logits and their exponentials.
template <typename T>
struct PlaneBlock {
  int64_t step;
  PixelBlock<T> pixels;
  std::vector<T> tile;  // [C, step]

  explicit PlaneBlock(int64_t classes, int64_t row = kPixels) : step(row), tile(classes * row) {}

  void softmax(const SoftmaxParams& p, const Planes& inputs, const Labels& labels, const ClassValues<T>& values,
               int64_t n, int64_t begin, int64_t count, bool smoothed) {
    const int64_t classes = p.classes;
    pixels.load(labels, n * p.pixels() + begin, count, static_cast<int32_t>(classes), values);
    // The tensor's own memory where whole vectors of it can be read as they stand.
    constexpr ScalarType own = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;
    const bool direct = !inputs.channels_last && !pixels.masked && inputs.dtype == own;
    const T* const rows = direct ? static_cast<const T*>(inputs.data) + inputs.start(n, 0) + begin : tile.data();
    if (!direct) {
      for (int64_t c = 0; c < classes; ++c) {
        T* const row = tile.data() + c * kPixels;
        load_block(inputs, n, c, begin, count, T(0), true, row);
        if (pixels.masked) {
          for (int64_t i = 0; i < count; ++i) {
            row[i] = pixels.valid[i] > 0 ? row[i] : T(0);
          }
        }
      }
    }
    largest_logits(rows, direct ? inputs.pixels : kPixels, classes, padded(count), tile.data(), pixels.max);
    exponentiate(classes, values, smoothed);
  }

  // From the logits in `tile` and pixels.max to exp(x - max), and what PixelBlock keeps of it.
  void exponentiate(int64_t classes, const ClassValues<T>& values, bool smoothed) {
    const int64_t size = padded(pixels.count);
    for (int64_t i = 0; i < size; ++i) {
      const int64_t c = std::min<int64_t>(pixels.bins[i], classes - 1);
      pixels.label_shift[i] = tile[c * step + i] - pixels.max[i];
    }
    if (smoothed) {
      weigh_logits(tile.data(), step, classes, size, pixels.max, values.smoothing.data(), pixels.smoothed);
    }
    const T* slope = values.probability.empty() ? nullptr : values.probability.data();
    exponentials(classes, size, pixels.max, slope, step, tile.data(), pixels.sum, pixels.dot);
    for (int64_t i = 0; i < size; ++i) {
      const int64_t c = std::min<int64_t>(pixels.bins[i], classes - 1);
      pixels.label_exp[i] = tile[c * step + i];
    }
  }
};

}  // namespace
}  // namespace segkernels

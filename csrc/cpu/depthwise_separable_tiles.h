// Depthwise-separable convolution tile by tile, in NCHW: the depthwise results of a few output rows, all channels, stay
// packed in a scratch of L2's size until the pointwise product has read them.
#pragma once

#include <limits>
#include <vector>

#include "../common/depthwise_separable_conv2d.h"
#include "depthwise_separable_rows.h"

namespace segkernels {

template <typename T>
class Separable {
 public:
  using acc_t = accumulate_t<T>;
  using G = Gemm<acc_t>;

  Separable(const SeparableParams& p, const T* input, const T* depthwise_weight, const T* depthwise_bias,
            const T* pointwise_weight, const T* pointwise_bias)
      : p_(p),
        input_(input),
        axis_{p.in_h, p.out_h, p.kernel_h, p.stride_h, p.pad_h, p.dilation_h, false},
        columns_({p.in_w, p.out_w, p.kernel_w, p.stride_w, p.pad_w, p.dilation_w, false}),
        depthwise_(p.hidden * p.taps()),
        depthwise_bias_(p.hidden),
        pointwise_(pack_pointwise(pointwise_weight)),
        bias_(G::col_panels(p.out_channels) * G::kCols),
        least_(p.relu ? acc_t(0) : -std::numeric_limits<acc_t>::infinity()) {
    for (size_t i = 0; i < depthwise_.size(); ++i) {
      depthwise_[i] = static_cast<acc_t>(depthwise_weight[i]);
    }
    for (int64_t h = 0; depthwise_bias && h < p.hidden; ++h) {
      depthwise_bias_[h] = static_cast<acc_t>(depthwise_bias[h]);
    }
    for (int64_t o = 0; pointwise_bias && o < p.out_channels; ++o) {
      bias_[o] = static_cast<acc_t>(pointwise_bias[o]);
    }
  }

  void forward(T* output) const {
    const int64_t tile = tile_rows();
    const int64_t pixels = (tile * p_.out_w + kUnit - 1) / kUnit * kUnit;
    parallel_items(
        (p_.rows() + tile - 1) / tile, pixels * p_.hidden * p_.out_channels, [&](int64_t begin, int64_t end) {
          // Zeros, since pixels behind the last one are multiplied too.
          std::vector<acc_t> hidden(pixels * p_.hidden);
          DepthwiseRing<acc_t, 1> ring(depthwise_source<1>(input_), axis_.reach(), columns_);
          for (int64_t i = begin; i < end; ++i) {
            const int64_t first = i * tile;
            const int64_t last = std::min(first + tile, p_.rows());
            const int64_t panels = G::col_panels((last - first) * p_.out_w);
            depthwise_rows(ring, first, last, [&](int64_t channel, int64_t m, int64_t row, const acc_t* from) {
              const int64_t h = channel * p_.multiplier() + m;
              const int64_t k0 = h / G::kDepth * G::kDepth;
              const int64_t depth = std::min(G::kDepth, p_.hidden - k0);
              place_columns(from, p_.out_w, least_, row * p_.out_w, depth * G::kCols,
                            hidden.data() + (k0 * panels + h - k0) * G::kCols);
            });
            pointwise_columns(hidden.data(), first * p_.out_w, (last - first) * p_.out_w, output);
          }
        });
  }

 private:
  // Pixels are multiplied in units of it.
  static constexpr int64_t kUnit = G::kCols;

  // As many rows as the scratch holds, and enough tiles for the threads; among the upper half, the least padding.
  int64_t tile_rows() const {
    constexpr int64_t kScratchBytes = 256 * 1024;
    constexpr int64_t kTiles = 16;
    const int64_t row = p_.out_w * p_.hidden * static_cast<int64_t>(sizeof(acc_t));
    const int64_t most = std::max<int64_t>(1, std::min(kScratchBytes / row, (p_.rows() + kTiles - 1) / kTiles));
    int64_t best = most;
    const auto padding = [&](int64_t rows) {
      return static_cast<double>((rows * p_.out_w + kUnit - 1) / kUnit * kUnit) / (rows * p_.out_w);
    };
    for (int64_t rows = most; 2 * rows > most; --rows) {
      best = padding(rows) < padding(best) ? rows : best;
    }
    return best;
  }

  // emit(channel, m, row, values) for rows [first, last) of all images: out_w results.
  template <typename Emit>
  void depthwise_rows(DepthwiseRing<acc_t, 1>& ring, int64_t first, int64_t last, const Emit& emit) const {
    const int64_t plane = p_.in_h * p_.in_w;
    const DepthwiseStrides strides{p_.in_w, 1, plane, 1};
    std::vector<DepthwiseTap<acc_t>> taps(p_.taps());
    std::vector<acc_t> result(p_.out_w + 16);  // whole vectors are written
    for (int64_t channel = 0; channel < p_.channels; ++channel) {
      int64_t image = -1;
      for (int64_t row = first; row < last; ++row) {
        if (row / p_.out_h != image) {
          image = row / p_.out_h;
          ring.start((image * p_.channels + channel) * plane, strides);
        }
        int64_t count = 0;
        const acc_t* weight = depthwise_.data() + channel * p_.multiplier() * p_.taps();
        for (int64_t ky = 0; ky < p_.kernel_h; ++ky) {
          const int64_t y = axis_.feed(row - image * p_.out_h, ky);
          if (y < 0) {
            continue;
          }
          const acc_t* source = ring.row(y);
          for (const auto& tap : columns_.taps[0]) {
            taps[count++] = {source + tap.offset, weight + ky * p_.kernel_w + tap.tap};
          }
        }
        for (int64_t m = 0; m < p_.multiplier(); ++m) {
          depthwise_row(taps.data(), count, depthwise_bias_[channel * p_.multiplier() + m], p_.out_w, result.data());
          emit(channel, m, row - first, result.data());
          for (int64_t t = 0; t < count; ++t) {
            taps[t].weight += p_.taps();
          }
        }
      }
    }
  }

  // Rows of the left operand, as gemm.h packs them.
  Scratch<acc_t> pack_pointwise(const T* weight) const {
    return pack_rows<acc_t>(p_.out_channels, p_.hidden, [&](int64_t k0, int64_t depth, int64_t panel, acc_t* to) {
      for (int64_t r = 0; r < G::kRows; ++r) {
        const int64_t o = panel * G::kRows + r;
        for (int64_t k = 0; k < depth; ++k) {
          to[k * G::kRows + r] = o < p_.out_channels ? static_cast<acc_t>(weight[o * p_.hidden + k0 + k]) : acc_t(0);
        }
      }
    });
  }

  // hidden [block of kDepth][panel of kCols pixels][depth][kCols]
  void pointwise_columns(const acc_t* hidden, int64_t first, int64_t pixels, T* output) const {
    // So many rows of weights stay in L2 while all pixels of the tile pass.
    constexpr int64_t kWeightBytes = 128 * 1024;
    const int64_t panels = G::col_panels(pixels);
    const int64_t row_panels = G::row_panels(p_.out_channels);
    const int64_t chunk =
        std::max<int64_t>(1, kWeightBytes / (p_.hidden * G::kRows * static_cast<int64_t>(sizeof(acc_t))));
    // Where images meet within a panel, whole rows are read from a column on: past the last one, too.
    Scratch<acc_t> tiles(std::min(chunk, row_panels) * G::kTile + G::kCols);
    for (int64_t r0 = 0; r0 < row_panels; r0 += chunk) {
      const int64_t count = std::min(chunk, row_panels - r0);
      for (int64_t panel = 0; panel < panels; ++panel) {
        for (int64_t k0 = 0; k0 < p_.hidden; k0 += G::kDepth) {
          const int64_t depth = std::min(G::kDepth, p_.hidden - k0);
          gemm_column_panel<acc_t>(count, depth, pointwise_.get() + (k0 * row_panels + r0 * depth) * G::kRows,
                                   hidden + (k0 * panels + panel * depth) * G::kCols, tiles.get(), k0 > 0);
        }
        store_columns(tiles.get(), r0 * G::kRows, std::min((r0 + count) * G::kRows, p_.out_channels),
                      first + panel * G::kCols, std::min<int64_t>(G::kCols, pixels - panel * G::kCols), output);
      }
    }
  }

  // Out channels [begin, end) of `count` pixels from `pixel` on, which may lie in several images.
  void store_columns(const acc_t* tiles, int64_t begin, int64_t end, int64_t pixel, int64_t count, T* output) const {
    for (int64_t col = 0; col < count;) {
      const int64_t n = (pixel + col) / p_.out_plane();
      const int64_t at = pixel + col - n * p_.out_plane();
      const int64_t run = std::min(count - col, p_.out_plane() - at);
      store_sums(tiles + col, bias_.data() + begin, least_, end - begin, run, p_.out_plane(),
                 output + (n * p_.out_channels + begin) * p_.out_plane() + at);
      col += run;
    }
  }

  const SeparableParams p_;
  const T* input_;
  DepthwiseAxis axis_;
  DepthwiseColumns columns_;
  std::vector<acc_t> depthwise_;       // [channel][m][tap]
  std::vector<acc_t> depthwise_bias_;  // [channel][m]
  Scratch<acc_t> pointwise_;
  std::vector<acc_t> bias_;  // [out channel], whole panels
  acc_t least_;
};

}  // namespace segkernels

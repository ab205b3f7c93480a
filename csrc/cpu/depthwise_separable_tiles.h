// Depthwise-separable convolution tile by tile: the depthwise results of a few output rows, all channels, stay in a
// scratch of L2's size until the pointwise product has read them. Channels_last multiplies pixels as they stand with
// packed weights; NCHW packs the depthwise rows and multiplies them with packed weights from the left.
#pragma once

#include <limits>
#include <vector>

#include "../common/depthwise_separable_conv2d.h"
#include "depthwise_separable_rows.h"

namespace segkernels {

template <typename T, int kLanes>
class Separable {
 public:
  using acc_t = accumulate_t<T>;
  static constexpr bool kChannelsLast = kLanes > 1;
  using G = std::conditional_t<kChannelsLast, RowGemm<acc_t>, Gemm<acc_t>>;

  Separable(const SeparableParams& p, const T* input, const T* depthwise_weight, const T* depthwise_bias,
            const T* pointwise_weight, const T* pointwise_bias)
      : p_(p),
        input_(input),
        axis_{p.in_h, p.out_h, p.kernel_h, p.stride_h, p.pad_h, p.dilation_h, false},
        columns_({p.in_w, p.out_w, p.kernel_w, p.stride_w, p.pad_w, p.dilation_w, false}),
        depthwise_(groups() * p.multiplier() * p.taps() * kLanes),
        depthwise_bias_(groups() * p.multiplier() * kLanes),
        pointwise_(pack_pointwise(pointwise_weight)),
        bias_(G::col_panels(p.out_channels) * G::kCols),
        least_(p.relu ? acc_t(0) : -std::numeric_limits<acc_t>::infinity()) {
    for (size_t i = 0; i < depthwise_.size(); ++i) {
      const int64_t lane = i % kLanes, tap = i / kLanes % p.taps(), m = i / (kLanes * p.taps()) % p.multiplier();
      const int64_t channel = i / (kLanes * p.taps() * p.multiplier()) * kLanes + lane;
      if (channel < p.channels) {
        const int64_t hidden = channel * p.multiplier() + m;
        depthwise_[i] = static_cast<acc_t>(depthwise_weight[hidden * p.taps() + tap]);
        if (tap == 0 && depthwise_bias) {
          depthwise_bias_[i / (kLanes * p.taps()) * kLanes + lane] = static_cast<acc_t>(depthwise_bias[hidden]);
        }
      }
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
          DepthwiseRing<acc_t, kLanes> ring(depthwise_source<kLanes>(input_), axis_.reach(), columns_);
          for (int64_t i = begin; i < end; ++i) {
            const int64_t first = i * tile;
            const int64_t last = std::min(first + tile, p_.rows());
            if constexpr (kChannelsLast) {
              depthwise_rows(ring, first, last, [&](int64_t channel, int64_t m, int64_t row, const acc_t* from) {
                place_pixels(from, p_.out_w, least_, std::min<int64_t>(kLanes, p_.channels - channel), p_.multiplier(),
                             p_.hidden, hidden.data() + row * p_.out_w * p_.hidden + channel * p_.multiplier() + m);
              });
              pointwise_pixels(hidden.data(), first * p_.out_w, (last - first) * p_.out_w, output);
            } else {
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
          }
        });
  }

 private:
  // Pixels are multiplied in units of it.
  static constexpr int64_t kUnit = kChannelsLast ? G::kRows : G::kCols;

  int64_t groups() const {
    return (p_.channels + kLanes - 1) / kLanes;
  }

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

  // emit(channel, m, row, values) for rows [first, last) of all images: out_w results of kLanes channels from `channel`
  // on.
  template <typename Emit>
  void depthwise_rows(DepthwiseRing<acc_t, kLanes>& ring, int64_t first, int64_t last, const Emit& emit) const {
    const int64_t plane = p_.in_h * p_.in_w;
    std::vector<DepthwiseTap<acc_t>> taps(p_.taps());
    std::vector<acc_t> result((p_.out_w + 16) * kLanes);  // whole vectors are written
    for (int64_t group = 0; group < groups(); ++group) {
      const int64_t channel = group * kLanes;
      const DepthwiseStrides strides = kChannelsLast
                                           ? DepthwiseStrides{p_.in_w * p_.channels, p_.channels, 1,
                                                              std::min<int64_t>(kLanes, p_.channels - channel)}
                                           : DepthwiseStrides{p_.in_w, 1, plane, 1};
      int64_t image = -1;
      for (int64_t row = first; row < last; ++row) {
        if (row / p_.out_h != image) {
          image = row / p_.out_h;
          ring.start(image * p_.channels * plane + channel * (kChannelsLast ? 1 : plane), strides);
        }
        int64_t count = 0;
        const acc_t* weight = depthwise_.data() + group * p_.multiplier() * p_.taps() * kLanes;
        for (int64_t ky = 0; ky < p_.kernel_h; ++ky) {
          const int64_t y = axis_.feed(row - image * p_.out_h, ky);
          if (y < 0) {
            continue;
          }
          const acc_t* source = ring.row(y);
          for (const auto& tap : columns_.taps[0]) {
            taps[count++] = {source + tap.offset * kLanes, weight + (ky * p_.kernel_w + tap.tap) * kLanes};
          }
        }
        for (int64_t m = 0; m < p_.multiplier(); ++m) {
          const acc_t* bias = depthwise_bias_.data() + (group * p_.multiplier() + m) * kLanes;
          if constexpr (kChannelsLast) {
            depthwise_row(taps.data(), count, bias, p_.out_w, result.data());
          } else {
            depthwise_row(taps.data(), count, *bias, p_.out_w, result.data());
          }
          emit(channel, m, row - first, result.data());
          for (int64_t t = 0; t < count; ++t) {
            taps[t].weight += p_.taps() * kLanes;
          }
        }
      }
    }
  }

  // NCHW: rows of the left operand, as gemm.h packs them. Channels_last: [panel of kCols out channels][hidden][kCols].
  Scratch<acc_t> pack_pointwise(const T* weight) const {
    if constexpr (kChannelsLast) {
      const int64_t panels = G::col_panels(p_.out_channels);
      Scratch<acc_t> packed(panels * p_.hidden * G::kCols);
      parallel_items(panels, p_.hidden * G::kCols, [&](int64_t begin, int64_t end) {
        for (int64_t panel = begin; panel < end; ++panel) {
          acc_t* to = packed.get() + panel * p_.hidden * G::kCols;
          const int64_t valid = std::min<int64_t>(G::kCols, p_.out_channels - panel * G::kCols);
          for (int64_t k = 0; k < p_.hidden; ++k) {
            for (int64_t o = 0; o < G::kCols; ++o) {
              to[k * G::kCols + o] =
                  o < valid ? static_cast<acc_t>(weight[(panel * G::kCols + o) * p_.hidden + k]) : acc_t(0);
            }
          }
        }
      });
      return packed;
    } else {
      return pack_rows<acc_t>(p_.out_channels, p_.hidden, [&](int64_t k0, int64_t depth, int64_t panel, acc_t* to) {
        for (int64_t r = 0; r < G::kRows; ++r) {
          const int64_t o = panel * G::kRows + r;
          for (int64_t k = 0; k < depth; ++k) {
            to[k * G::kRows + r] = o < p_.out_channels ? static_cast<acc_t>(weight[o * p_.hidden + k0 + k]) : acc_t(0);
          }
        }
      });
    }
  }

  // hidden [pixels][hidden]; `first` is the first pixel of all images. Weights that stay in L1 are read again for every
  // block of pixels, so that these are; else the pixels are read again for every panel of weights.
  void pointwise_pixels(const acc_t* hidden, int64_t first, int64_t pixels, T* output) const {
    constexpr int64_t kL1Weights = 16 * 1024;
    const int64_t panels = G::col_panels(p_.out_channels);
    const bool in_l1 = panels * G::kCols * p_.hidden * static_cast<int64_t>(sizeof(acc_t)) <= kL1Weights;
    const int64_t block = in_l1 ? 8 * G::kRows : pixels;
    Scratch<acc_t> tiles(G::row_panels(block) * G::kTile);
    for (int64_t pixel = 0; pixel < pixels; pixel += block) {
      const int64_t count = std::min(block, pixels - pixel);
      for (int64_t panel = 0; panel < panels; ++panel) {
        const acc_t* weight = pointwise_.get() + panel * p_.hidden * G::kCols;
        const int64_t o = panel * G::kCols;
        for (int64_t k0 = 0; k0 < p_.hidden; k0 += G::kDepth) {
          const int64_t depth = std::min(G::kDepth, p_.hidden - k0);
          multiply_pixels(hidden + pixel * p_.hidden + k0, count, p_.hidden, depth, weight + k0 * G::kCols, tiles.get(),
                          k0 == 0, k0 + depth == p_.hidden, bias_.data() + o, least_,
                          std::min<int64_t>(G::kCols, p_.out_channels - o), p_.out_channels,
                          output + (first + pixel) * p_.out_channels + o);
        }
      }
    }
  }

  // hidden [block of kDepth][panel of kCols pixels][depth][kCols]
  void pointwise_columns(const acc_t* hidden, int64_t first, int64_t pixels, T* output) const {
    // So many rows of weights stay in L2 while all pixels of the tile pass.
    constexpr int64_t kWeightBytes = 128 * 1024;
    const int64_t panels = G::col_panels(pixels);
    const int64_t row_panels = G::row_panels(p_.out_channels);
    const int64_t chunk =
        std::max<int64_t>(1, kWeightBytes / (p_.hidden * G::kRows * static_cast<int64_t>(sizeof(acc_t))));
    Scratch<acc_t> tiles(std::min(chunk, row_panels) * G::kTile);
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
  std::vector<acc_t> depthwise_;       // [group][m][tap][kLanes]
  std::vector<acc_t> depthwise_bias_;  // [group][m][kLanes]
  Scratch<acc_t> pointwise_;
  std::vector<acc_t> bias_;  // [out channel], whole panels
  acc_t least_;
};

}  // namespace segkernels

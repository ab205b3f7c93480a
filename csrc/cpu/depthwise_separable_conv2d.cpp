// Depthwise-separable convolution on the CPU: the depthwise results of a few output rows, all channels, stay in a
// scratch of L2's size until the pointwise product has read them. Channels_last multiplies pixels as they stand with
// packed weights; NCHW packs the depthwise rows and multiplies them with packed weights from the left.
#include <torch/csrc/stable/library.h>

#include <array>
#include <limits>
#include <optional>
#include <vector>

#include "../common/check.h"
#include "../common/conv_transpose2d.h"
#include "../common/depthwise_conv2d.h"
#include "../common/dispatch.h"
#include "../common/gemm.h"
#include "../common/vendor.h"

namespace segkernels {
namespace {

struct SeparableParams {
  int64_t batch;
  int64_t channels, in_h, in_w;
  int64_t hidden;  // channels between the two convolutions
  int64_t out_channels, out_h, out_w;
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t pad_h, pad_w;
  int64_t dilation_h, dilation_w;
  bool relu;

  int64_t taps() const {
    return kernel_h * kernel_w;
  }
  int64_t multiplier() const {
    return hidden / channels;
  }
  int64_t out_plane() const {
    return out_h * out_w;
  }
  // Output rows of all images.
  int64_t rows() const {
    return batch * out_h;
  }
};

SeparableParams separable_params(const char* op, const Tensor& input, const Tensor& depthwise_weight,
                                 const Tensor& pointwise_weight, const IntList& stride, const IntList& padding,
                                 const IntList& dilation, bool relu) {
  check_dim(input, 4, op, "input");
  check_dim(depthwise_weight, 4, op, "depthwise_weight");
  check_dim(pointwise_weight, 4, op, "pointwise_weight");
  check_same_dtype(input, depthwise_weight, op, "input", "depthwise_weight");
  check_same_dtype(input, pointwise_weight, op, "input", "pointwise_weight");
  SeparableParams p{};
  p.batch = input.size(0);
  p.channels = input.size(1);
  p.in_h = input.size(2);
  p.in_w = input.size(3);
  p.hidden = depthwise_weight.size(0);
  p.out_channels = pointwise_weight.size(0);
  p.kernel_h = depthwise_weight.size(2);
  p.kernel_w = depthwise_weight.size(3);
  p.stride_h = stride[0];
  p.stride_w = stride[1];
  p.pad_h = padding[0];
  p.pad_w = padding[1];
  p.dilation_h = dilation[0];
  p.dilation_w = dilation[1];
  p.relu = relu;
  STD_TORCH_CHECK(p.channels > 0 && p.hidden > 0 && p.hidden % p.channels == 0 && depthwise_weight.size(1) == 1, op,
                  ": expected depthwise_weight [C * M, 1, KH, KW] with C = ", p.channels, ", got shape ",
                  shape_string(depthwise_weight));
  STD_TORCH_CHECK(
      pointwise_weight.size(1) == p.hidden && pointwise_weight.size(2) == 1 && pointwise_weight.size(3) == 1, op,
      ": expected pointwise_weight [O, ", p.hidden, ", 1, 1], got shape ", shape_string(pointwise_weight));
  p.out_h = (p.in_h + 2 * p.pad_h - p.dilation_h * (p.kernel_h - 1) - 1) / p.stride_h + 1;
  p.out_w = (p.in_w + 2 * p.pad_w - p.dilation_w * (p.kernel_w - 1) - 1) / p.stride_w + 1;
  STD_TORCH_CHECK(p.in_h > 0 && p.in_w > 0 && p.out_h > 0 && p.out_w > 0, op, ": the output size ", p.out_h, "x",
                  p.out_w, " of input ", shape_string(input), " is too small");
  return p;
}

// The activation as a lower bound, which needs no branch: 0, or -inf for none. NaN stays, as in torch.
template <typename V, typename acc_t>
SEGKERNELS_INLINE V at_least(V value, acc_t least) {
  return value < least ? V{} + least : value;
}

// A depthwise row into panels of kCols columns, from column `col` on.
template <typename acc_t>
SEGKERNELS_CLONES void place_columns(const acc_t* from, int64_t count, acc_t least, int64_t col, int64_t panel_step,
                                     acc_t* panels) {
  constexpr int64_t kCols = Gemm<acc_t>::kCols;
  while (count > 0) {
    const int64_t at = col % kCols;
    const int64_t run = std::min(count, kCols - at);
    acc_t* to = panels + col / kCols * panel_step + at;
    for (int64_t i = 0; i < run; ++i) {
      to[i] = at_least(from[i], least);
    }
    from += run;
    col += run;
    count -= run;
  }
}

// `pixels` groups of kDepthwiseLanes channels into rows of pixels; `channel_step` apart, the first `channels` of them.
template <typename acc_t>
SEGKERNELS_CLONES void place_pixels(const acc_t* from, int64_t pixels, acc_t least, int64_t channels,
                                    int64_t channel_step, int64_t pixel_step, acc_t* to) {
  if (channel_step == 1 && channels == kDepthwiseLanes) {
    for (int64_t x = 0; x < pixels; ++x, from += kDepthwiseLanes, to += pixel_step) {
      for (int64_t c = 0; c < kDepthwiseLanes; ++c) {
        to[c] = at_least(from[c], least);
      }
    }
    return;
  }
  for (int64_t x = 0; x < pixels; ++x, from += kDepthwiseLanes, to += pixel_step) {
    for (int64_t c = 0; c < channels; ++c) {
      to[c * channel_step] = at_least(from[c], least);
    }
  }
}

// `count` rows of kCols sums into rows of the output, `width` of each: sums + the row's bias, activated.
template <typename T, typename acc_t>
SEGKERNELS_CLONES void store_sums(const acc_t* from, const acc_t* bias, acc_t least, int64_t count, int64_t width,
                                  int64_t to_step, T* to) {
  using G = Gemm<acc_t>;
  for (int64_t row = 0; row < count; ++row, from += G::kCols, to += to_step) {
    acc_t values[G::kCols];
    acc_t* whole = values;
    if constexpr (std::is_same_v<T, acc_t>) {
      whole = width == G::kCols ? to : values;
    }
#pragma GCC unroll 3
    for (int v = 0; v < G::kVectors; ++v) {
      using unaligned_vec = typename G::unaligned_vec;
      const typename G::vec sum = *reinterpret_cast<const unaligned_vec*>(from + v * G::kLanes) + bias[row];
      *reinterpret_cast<unaligned_vec*>(whole + v * G::kLanes) = at_least(sum, least);
    }
    if (whole == values) {
      for (int64_t i = 0; i < width; ++i) {
        store_value(to[i], values[i]);
      }
    }
  }
}

// One block of depth of pixels [pixels][row_step] times a panel of packed weights. The last block goes straight from
// registers to the output, `width` channels of each pixel: sums + bias, activated. Earlier ones wait in `tiles`.
template <typename T, typename acc_t>
SEGKERNELS_CLONES void multiply_pixels(const acc_t* hidden, int64_t pixels, int64_t row_step, int64_t depth,
                                       const acc_t* weight, acc_t* tiles, bool first_block, bool last_block,
                                       const acc_t* bias, acc_t least, int64_t width, int64_t to_step, T* to) {
  using G = RowGemm<acc_t>;
  for (int64_t pixel = 0; pixel < pixels; pixel += G::kRows, tiles += G::kTile) {
    const acc_t* const row = hidden + pixel * row_step;
    const acc_t* const rows[] = {
        row, row + row_step, row + 2 * row_step, row + 3 * row_step, row + 4 * row_step, row + 5 * row_step};
    const auto load = [&rows](int r, int64_t k) SEGKERNELS_INLINE_LAMBDA { return rows[r][k]; };
    if (!last_block) {
      G::tile_product(depth, load, weight, tiles, !first_block);
      continue;
    }
    typename G::Sums sums = {};
    G::add_products(depth, load, weight, sums);
    const int64_t count = std::min<int64_t>(G::kRows, pixels - pixel);
#pragma GCC unroll 6
    for (int r = 0; r < G::kRows; ++r) {
      if (r >= count) {
        break;
      }
      acc_t values[G::kCols];
      acc_t* whole = values;
      T* const target = to + (pixel + r) * to_step;
      if constexpr (std::is_same_v<T, acc_t>) {
        whole = width == G::kCols ? target : values;
      }
#pragma GCC unroll 3
      for (int v = 0; v < G::kVectors; ++v) {
        using unaligned_vec = typename G::unaligned_vec;
        typename G::vec sum = sums[r][v];
        if (!first_block) {
          sum += *reinterpret_cast<const unaligned_vec*>(tiles + r * G::kCols + v * G::kLanes);
        }
        sum += *reinterpret_cast<const unaligned_vec*>(bias + v * G::kLanes);
        *reinterpret_cast<unaligned_vec*>(whole + v * G::kLanes) = at_least(sum, least);
      }
      if (whole == values) {
        for (int64_t i = 0; i < width; ++i) {
          store_value(target[i], values[i]);
        }
      }
    }
  }
}

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
          DepthwiseRing<T, kLanes> ring(axis_.reach(), columns_);
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
  void depthwise_rows(DepthwiseRing<T, kLanes>& ring, int64_t first, int64_t last, const Emit& emit) const {
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
          ring.start(input_ + image * p_.channels * plane + channel * (kChannelsLast ? 1 : plane), strides);
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

Tensor depthwise_separable_conv2d_cpu(const Tensor& input,                          // [N, C, H, W]
                                      const Tensor& depthwise_weight,               // [C * M, 1, KH, KW]
                                      const Tensor& pointwise_weight,               // [O, C * M, 1, 1]
                                      const std::optional<Tensor>& depthwise_bias,  // [C * M]
                                      const std::optional<Tensor>& pointwise_bias,  // [O]
                                      IntList stride, IntList padding, IntList dilation, bool relu) {
  const char* op = "depthwise_separable_conv2d";
  const SeparableParams p =
      separable_params(op, input, depthwise_weight, pointwise_weight, stride, padding, dilation, relu);
  const bool channels_last = is_channels_last(input);
  Tensor output = empty_nchw(p.batch, p.out_channels, p.out_h, p.out_w, input.scalar_type(), input,
                             channels_last);  // [N, O, OH, OW]
  if (output.numel() == 0) {
    return output;
  }
  const auto dense = [&](const std::optional<Tensor>& bias, int64_t size, const char* name) {
    if (!bias) {
      return Tensor();
    }
    check_same_dtype(input, *bias, op, "input", name);
    STD_TORCH_CHECK(bias->numel() == size, op, ": expected ", name, " [", size, "], got shape ", shape_string(*bias));
    return torch::stable::contiguous(*bias);
  };
  const Tensor x = to_dense(input, channels_last);
  const Tensor dw = torch::stable::contiguous(depthwise_weight);
  const Tensor pw = torch::stable::contiguous(pointwise_weight);
  const Tensor db = dense(depthwise_bias, p.hidden, "depthwise_bias");
  const Tensor pb = dense(pointwise_bias, p.out_channels, "pointwise_bias");
  dispatch_floating(input.scalar_type(), op, [&]<typename T>() {
    const auto data = [](const Tensor& tensor) { return static_cast<const T*>(tensor.const_data_ptr()); };
    const auto run = [&]<int kLanes>() {
      Separable<T, kLanes>(p, data(x), data(dw), depthwise_bias ? data(db) : nullptr, data(pw),
                           pointwise_bias ? data(pb) : nullptr)
          .forward(static_cast<T*>(output.mutable_data_ptr()));
    };
    if (channels_last) {
      run.template operator()<kDepthwiseLanes>();
    } else {
      run.template operator()<1>();
    }
  });
  return output;
}

// values where the activation passed, 0 elsewhere; all three in one dense layout.
template <typename T>
SEGKERNELS_CLONES void mask_values(const T* values, const T* activated, int64_t begin, int64_t end, T* to) {
  for (int64_t i = begin; i < end; ++i) {
    to[i] = activated[i] > T(0) ? values[i] : T(0);
  }
}

Tensor masked(const Tensor& values, const Tensor& activated, bool channels_last) {
  const Tensor v = to_dense(values, channels_last);
  const Tensor a = to_dense(activated, channels_last);
  Tensor result = empty_nchw(v.size(0), v.size(1), v.size(2), v.size(3), v.scalar_type(), v, channels_last);
  dispatch_floating(v.scalar_type(), "depthwise_separable_conv2d_backward", [&]<typename T>() {
    const T* from = static_cast<const T*>(v.const_data_ptr());
    const T* mask = static_cast<const T*>(a.const_data_ptr());
    T* to = static_cast<T*>(result.mutable_data_ptr());
    parallel_items(v.numel(), 1, [&](int64_t begin, int64_t end) { mask_values(from, mask, begin, end, to); });
  });
  return result;
}

// `output` stands for the activation: absent without one. Gradients that are not asked for come back empty.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> depthwise_separable_conv2d_backward_cpu(
    const Tensor& grad_output,                    // [N, O, OH, OW]
    const std::optional<Tensor>& output,          // [N, O, OH, OW]
    const Tensor& input,                          // [N, C, H, W]
    const Tensor& depthwise_weight,               // [C * M, 1, KH, KW]
    const Tensor& pointwise_weight,               // [O, C * M, 1, 1]
    const std::optional<Tensor>& depthwise_bias,  // [C * M]
    IntList stride, IntList padding, IntList dilation, bool need_input, bool need_depthwise_weight,
    bool need_pointwise_weight, bool need_depthwise_bias, bool need_pointwise_bias) {
  const char* op = "depthwise_separable_conv2d_backward";
  const SeparableParams p =
      separable_params(op, input, depthwise_weight, pointwise_weight, stride, padding, dilation, output.has_value());
  const bool channels_last = is_channels_last(input);
  const VendorConvolution depthwise{stride, padding, dilation, {0, 0}, false, p.channels};
  const VendorConvolution pointwise{{1, 1}, {0, 0}, {1, 1}, {0, 0}, false, 1};
  const Tensor none = torch::stable::new_empty(input, {0});
  const bool need_hidden = need_input || need_depthwise_weight || need_depthwise_bias;

  Tensor hidden = depthwise.forward(input, depthwise_weight, depthwise_bias);
  if (output) {
    hidden = masked(hidden, hidden, channels_last);
  }
  const Tensor grad = output ? masked(grad_output, *output, channels_last) : grad_output;
  const auto outer =
      pointwise.backward(grad, hidden, pointwise_weight, {need_hidden, need_pointwise_weight, need_pointwise_bias});
  std::array<std::optional<Tensor>, 3> inner;
  if (need_hidden) {
    const Tensor grad_hidden = output ? masked(*outer[0], hidden, channels_last) : *outer[0];
    inner = depthwise.backward(grad_hidden, input, depthwise_weight,
                               {need_input, need_depthwise_weight, need_depthwise_bias});
  }
  const auto or_none = [&](const std::optional<Tensor>& found, bool like_input) {
    return found ? to_dense(*found, like_input && channels_last) : none;
  };
  return {or_none(inner[0], true), or_none(inner[1], false), or_none(outer[1], false), inner[2].value_or(none),
          outer[2].value_or(none)};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("depthwise_separable_conv2d", TORCH_BOX(&depthwise_separable_conv2d_cpu));
  m.impl("depthwise_separable_conv2d_backward", TORCH_BOX(&depthwise_separable_conv2d_backward_cpu));
}

}  // namespace segkernels

// A sum of matrix products over shifted maps: what a dilated convolution of stride 1 is, and its gradients are.
//
// Pixels that have the same taps inside the map stand next to each other in the product's order, whatever rows they lie
// in, and are multiplied six at a time. Six pixels are multiplied only with the taps that some of them has: at large
// dilations most of the kernel lies in the padding and is never computed.
#pragma once

#include <cstring>

#include "../common/simd.h"
#include "pixel_rows.h"

namespace segkernels {

// Channels of the result that are computed together: their weights are packed at a time, so that a copy of all of them
// never exists. Each slab reads the whole source again, which must not become slower than the products are (two cores,
// 3x3: 2048 channels of 33x33 lose 8% with 64, 512 channels of 33x33 win as much).
template <typename acc_t>
int64_t row_slab(int64_t pixels, int64_t depth) {
  constexpr int64_t kCached = int64_t{4} << 20;
  return pixels * depth * static_cast<int64_t>(sizeof(acc_t)) <= kCached ? 64 : 128;
}

// Pixels that are: a panel of weights is read from L1 for all of them.
constexpr int64_t kPixelGroup = 96;

// Where element (row, k) of tap t is: weight[row * row + k * depth + t * tap].
struct TapSteps {
  int64_t row, depth, tap;
};

// Weights of all taps, each as the right operand of a product: to[tap][block of kDepth][row panel][depth][kCols].
template <typename acc_t, typename T>
void pack_taps(const T* weight, const TapSteps& steps, int64_t rows, int64_t depth, int64_t taps, acc_t* to) {
  using G = RowGemm<acc_t>;
  const int64_t panels = G::col_panels(rows);
  const int64_t size = panels * G::kCols * depth;
  // What is contiguous is turned at once: all taps of a place, or one, and a few places of the depth.
  const int64_t together = steps.tap == 1 ? taps : 1;
  const int64_t most = steps.depth == together ? 8 : 1;
  const int64_t blocks = (depth + G::kDepth - 1) / G::kDepth;
  parallel_items(panels * blocks, taps * G::kDepth * G::kCols, [&](int64_t begin, int64_t end) {
    Scratch<acc_t> values(G::kCols * most * together), turned(most * together * G::kCols);
    std::fill_n(values.get(), G::kCols * most * together, acc_t(0));
    for (int64_t item = begin; item < end; ++item) {
      const int64_t panel = item / blocks, k0 = item % blocks * G::kDepth;
      const int64_t valid = std::min<int64_t>(G::kCols, rows - panel * G::kCols);
      const int64_t block = std::min(G::kDepth, depth - k0);
      for (int64_t tap = 0; tap < taps; tap += together) {
        for (int64_t k = k0, count; k < k0 + block; k += count) {
          count = std::min(most, k0 + block - k);
          const T* from = weight + panel * G::kCols * steps.row + k * steps.depth + tap * steps.tap;
          const acc_t* source = values.get();
          int64_t step = most * together;
          if constexpr (std::is_same_v<T, acc_t>) {
            source = valid == G::kCols ? from : source;
            step = valid == G::kCols ? steps.row : step;
          }
          for (int64_t r = 0; source == values.get() && r < valid; ++r) {
            load_values(from + r * steps.row, 1, count * together, values.get() + r * step);
          }
          transpose(source, step, G::kCols, count * together, turned.get(), G::kCols);
          acc_t* first = to + tap * size + (k0 * panels + panel * block + k - k0) * G::kCols;
          for (int64_t t = 0; t < together; ++t) {
            for (int64_t i = 0; i < count; ++i) {
              std::copy_n(turned.get() + (i * together + t) * G::kCols, G::kCols, first + t * size + i * G::kCols);
            }
          }
        }
      }
    }
  });
}

template <typename acc_t>
int64_t packed_tap_size(int64_t rows, int64_t depth) {
  return RowGemm<acc_t>::col_panels(rows) * RowGemm<acc_t>::kCols * depth;
}

// All pixels of a batch, those with the same taps inside the map side by side.
inline std::vector<Pixel> pixels_by_taps(int64_t batch, int64_t height, int64_t width, const std::vector<Tap>& taps) {
  std::vector<int64_t> rows{0, height}, columns{0, width};  // where the set of taps changes
  for (const Tap& tap : taps) {
    rows.push_back(std::clamp<int64_t>(tap.dy < 0 ? -tap.dy : height - tap.dy, 0, height));
    columns.push_back(std::clamp<int64_t>(tap.dx < 0 ? -tap.dx : width - tap.dx, 0, width));
  }
  for (auto* cuts : {&rows, &columns}) {
    std::sort(cuts->begin(), cuts->end());
    cuts->erase(std::unique(cuts->begin(), cuts->end()), cuts->end());
  }
  std::vector<Pixel> pixels;
  pixels.reserve(batch * height * width);
  for (size_t r = 0; r + 1 < rows.size(); ++r) {
    for (size_t i = 0; i + 1 < columns.size(); ++i) {
      // Back and forth, so that neighbours in the order share most taps.
      const size_t c = r % 2 ? columns.size() - 2 - i : i;
      for (int64_t n = 0; n < batch; ++n) {
        for (int64_t y = rows[r]; y < rows[r + 1]; ++y) {
          for (int64_t x = columns[c]; x < columns[c + 1]; ++x) {
            pixels.push_back({n, y, x});
          }
        }
      }
    }
  }
  return pixels;
}

// tiles += the pixels of `units`, kRows rows each, from channel k0 on, times a panel of weights.
template <typename acc_t>
SEGKERNELS_CLONES void multiply_units(const acc_t* const* rows, const int64_t* units, int64_t count, int64_t k0,
                                      int64_t depth, const acc_t* weight, acc_t* tiles) {
  using G = RowGemm<acc_t>;
  for (int64_t i = 0; i < count; ++i) {
    const acc_t* const* unit = rows + units[i] * G::kRows;
    const acc_t* const a[] = {unit[0] + k0, unit[1] + k0, unit[2] + k0, unit[3] + k0, unit[4] + k0, unit[5] + k0};
    const auto load = [&a](int r, int64_t k) SEGKERNELS_INLINE_LAMBDA { return a[r][k]; };
    G::tile_product(depth, load, weight, tiles + units[i] * G::kTile, true);
  }
}

template <typename T, typename acc_t>
SEGKERNELS_CLONES void store_rows(const acc_t* from, int64_t from_step, int64_t rows, int64_t length, T* const* to,
                                  int64_t offset) {
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t i = 0; i < length; ++i) {
      store_value(to[row][offset + i], from[row * from_step + i]);
    }
  }
}

// Where results go: channels from `channel` on of a dense [N, C, H, W].
struct ShiftedTarget {
  Tensor tensor;
  bool channels_last;
  int64_t channel;

  // tiles [panel][kPixelGroup][kCols]: `rows` channels of `count` pixels.
  template <typename T, typename acc_t>
  void store(const acc_t* tiles, const Pixel* pixels, int64_t count, int64_t rows) const {
    constexpr int64_t kCols = RowGemm<acc_t>::kCols;
    T* const data = static_cast<T*>(const_cast<void*>(tensor.const_data_ptr()));
    const int64_t channels = tensor.size(1), width = tensor.size(3), plane = tensor.size(2) * width;
    T* to[kPixelGroup];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = pixels[i].y * width + pixels[i].x;
      to[i] = data + pixels[i].n * channels * plane + (channels_last ? at * channels + channel : at + channel * plane);
    }
    acc_t turned[kCols * kPixelGroup];
    for (int64_t first = 0; first < rows; first += kCols, tiles += kPixelGroup * kCols) {
      const int64_t valid = std::min(kCols, rows - first);
      if (channels_last) {
        store_rows(tiles, kCols, count, valid, to, first);
        continue;
      }
      transpose(tiles, kCols, count, kCols, turned, kPixelGroup);
      for (int64_t i = 0, end; i < count; i = end) {
        for (end = i + 1; end < count && to[end] == to[i] + (end - i); ++end) {
        }
        T* planes[kCols];
        for (int64_t r = 0; r < valid; ++r) {
          planes[r] = to[i] + (first + r) * plane;
        }
        store_rows(turned + i, kPixelGroup, valid, end - i, planes, 0);
      }
    }
  }
};

// target[row, pixel] = bias[row] + sum over taps t and k < depth of weights[t][row, k] * source[t.channel + k, pixel +
// t], where `weights[t]` is one tap of pack_taps. `bias` may be null.
template <typename acc_t>
void shifted_products(const PixelRows<acc_t>& source, int64_t depth, const std::vector<Tap>& taps,
                      const std::vector<const acc_t*>& weights, const std::vector<Pixel>& pixels, int64_t rows,
                      const acc_t* bias, const ShiftedTarget& target) {
  using G = RowGemm<acc_t>;
  constexpr int64_t kUnits = kPixelGroup / G::kRows;
  const int64_t total = static_cast<int64_t>(pixels.size());
  const int64_t groups = (total + kPixelGroup - 1) / kPixelGroup;
  // Neighbours have about as many taps inside: they are dealt out to the threads in turn.
  const int64_t threads = torch::stable::get_num_threads();
  std::vector<int64_t> dealt;
  for (int64_t first = 0; first < threads; ++first) {
    for (int64_t group = first; group < groups; group += threads) {
      dealt.push_back(group);
    }
  }
  const int64_t panels = G::col_panels(rows);
  const std::vector<acc_t> zeros(depth);  // pixels in the padding
  const int64_t work = depth * rows * static_cast<int64_t>(taps.size());
  parallel_items(groups, work, [&](int64_t begin, int64_t end) {
    Scratch<acc_t> tiles(panels * kPixelGroup * G::kCols);
    const acc_t* pointers[kPixelGroup];
    int64_t units[kUnits];
    for (int64_t item = begin; item < end; ++item) {
      const int64_t group = dealt[item];
      const Pixel* const first = pixels.data() + group * kPixelGroup;
      const int64_t pixel_count = std::min(kPixelGroup, total - group * kPixelGroup);
      for (int64_t i = 0; i < panels * kPixelGroup * G::kCols; ++i) {
        const int64_t row = i / (kPixelGroup * G::kCols) * G::kCols + i % G::kCols;
        tiles.get()[i] = bias && row < rows ? bias[row] : acc_t(0);
      }
      for (size_t t = 0; t < taps.size(); ++t) {
        int64_t unit_count = 0;
        for (int64_t unit = 0; unit * G::kRows < pixel_count; ++unit) {
          bool inside = false;
          for (int64_t i = unit * G::kRows; i < (unit + 1) * G::kRows; ++i) {
            const acc_t* pointer = i < pixel_count ? source.at(first[i], taps[t]) : nullptr;
            inside |= pointer != nullptr;
            pointers[i] = pointer ? pointer : zeros.data();
          }
          units[unit_count] = unit;
          unit_count += inside;
        }
        for (int64_t k0 = 0; unit_count && k0 < depth; k0 += G::kDepth) {
          const int64_t block = std::min(G::kDepth, depth - k0);
          for (int64_t panel = 0; panel < panels; ++panel) {
            const int64_t place = k0 * panels + panel * block;
            multiply_units(pointers, units, unit_count, k0, block, weights[t] + place * G::kCols,
                           tiles.get() + panel * kPixelGroup * G::kCols);
          }
        }
      }
      dispatch_floating(target.tensor.scalar_type(), "shifted products", [&]<typename T>() {
        if constexpr (std::is_same_v<accumulate_t<T>, acc_t>) {
          target.store<T>(tiles.get(), first, pixel_count, rows);
        }
      });
    }
  });
}

// grad[row, column] += sum over pixels of map[channel + row, pixel] * source[column, pixel + tap].
template <typename acc_t>
void add_shifted_outer_product(const PixelRows<acc_t>& map, int64_t channel, int64_t rows,
                               const PixelRows<acc_t>& source, const Tap& tap, acc_t* grad) {
  using G = Gemm<acc_t>;
  std::vector<const acc_t*> left, right;  // of the pixels whose tap lies inside
  for (int64_t n = 0; n < map.batch; ++n) {
    for (int64_t y = std::max<int64_t>(0, -tap.dy); y < map.height - std::max<int64_t>(0, tap.dy); ++y) {
      for (int64_t x = std::max<int64_t>(0, -tap.dx); x < map.width - std::max<int64_t>(0, tap.dx); ++x) {
        left.push_back(map.at({n, y, x}, {0, 0, channel}));
        right.push_back(source.at({n, y, x}, tap));
      }
    }
  }
  const auto pack = [](const std::vector<const acc_t*>& pixels, int64_t k0, int64_t count, int64_t first, int64_t valid,
                       auto width, acc_t* to) {
    for (int64_t i = 0; i < count; ++i, to += width()) {
      const acc_t* from = pixels[k0 + i] + first;
      if (valid == width()) {
        std::memcpy(to, from, width() * sizeof(acc_t));
      } else {
        std::fill(std::copy_n(from, valid, to), to + width(), acc_t(0));
      }
    }
  };
  const int64_t total = static_cast<int64_t>(left.size());
  const auto packed = pack_rows<acc_t>(rows, total, [&](int64_t k0, int64_t count, int64_t panel, acc_t* to) {
    const int64_t first = panel * G::kRows;
    pack(left, k0, count, first, std::min<int64_t>(G::kRows, rows - first), std::integral_constant<int64_t, G::kRows>{},
         to);
  });
  const auto pack_source = [&](int64_t k0, int64_t count, int64_t panel, acc_t* to) {
    const int64_t first = panel * G::kCols;
    pack(right, k0, count, first, std::min<int64_t>(G::kCols, source.channels - first),
         std::integral_constant<int64_t, G::kCols>{}, to);
  };
  gemm_columns<acc_t>(rows, total, source.channels, packed, pack_source, [&](int64_t panel, const acc_t* tiles) {
    const int64_t channels = std::min<int64_t>(G::kCols, source.channels - panel * G::kCols);
    for (int64_t row = 0; row < rows; ++row) {
      acc_t* to = grad + row * source.channels + panel * G::kCols;
      for (int64_t c = 0; c < channels; ++c) {
        to[c] += tiles[row * G::kCols + c];
      }
    }
  });
}

}  // namespace segkernels

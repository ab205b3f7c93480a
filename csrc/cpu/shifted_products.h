// A sum of matrix products over shifted maps: what a dilated convolution of stride 1 is, and its gradients are.
//
// Pixels that have the same taps inside the map stand next to each other in the product's order, whatever rows they lie
// in, and are cut into panels of Gemm::kCols. A panel is multiplied only with the taps that some pixel of it has: at
// large dilations most of the kernel lies in the padding and is never computed.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "../common/gemm.h"
#include "../common/loss_blocks.h"
#include "../common/parallel.h"
#include "../common/simd.h"
#include "../common/transpose.h"

namespace segkernels {

// A dense [N, C, H, W] in either layout.
template <typename T>
struct Map {
  T* data;
  int64_t channels, height, width;
  bool channels_last;

  int64_t pixel_step() const {
    return channels_last ? channels : 1;
  }
  int64_t channel_step() const {
    return channels_last ? 1 : height * width;
  }
  T* at(int64_t n, int64_t c, int64_t y, int64_t x) const {
    return data + n * channels * height * width + c * channel_step() + (y * width + x) * pixel_step();
  }
};

struct Pixel {
  int64_t n, y, x;
};

// Rows of the product that are computed together: their sums and a block of their weights lie in L2.
constexpr int64_t kRowChunk = 256;

// A tap reads the pixel at (y + dy, x + dx), from `channel` on.
struct Tap {
  int64_t dy, dx, channel;
};

// Pixels that follow each other in memory, in columns [column, column + length) of a panel; no data: padding.
template <typename T>
struct Run {
  int64_t column, length;
  T* data;
};

template <typename T, int64_t kMost>
struct Runs {
  std::array<Run<T>, kMost> runs;
  int64_t count = 0;
  bool inside = false;  // some pixel of some run

  Runs(const Map<T>& map, const Pixel* pixels, int64_t pixel_count, const Tap& tap) {
    for (int64_t i = 0; i < pixel_count; ++i) {
      const int64_t y = pixels[i].y + tap.dy;
      const int64_t x = pixels[i].x + tap.dx;
      T* data = nullptr;
      if (y >= 0 && y < map.height && x >= 0 && x < map.width) {
        data = map.at(pixels[i].n, tap.channel, y, x);
        inside = true;
      }
      if (count > 0) {
        Run<T>& last = runs[count - 1];
        if (data == (last.data ? last.data + last.length * map.pixel_step() : nullptr)) {
          ++last.length;
          continue;
        }
      }
      runs[count++] = {i, 1, data};
    }
  }
  const Run<T>* begin() const {
    return runs.data();
  }
  const Run<T>* end() const {
    return runs.data() + count;
  }
};

// `rows` rows of `length` values each, `from_step` and `to_step` apart.
template <typename T, typename acc_t>
SEGKERNELS_CLONES void copy_rows(const T* from, int64_t from_step, int64_t rows, int64_t length, acc_t* to,
                                 int64_t to_step) {
  for (int64_t row = 0; row < rows; ++row, from += from_step, to += to_step) {
    if constexpr (std::is_same_v<T, float>) {
      // Whole vectors, the last one overlapping: rows are a few pixels long.
      if (length >= 8) {
        for (int64_t i = 0; i < length; i += 8) {
          const int64_t at = std::min(i, length - 8);
          store_vector(to + at, load_vector<f32x8>(from + at));
        }
        continue;
      }
    }
    for (int64_t i = 0; i < length; ++i) {
      to[i] = to_compute<acc_t>(from[i]);
    }
  }
}

// `depth` channels of the pixels of a panel as [depth][kCols]. `rows` holds as much as the panel.
template <typename T, typename acc_t, int64_t kMost>
void pack_pixels(const Map<const T>& map, const Runs<const T, kMost>& runs, int64_t columns, int64_t k0, int64_t depth,
                 acc_t* rows, acc_t* to) {
  constexpr int64_t kCols = Gemm<acc_t>::kCols;
  const bool whole = runs.count == 1 && columns == kCols && runs.inside;
  if (map.channels_last) {
    if constexpr (std::is_same_v<T, acc_t>) {
      if (whole) {
        transpose(runs.runs[0].data + k0, map.channels, kCols, depth, to, kCols);
        return;
      }
    }
    if (!whole) {
      std::memset(rows, 0, kCols * depth * sizeof(acc_t));
    }
    for (const auto& run : runs) {
      if (run.data) {
        copy_rows(run.data + k0, map.channels, run.length, depth, rows + run.column * depth, depth);
      }
    }
    transpose(rows, depth, kCols, depth, to, kCols);
    return;
  }
  if (!whole) {
    std::memset(to, 0, kCols * depth * sizeof(acc_t));
  }
  for (const auto& run : runs) {
    if (run.data) {
      copy_rows(run.data + k0 * map.channel_step(), map.channel_step(), depth, run.length, to + run.column, kCols);
    }
  }
}

// sums [row][kCols] into `rows` channels of the panel's pixels.
template <typename T, typename acc_t, int64_t kMost>
void store_pixels(const Map<T>& map, const Runs<T, kMost>& runs, int64_t rows, const acc_t* sums) {
  constexpr int64_t kCols = Gemm<acc_t>::kCols;
  for (const auto& run : runs) {
    if (map.channels_last) {
      for (int64_t i = 0; i < run.length; ++i) {
        acc_t values[kRowChunk];
        load_values(sums + run.column + i, kCols, rows, values);
        store_values(values, 1, rows, run.data + i * map.channels);
      }
    } else {
      for (int64_t row = 0; row < rows; ++row) {
        store_values(sums + row * kCols + run.column, 1, run.length, run.data + row * map.channel_step());
      }
    }
  }
}

// Weights of all taps, each as the left operand of a product: [tap][block of kDepth][row panel][depth][kRows]. Element
// (row, k) of tap t is weight[row * row_step + k * depth_step + t].
template <typename acc_t, typename T>
Scratch<acc_t> pack_taps(const T* weight, int64_t rows, int64_t depth, int64_t taps, int64_t row_step,
                         int64_t depth_step) {
  using G = Gemm<acc_t>;
  const int64_t panels = G::row_panels(rows);
  const int64_t size = panels * G::kRows * depth;
  Scratch<acc_t> packed(taps * size);
  parallel_items(panels, taps * depth * G::kRows, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      for (int64_t k0 = 0; k0 < depth; k0 += G::kDepth) {
        const int64_t count = std::min(G::kDepth, depth - k0);
        acc_t* to = packed.get() + (k0 * panels + panel * count) * G::kRows;
        for (int64_t k = 0; k < count; ++k) {
          for (int64_t r = 0; r < G::kRows; ++r) {
            const int64_t row = panel * G::kRows + r;
            const T* from = weight + row * row_step + (k0 + k) * depth_step;
            for (int64_t t = 0; t < taps; ++t) {
              to[t * size + k * G::kRows + r] = row < rows ? to_compute<acc_t>(from[t]) : acc_t(0);
            }
          }
        }
      }
    }
  });
  return packed;
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

// target[row, pixel] = sum over taps t and k < depth of weights[t][row, k] * source[t.channel + k, pixel + t], where
// `weights[t]` is one tap of pack_taps. Row 0 is channel `target_channel` of the target.
template <typename T, typename acc_t>
void shifted_products(const Map<const T>& source, int64_t depth, const std::vector<Tap>& taps,
                      const std::vector<const acc_t*>& weights, const std::vector<Pixel>& pixels, int64_t rows,
                      const Map<T>& target, int64_t target_channel) {
  using G = Gemm<acc_t>;
  constexpr int64_t kGroup = 4;   // panels that share a block of weights while it is in L2
  constexpr int64_t kStride = 8;  // groups are dealt out, since those at the corners have more taps
  const int64_t total = static_cast<int64_t>(pixels.size());
  const int64_t groups = (G::col_panels(total) + kGroup - 1) / kGroup;
  const int64_t dealt = (groups + kStride - 1) / kStride;
  const int64_t chunks = (rows + kRowChunk - 1) / kRowChunk;
  const int64_t row_panels = G::row_panels(rows);
  const int64_t work = depth * std::min(rows, kRowChunk) * static_cast<int64_t>(taps.size());
  parallel_items(dealt * kStride * chunks, work, [&](int64_t begin, int64_t end) {
    Scratch<acc_t> panel_rows(G::kCols * G::kDepth);
    Scratch<acc_t> b(G::kCols * G::kDepth);
    const int64_t tiles_step = G::row_panels(std::min(rows, kRowChunk)) * G::kTile;
    Scratch<acc_t> tiles(kGroup * tiles_step);
    for (int64_t item = begin; item < end; ++item) {
      const int64_t group = item / chunks % dealt * kStride + item / chunks / dealt;
      if (group >= groups) {
        continue;
      }
      const int64_t row0 = item % chunks * kRowChunk;
      const int64_t count = std::min(kRowChunk, rows - row0);
      const int64_t panels = std::min(kGroup, G::col_panels(total) - group * kGroup);
      const auto columns = [&](int64_t panel) {
        return std::min<int64_t>(G::kCols, total - (group * kGroup + panel) * G::kCols);
      };
      const auto first = [&](int64_t panel) { return pixels.data() + (group * kGroup + panel) * G::kCols; };
      bool started[kGroup] = {};
      for (size_t t = 0; t < taps.size(); ++t) {
        std::vector<Runs<const T, G::kCols>> runs;
        for (int64_t panel = 0; panel < panels; ++panel) {
          runs.emplace_back(source, first(panel), columns(panel), taps[t]);
        }
        for (int64_t k0 = 0; k0 < depth; k0 += G::kDepth) {
          const int64_t block = std::min(G::kDepth, depth - k0);
          const acc_t* a = weights[t] + (k0 * row_panels + row0 / G::kRows * block) * G::kRows;
          for (int64_t panel = 0; panel < panels; ++panel) {
            if (runs[panel].inside) {
              pack_pixels(source, runs[panel], columns(panel), k0, block, panel_rows.get(), b.get());
              gemm_column_panel<acc_t>(G::row_panels(count), block, a, b.get(), tiles.get() + panel * tiles_step,
                                       started[panel]);
              started[panel] = true;
            }
          }
        }
      }
      for (int64_t panel = 0; panel < panels; ++panel) {
        const Runs<T, G::kCols> runs(target, first(panel), columns(panel), {0, 0, target_channel + row0});
        store_pixels(target, runs, count, tiles.get() + panel * tiles_step);
      }
    }
  });
}

// grad[row, column] += sum over pixels of map[row_channel + row, pixel] * source[column, pixel + tap].
template <typename T, typename acc_t>
void add_shifted_outer_product(const Map<const T>& map, int64_t row_channel, int64_t rows, const Map<const T>& source,
                               int64_t batch, const Tap& tap, acc_t* grad) {
  using G = Gemm<acc_t>;
  std::vector<Pixel> pixels;  // whose tap lies inside
  for (int64_t n = 0; n < batch; ++n) {
    for (int64_t y = std::max<int64_t>(0, -tap.dy); y < map.height - std::max<int64_t>(0, tap.dy); ++y) {
      for (int64_t x = std::max<int64_t>(0, -tap.dx); x < map.width - std::max<int64_t>(0, tap.dx); ++x) {
        pixels.push_back({n, y, x});
      }
    }
  }
  const int64_t total = static_cast<int64_t>(pixels.size());
  using BlockRuns = Runs<const T, G::kDepth>;
  const auto packed = pack_rows<acc_t>(rows, total, [&](int64_t k0, int64_t count, int64_t panel, acc_t* to) {
    const int64_t channels = std::min<int64_t>(G::kRows, rows - panel * G::kRows);
    const BlockRuns runs(map, pixels.data() + k0, count, {0, 0, row_channel + panel * G::kRows});
    for (const auto& run : runs) {
      for (int64_t i = 0; i < run.length; ++i) {
        acc_t* row = to + (run.column + i) * G::kRows;
        for (int64_t r = 0; r < G::kRows; ++r) {
          row[r] = r < channels ? to_compute<acc_t>(run.data[i * map.pixel_step() + r * map.channel_step()]) : acc_t(0);
        }
      }
    }
  });
  const auto pack_source = [&](int64_t k0, int64_t count, int64_t panel, acc_t* to) {
    const int64_t channels = std::min<int64_t>(G::kCols, source.channels - panel * G::kCols);
    const BlockRuns runs(source, pixels.data() + k0, count, {tap.dy, tap.dx, panel * G::kCols});
    if (channels < G::kCols) {
      std::memset(to, 0, count * G::kCols * sizeof(acc_t));
    }
    if (source.channels_last) {
      for (const auto& run : runs) {
        copy_rows(run.data, source.channels, run.length, channels, to + run.column * G::kCols, G::kCols);
      }
      return;
    }
    Scratch<acc_t> planes(G::kCols * count);
    for (const auto& run : runs) {
      copy_rows(run.data, source.channel_step(), channels, run.length, planes.get() + run.column, count);
    }
    transpose(planes.get(), count, channels, count, to, G::kCols);
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

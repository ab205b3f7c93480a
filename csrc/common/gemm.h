// A small matrix product for convolutions: the caller packs its operands from whatever layout they have and stores the
// result in whatever layout it wants, so that no im2col, no pixel shuffle and no transposed copy ever exists in memory.
//
// C[rows, cols] = A[rows, depth] B[depth, cols], cut into tiles of kRows x kCols. Packed operands are [depth][kRows]
// and [depth][kCols] panels; sums are kept in registers over a block of `kDepth`, and in a tile buffer over blocks. The
// order of every sum depends on shapes only, never on threads. (Goto & van de Geijn 2008, with B's panel in L1 and A's
// streamed.)
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "dispatch.h"
#include "parallel.h"
#include "simd.h"

namespace segkernels {

// GCC ignores vector_size on a dependent type, so the two vectors are written out.
template <typename acc_t>
struct Vector32;
template <>
struct Vector32<float> {
  typedef float type __attribute__((vector_size(32)));
  typedef float unaligned __attribute__((vector_size(32), aligned(4), may_alias));
};
template <>
struct Vector32<double> {
  typedef double type __attribute__((vector_size(32)));
  typedef double unaligned __attribute__((vector_size(32), aligned(8), may_alias));
};

// 4 x 3 vectors of sums, 3 of B and one of A fill the 16 registers of AVX2.
template <typename acc_t, int kRowCount = 4, int kVectorCount = 3>
struct Gemm {
  static constexpr int kLanes = 32 / sizeof(acc_t);
  static constexpr int kVectors = kVectorCount;
  static constexpr int kRows = kRowCount;
  static constexpr int kCols = kVectors * kLanes;
  static constexpr int kTile = kRows * kCols;
  static constexpr int64_t kDepth = 256;

  using vec = typename Vector32<acc_t>::type;
  using unaligned_vec = typename Vector32<acc_t>::unaligned;

  static int64_t row_panels(int64_t rows) {
    return (rows + kRows - 1) / kRows;
  }
  static int64_t col_panels(int64_t cols) {
    return (cols + kCols - 1) / kCols;
  }

  using Sums = vec[kRows][kVectors];

  // load(r, k) is A's element; rows of B are `step` apart.
  template <typename Load>
  static SEGKERNELS_INLINE void add_products(int64_t depth, const Load& load, const acc_t* b, Sums& sum,
                                             int64_t step = kCols) {
    for (int64_t k = 0; k < depth; ++k, b += step) {
      vec columns[kVectors];
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) {
        columns[v] = *reinterpret_cast<const unaligned_vec*>(b + v * kLanes);
      }
#pragma GCC unroll 6
      for (int r = 0; r < kRows; ++r) {
        const vec scale = load(r, k) - vec{};  // a broadcast: x - 0 is x, and compiles to one load
#pragma GCC unroll 3
        for (int v = 0; v < kVectors; ++v) {
          sum[r][v] += scale * columns[v];
        }
      }
    }
  }

  template <typename Load>
  static SEGKERNELS_INLINE void tile_product(int64_t depth, const Load& load, const acc_t* b, acc_t* tile,
                                             bool accumulate) {
    // Each block of depth is summed on its own and then added: a shorter chain, so a smaller error.
    Sums sum = {};
    add_products(depth, load, b, sum);
    store_tile(sum, tile, accumulate);
  }

  static SEGKERNELS_INLINE void store_tile(const Sums& sum, acc_t* tile, bool accumulate) {
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 3
      for (int v = 0; v < kVectors; ++v) {
        unaligned_vec* to = reinterpret_cast<unaligned_vec*>(tile + r * kCols + v * kLanes);
        *to = accumulate ? *to + sum[r][v] : sum[r][v];
      }
    }
  }
};

// All row panels of one column panel: tiles[panel][kRows][kCols] (+)= A[panel] * b.
template <typename acc_t>
SEGKERNELS_CLONES void gemm_column_panel(int64_t row_panels, int64_t depth, const acc_t* a, const acc_t* b,
                                         acc_t* tiles, bool accumulate) {
  for (int64_t panel = 0; panel < row_panels; ++panel) {
    const acc_t* packed = a + panel * depth * Gemm<acc_t>::kRows;
    const auto load = [packed](int r, int64_t k)
                          SEGKERNELS_INLINE_LAMBDA { return packed[k * Gemm<acc_t>::kRows + r]; };
    Gemm<acc_t>::tile_product(depth, load, b, tiles + panel * Gemm<acc_t>::kTile, accumulate);
  }
}

// For an A that stands in memory row by row, as pixels do in channels_last. Its panels of B are 2 vectors wide, so that
// channel counts that are powers of two fill them.
template <typename acc_t>
using RowGemm = Gemm<acc_t, 6, 2>;

// Uninitialised memory for packed operands and tiles.
template <typename acc_t>
class Scratch {
 public:
  explicit Scratch(int64_t count) : data_(new acc_t[static_cast<size_t>(std::max<int64_t>(1, count))]) {}
  acc_t* get() const {
    return data_.get();
  }

 private:
  std::unique_ptr<acc_t[]> data_;
};

// A packed once for all threads: [block of kDepth][row panel][depth][kRows]. pack(k0, depth, panel, destination).
template <typename acc_t, typename Pack>
Scratch<acc_t> pack_rows(int64_t rows, int64_t depth, const Pack& pack) {
  using G = Gemm<acc_t>;
  const int64_t panels = G::row_panels(rows);
  Scratch<acc_t> packed(panels * G::kRows * depth);
  parallel_items(panels, depth * G::kRows, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      for (int64_t k0 = 0; k0 < depth; k0 += G::kDepth) {
        const int64_t block = std::min(G::kDepth, depth - k0);
        pack(k0, block, panel, packed.get() + (k0 * panels + panel * block) * G::kRows);
      }
    }
  });
  return packed;
}

// C = A B, columns shared between threads. pack_b(k0, depth, panel, destination) fills one [depth][kCols] panel of B;
// store(panel, tiles) receives all row panels of one column panel, [row panel][kRows][kCols].
template <typename acc_t, typename PackB, typename Store>
void gemm_columns(int64_t rows, int64_t depth, int64_t cols, const Scratch<acc_t>& a, const PackB& pack_b,
                  const Store& store) {
  using G = Gemm<acc_t>;
  const int64_t row_panels = G::row_panels(rows);
  const int64_t blocks = (depth + G::kDepth - 1) / G::kDepth;
  // Column panels that are in flight between two blocks of depth; one is enough when there is one block.
  const int64_t group = blocks == 1 ? 1 : 8;
  parallel_items(G::col_panels(cols), rows * depth, [&](int64_t begin, int64_t end) {
    Scratch<acc_t> b(G::kCols * std::min(depth, G::kDepth));
    Scratch<acc_t> tiles(std::min(group, end - begin) * row_panels * G::kTile);
    for (int64_t first = begin; first < end; first += group) {
      const int64_t last = std::min(end, first + group);
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t k0 = block * G::kDepth;
        const int64_t count = std::min(G::kDepth, depth - k0);
        for (int64_t panel = first; panel < last; ++panel) {
          acc_t* out = tiles.get() + (panel - first) * row_panels * G::kTile;
          pack_b(k0, count, panel, b.get());
          gemm_column_panel<acc_t>(row_panels, count, a.get() + k0 * row_panels * G::kRows, b.get(), out, block > 0);
          if (block == blocks - 1) {
            store(panel, out);
          }
        }
      }
    }
  });
}

// C = A B for a long depth and a small C: the depth is cut into `chunks` parts, a number that depends on shapes only,
// whose partial products are added in order. pack_a(k0, depth, panel, destination) and pack_b as above; store as above.
template <typename acc_t, typename PackA, typename PackB, typename Store>
void gemm_depth(int64_t rows, int64_t depth, int64_t cols, int64_t chunks, const PackA& pack_a, const PackB& pack_b,
                const Store& store) {
  using G = Gemm<acc_t>;
  const int64_t row_panels = G::row_panels(rows);
  const int64_t col_panels = G::col_panels(cols);
  const int64_t column = row_panels * G::kTile;
  const int64_t size = col_panels * column;
  const int64_t blocks = (depth + G::kDepth - 1) / G::kDepth;
  chunks = std::max<int64_t>(1, std::min(chunks, blocks));
  Scratch<acc_t> partial(chunks * size);
  parallel_items(chunks, rows * depth, [&](int64_t begin, int64_t end) {
    Scratch<acc_t> a(row_panels * G::kRows * G::kDepth);
    Scratch<acc_t> b(G::kCols * G::kDepth);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      acc_t* tiles = partial.get() + chunk * size;
      const int64_t first = blocks * chunk / chunks;
      for (int64_t block = first; block < blocks * (chunk + 1) / chunks; ++block) {
        const int64_t k0 = block * G::kDepth;
        const int64_t count = std::min(G::kDepth, depth - k0);
        for (int64_t panel = 0; panel < row_panels; ++panel) {
          pack_a(k0, count, panel, a.get() + panel * count * G::kRows);
        }
        for (int64_t panel = 0; panel < col_panels; ++panel) {
          pack_b(k0, count, panel, b.get());
          gemm_column_panel<acc_t>(row_panels, count, a.get(), b.get(), tiles + panel * column, block > first);
        }
      }
    }
  });
  parallel_items(col_panels, chunks * column, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      acc_t* sum = partial.get() + panel * column;
      for (int64_t chunk = 1; chunk < chunks; ++chunk) {
        const acc_t* other = sum + chunk * size;
        for (int64_t i = 0; i < column; ++i) {
          sum[i] += other[i];
        }
      }
      store(panel, sum);
    }
  });
}

}  // namespace segkernels

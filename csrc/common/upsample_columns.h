// Output columns of a bilinear resampling in runs that share their two source columns, so that a run is one vector.
#pragma once

#include <cstdint>
#include <vector>

#include "bilinear.h"
#include "upsample2d.h"

namespace segkernels {

// Up to kLanes neighbouring output columns between the same two source columns.
struct ColumnRun {
  int64_t begin, low, high;
};

template <typename acc_t>
struct Columns {
  std::vector<ColumnRun> runs;
  std::vector<acc_t> low_weight, high_weight;  // [W + kLanes]
};

template <typename acc_t>
Columns<acc_t> upsampled_columns(const BilinearAxis<acc_t>& axis) {
  Columns<acc_t> columns;
  columns.low_weight.resize(axis.out_size + kLanes<acc_t>);
  columns.high_weight.resize(axis.out_size + kLanes<acc_t>);
  for (int64_t x = 0; x < axis.out_size; ++x) {
    const BilinearTap<acc_t> tap = axis.tap(x);
    columns.low_weight[x] = tap.low_weight;
    columns.high_weight[x] = tap.high_weight;
    const std::vector<ColumnRun>& runs = columns.runs;
    if (runs.empty() || runs.back().low != tap.low || x - runs.back().begin == kLanes<acc_t>) {
      columns.runs.push_back({x, tap.low, tap.high});
    }
  }
  return columns;
}

}  // namespace segkernels

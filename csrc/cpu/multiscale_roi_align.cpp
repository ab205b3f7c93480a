// RoI Align over a feature pyramid on the CPU: all levels in one call; see roi_align_boxes.h.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <vector>

#include "roi_align_boxes.h"

namespace segkernels {
namespace {

Tensor multiscale_roi_align_cpu(const std::vector<Tensor>& features,  // each [N, C, H, W]
                                const Tensor& boxes,                  // [K, 5]
                                IntList output_size, std::vector<double> spatial_scales, int64_t sampling_ratio,
                                bool aligned, double canonical_scale, double canonical_level) {
  STD_TORCH_CHECK(!features.empty(), "multiscale_roi_align: expected at least one map");
  check_dim(features[0], 4, "multiscale_roi_align", "features");
  return pool_boxes("multiscale_roi_align", features, boxes, spatial_scales,
                    {output_size[0], output_size[1], sampling_ratio, aligned},
                    pyramid_params(spatial_scales, canonical_scale, canonical_level));
}

std::vector<Tensor> multiscale_roi_align_backward_cpu(const Tensor& grad_output,  // [K, C, PH, PW]
                                                      const Tensor& boxes,        // [K, 5]
                                                      int64_t batch, IntList sizes, std::vector<double> spatial_scales,
                                                      int64_t sampling_ratio, bool aligned, double canonical_scale,
                                                      double canonical_level, bool channels_last) {
  const char* const op = "multiscale_roi_align_backward";
  check_dim(grad_output, 4, op, "grad_output");
  STD_TORCH_CHECK(!spatial_scales.empty() && sizes.size() == 2 * spatial_scales.size(), op,
                  ": expected a height and a width for each of ", spatial_scales.size(), " scales");
  std::vector<MapSize> maps;
  for (size_t i = 0; i < spatial_scales.size(); ++i) {
    maps.push_back({sizes[2 * i], sizes[2 * i + 1], channels_last});
  }
  return pool_boxes_backward(op, grad_output, boxes, batch, maps, spatial_scales,
                             {grad_output.size(2), grad_output.size(3), sampling_ratio, aligned},
                             pyramid_params(spatial_scales, canonical_scale, canonical_level));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(segkernels, CPU, m) {
  m.impl("multiscale_roi_align", TORCH_BOX(&multiscale_roi_align_cpu));
  m.impl("multiscale_roi_align_backward", TORCH_BOX(&multiscale_roi_align_backward_cpu));
}

}  // namespace segkernels

// The gradient of RoI Align on the GPU; see roi_align_boxes.cuh.
//
// A block owns a tile of one image's map for a slab of channels and gathers from the boxes that reach it, in their
// order: no float atomics, no fill, bit-equal between runs. Bilinear sampling on a grid is separable, so for each box
// the block keeps in shared memory how much of each row of the tile each row of bins takes, and the same for columns.
#include "roi_align_boxes.cuh"

#include <torch/csrc/stable/library.h>

namespace segkernels {
namespace {

constexpr int kTile = 8;                                    // pixels a side of a tile
constexpr int kLines = 2 * kTile;                           // its rows, then its columns
constexpr int kBatch = kThreads / kLines;                   // boxes whose weights are kept at once
constexpr int kMaxBins = 16;                                // rows or columns of bins whose weights are kept at once
constexpr int kSlab = kThreads / (kTile * kTile) * kGroup;  // channels of a block

struct BinRange {
  int begin, end;
};

// Shared memory: weights [kBatch][kLines][stride], the bins of each line that take part, a list of boxes.
template <typename T>
constexpr size_t shared_bytes(int stride) {
  return kBatch * kLines * (stride * sizeof(T) + sizeof(BinRange)) + (kThreads + kThreads / 32) * sizeof(int);
}

template <typename T>
struct BoxAxes {
  SampleAxis<T> rows, columns;
};

template <typename T>
__device__ __forceinline__ BoxAxes<T> box_axes(const T* box, T scale, const RoiAlignParams& p) {
  return {sample_axis(box[2], box[4], scale, p.bins_h, p), sample_axis(box[1], box[3], scale, p.bins_w, p)};
}

// Weights of bins [first, first + stride) on one line of the tile, from the first to the last that is not zero.
template <typename T>
__device__ BinRange line_weights(const SampleAxis<T>& axis, int64_t bins, int64_t first, int stride, int64_t pixel,
                                 int64_t size, T factor, T* weights) {
  BinRange range{0, 0};
  if (pixel >= size) {
    return range;
  }
  const int count = static_cast<int>(min(static_cast<int64_t>(stride), bins - first));
  for (int b = 0; b < count; ++b) {
    T weight = 0;
    if (bins_reach(axis, first + b, first + b, pixel, pixel)) {
      weight = pixel_weight(axis, first + b, pixel, size) * factor;
    }
    weights[b] = weight;
    if (weight != T(0)) {
      range.begin = range.end == 0 ? b : range.begin;
      range.end = b + 1;
    }
  }
  return range;
}

template <typename scalar_t, typename T>
__global__ void __launch_bounds__(kThreads, 1)
    roi_align_bwd_kernel(Pyramid<T> pyramid, RoiAlignParams p,
                         const T* boxes,               // [K, 5]
                         const scalar_t* grad_output,  // [K, C, PH, PW]
                         Layout grad, int64_t count, int64_t batch, int64_t channels, int64_t blocks, int stride,
                         bool channels_last, bool vectors) {
  T* const weights = dynamic_shared<T>();
  BinRange* const ranges = reinterpret_cast<BinRange*>(weights + kBatch * kLines * stride);
  int* const list = reinterpret_cast<int*>(ranges + kBatch * kLines);
  int* const counts = list + kThreads;
  const int thread = threadIdx.x;
  constexpr int groups = kSlab / kGroup;
  const int pixel = channels_last ? thread / groups : thread % (kTile * kTile);
  const int group = channels_last ? thread % groups : thread / (kTile * kTile);
  const int slot = thread / kLines, line = thread % kLines;
  const int64_t slabs = (channels + kSlab - 1) / kSlab;
  const int64_t bins = p.bins_h * p.bins_w;
  for (int64_t work = blockIdx.x; work < blocks; work += gridDim.x) {
    int64_t level = 0;
    while (level + 1 < pyramid.params.levels && work >= pyramid.maps[level + 1].first_block) {
      ++level;
    }
    const LevelMap<T>& map = pyramid.maps[level];
    const int64_t tiles_h = (map.height + kTile - 1) / kTile, tiles_w = (map.width + kTile - 1) / kTile;
    int64_t rest = work - map.first_block;
    const int64_t slab = rest % slabs;
    rest /= slabs;
    const int64_t left = rest % tiles_w * kTile;
    rest /= tiles_w;
    const int64_t top = rest % tiles_h * kTile;
    const int64_t image = rest / tiles_h;
    const int64_t y = top + pixel / kTile, x = left + pixel % kTile;
    const int64_t c = slab * kSlab + group * kGroup;
    const int held = static_cast<int>(max(int64_t{0}, min(static_cast<int64_t>(kGroup), channels - c)));
    T sum[kGroup] = {};
    for (int64_t base = 0; base < count; base += kThreads) {
      bool reaches = false;
      if (base + thread < count) {
        const T* const box = boxes + (base + thread) * 5;
        if (box_image(box[0], batch) == image && box_level(box[1], box[2], box[3], box[4], pyramid.params) == level) {
          const BoxAxes<T> axes = box_axes(box, map.scale, p);
          reaches = bins_reach(axes.rows, 0, p.bins_h - 1, top, top + kTile - 1) &&
                    bins_reach(axes.columns, 0, p.bins_w - 1, left, left + kTile - 1);
        }
      }
      const int reaching = gather_in_order(reaches, thread, list, counts);
      for (int first = 0; first < reaching; first += kBatch) {
        for (int64_t row = 0; row < p.bins_h; row += stride) {
          for (int64_t column = 0; column < p.bins_w; column += stride) {
            if (first + slot < reaching) {
              const BoxAxes<T> axes = box_axes(boxes + (base + list[first + slot]) * 5, map.scale, p);
              T* const own = weights + (slot * kLines + line) * stride;
              const T factor = T(1) / sample_count<T>(axes.rows.samples, axes.columns.samples);
              ranges[slot * kLines + line] =
                  line < kTile
                      ? line_weights(axes.rows, p.bins_h, row, stride, top + line, map.height, factor, own)
                      : line_weights(axes.columns, p.bins_w, column, stride, left + line - kTile, map.width, T(1), own);
            }
            __syncthreads();
            const int last = min(kBatch, reaching - first);
            for (int s = 0; s < last && held > 0; ++s) {
              const int row_line = s * kLines + pixel / kTile;
              const int column_line = s * kLines + kTile + pixel % kTile;
              const BinRange range_y = ranges[row_line], range_x = ranges[column_line];
              const scalar_t* const from = grad_output + (base + list[first + s]) * channels * bins + c * grad.channel;
              for (int by = range_y.begin; by < range_y.end; ++by) {
                const T row_weight = weights[row_line * stride + by];
                for (int bx = range_x.begin; bx < range_x.end; ++bx) {
                  const T weight = row_weight * weights[column_line * stride + bx];
                  T values[kGroup];
                  load_group(from + ((row + by) * p.bins_w + column + bx) * grad.pixel, grad, held, values);
#pragma unroll
                  for (int g = 0; g < kGroup; ++g) {
                    sum[g] += weight * values[g];
                  }
                }
              }
            }
            __syncthreads();
          }
        }
      }
    }
    if (y < map.height && x < map.width && held > 0) {
      const int64_t plane = map.height * map.width;
      const Layout to = channels_last ? Layout{1, channels, vectors} : Layout{plane, 1, false};
      scalar_t* const out = static_cast<scalar_t*>(map.data) + image * channels * plane;
      store_group(out + c * to.channel + (y * map.width + x) * to.pixel, to, held, sum);
    }
  }
}

// Over the maps of a pyramid; one map is a pyramid of one level.
std::vector<Tensor> pool_boxes_backward(const char* op, const Tensor& grad_output, const Tensor& boxes, int64_t batch,
                                        const IntList& sizes, const std::vector<double>& scales, bool channels_last,
                                        const RoiAlignParams& p, const PyramidParams& pyramid_params) {
  check_rois(boxes, p, op);
  check_levels(sizes.size() / 2, scales, op);
  STD_TORCH_CHECK(boxes.size(0) == grad_output.size(0), op, ": expected a grad_output of as many boxes, got ",
                  shape_string(boxes), " and ", shape_string(grad_output));
  const bool grad_last = is_channels_last(grad_output);
  const Tensor grad = to_dense(grad_output, grad_last);
  const int64_t channels = grad.size(1), count = grad.size(0);
  const int64_t slabs = (channels + kSlab - 1) / kSlab;
  std::vector<Tensor> grads;
  for (size_t i = 0; i < scales.size(); ++i) {
    grads.push_back(
        empty_nchw(batch, channels, sizes[2 * i], sizes[2 * i + 1], grad.scalar_type(), grad, channels_last));
  }
  const DeviceScope scope(grad);
  dispatch_floating(grad.scalar_type(), op, [&]<typename scalar_t>() {
    using T = accumulate_t<scalar_t>;
    const Tensor rois = to_coordinates(boxes, std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float);
    Pyramid<T> pyramid{pyramid_params, {}};
    bool vectors = channels_last && channels % kGroup == 0;
    int64_t blocks = 0;
    for (size_t i = 0; i < grads.size(); ++i) {
      const int64_t height = sizes[2 * i], width = sizes[2 * i + 1];
      pyramid.maps[i] = {grads[i].mutable_data_ptr(), height, width, static_cast<T>(scales[i]), blocks};
      vectors = vectors && aligned_for_vectors(grads[i].const_data_ptr());
      blocks += batch * ((height + kTile - 1) / kTile) * ((width + kTile - 1) / kTile) * slabs;
    }
    if (blocks == 0) {
      return;
    }
    Layout from = layout_of(grad_last, channels, p.bins_h * p.bins_w);
    from.vectors = from.vectors && aligned_for_vectors(grad.const_data_ptr());
    const int stride = static_cast<int>(std::min<int64_t>(kMaxBins, std::max(p.bins_h, p.bins_w)));
    launch(roi_align_bwd_kernel<scalar_t, T>, blocks_for(blocks, 1), kThreads, shared_bytes<T>(stride), scope.stream(),
           pyramid, p, static_cast<const T*>(rois.const_data_ptr()),
           static_cast<const scalar_t*>(grad.const_data_ptr()), from, count, batch, channels, blocks, stride,
           channels_last, vectors);
  });
  return grads;
}

Tensor roi_align_backward_cuda(const Tensor& grad_output,  // [K, C, PH, PW]
                               const Tensor& boxes,        // [K, 5]
                               int64_t batch, int64_t height, int64_t width, double spatial_scale,
                               int64_t sampling_ratio, bool aligned, bool channels_last) {
  check_dim(grad_output, 4, "roi_align_backward", "grad_output");
  return pool_boxes_backward("roi_align_backward", grad_output, boxes, batch, {height, width}, {spatial_scale},
                             channels_last, {grad_output.size(2), grad_output.size(3), sampling_ratio, aligned},
                             {1, 0, 0, 0, 0})[0];
}

std::vector<Tensor> multiscale_roi_align_backward_cuda(const Tensor& grad_output,  // [K, C, PH, PW]
                                                       const Tensor& boxes,        // [K, 5]
                                                       int64_t batch, IntList sizes, std::vector<double> spatial_scales,
                                                       int64_t sampling_ratio, bool aligned, double canonical_scale,
                                                       double canonical_level, bool channels_last) {
  const char* const op = "multiscale_roi_align_backward";
  check_levels(sizes.size() / 2, spatial_scales, op);
  check_dim(grad_output, 4, op, "grad_output");
  return pool_boxes_backward(op, grad_output, boxes, batch, sizes, spatial_scales, channels_last,
                             {grad_output.size(2), grad_output.size(3), sampling_ratio, aligned},
                             pyramid_params(spatial_scales, canonical_scale, canonical_level));
}

}  // namespace

SEGKERNELS_CUDA_LIBRARY(m) {
  m.impl("multiscale_roi_align_backward", TORCH_BOX(&multiscale_roi_align_backward_cuda));
  m.impl("roi_align_backward", TORCH_BOX(&roi_align_backward_cuda));
}

}  // namespace segkernels

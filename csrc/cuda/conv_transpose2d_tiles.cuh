// Transposed convolution whose kernel equals its stride, in half precision on tensor cores: three matrix products, of
// which every operand is read from, and written to, the place where it lies in the caller's tensors.
//
// Rows, columns and depth of a product are pixels, channels, or (out channel, tap); the offset of an element is the sum
// of one offset per axis, also for the pixel shuffle of the output. So one kernel does forward and both gradients. All
// accesses are 16 bytes wide, copied ahead with cp.async; sums are float32 and their order is fixed. A tile of 128 x
// 128 does 64 FLOPs per byte that it reads, so U-Net's decoder is bound by the tensor cores, not by memory.
#pragma once

#include <cuda_pipeline.h>

#include "../common/conv_transpose2d.h"
#include "../common/cuda.cuh"
#include "../common/dispatch.h"
#include "../common/mma.cuh"

namespace segkernels {
namespace {

// Division of n < 2^31 by a multiplication (Granlund & Montgomery 1994).
struct Divider {
  uint32_t divisor, magic, shift;

  explicit Divider(uint32_t d) : divisor(d), magic(0), shift(0) {
    while ((uint64_t{1} << shift) < d) {
      ++shift;
    }
    magic = static_cast<uint32_t>((((uint64_t{1} << shift) - d) << 32) / d + 1);
  }
  __device__ __forceinline__ uint32_t divide(uint32_t n) const {
    return (__umulhi(n, magic) + n) >> shift;
  }
};

// Offset of an index (a, b, c), of which b and c count to `middle` and `inner`.
struct Axis {
  Divider whole, inner;
  int64_t step_outer, step_middle, step_inner;

  Axis(int64_t middle, int64_t inner_, int64_t outer_step, int64_t middle_step, int64_t inner_step)
      : whole(static_cast<uint32_t>(middle * inner_)),
        inner(static_cast<uint32_t>(inner_)),
        step_outer(outer_step),
        step_middle(middle_step),
        step_inner(inner_step) {}
  static Axis linear(int64_t step) {
    return {1, int64_t{1} << 31, 0, 0, step};
  }
  __device__ __forceinline__ int64_t offset(int index) const {
    const uint32_t a = whole.divide(index);
    const uint32_t rest = index - a * whole.divisor;
    const uint32_t b = inner.divide(rest);
    return a * step_outer + b * step_middle + (rest - b * inner.divisor) * step_inner;
  }
};

// C[m, n] = A[m, depth] B[depth, n], the depth in parts of `chunk`.
struct Product {
  int m, n, depth, chunk;
  Axis a_row, a_depth, b_depth, b_column, c_row, c_column;
  Axis bias;  // of a column
};

// How C is written: rows of consecutive columns; planes, in which the kernel's columns of one pixel are consecutive,
// and so are pixels; or float32 sums [chunk, m, n].
enum class Store { kRows, kPlanes, kSums };

constexpr int kTile = 128;  // rows and columns of C per block
constexpr int kDepth = 32;  // per stage
constexpr int kStages = 3;
constexpr int kVector = 8;       // elements of 16 bytes
constexpr int kDeepPitch = 40;   // [row][depth]; both pitches keep ldmatrix free of bank conflicts
constexpr int kWidePitch = 136;  // [depth][row]
constexpr int kOperand = kTile * kDeepPitch;
constexpr size_t kTilesShared = kStages * 2 * kOperand * 2;

// One thread's part of the tiles of an operand: kDeep if neighbours along the depth are neighbours in memory, else
// neighbours along its rows (columns of B) are.
template <typename T, bool kDeep>
struct Operand {
  static constexpr int kCopies = kTile * kDepth / kVector / kThreads;

  const T* data;
  Axis depth_axis;
  int64_t offset[kCopies];
  bool exists[kCopies];

  __device__ __forceinline__ Operand(const T* data_, const Axis& row_axis, const Axis& depth_axis_, int first,
                                     int count)
      : data(data_), depth_axis(depth_axis_) {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int vector = threadIdx.x + i * kThreads;
      const int row = first + (kDeep ? vector / (kDepth / kVector) : vector % (kTile / kVector) * kVector);
      exists[i] = row < count;
      offset[i] = exists[i] ? row_axis.offset(row) : 0;
    }
  }

  __device__ __forceinline__ void copy(T* shared, int k0, int end) const {
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      const int vector = threadIdx.x + i * kThreads;
      const int k = kDeep ? vector % (kDepth / kVector) * kVector : vector / (kTile / kVector);
      T* to = kDeep ? shared + vector / (kDepth / kVector) * kDeepPitch + k
                    : shared + k * kWidePitch + vector % (kTile / kVector) * kVector;
      const bool inside = exists[i] && k0 + k < end;
      const T* from = inside ? data + offset[i] + depth_axis.offset(k0 + k) : data;
      __pipeline_memcpy_async(to, from, 16, inside ? 0 : 16);
    }
  }
};

// The four 8x8 matrices at (row, k) of an operand: words[i + 2 j] is rows 8 i.. and depth 8 j.. for A, words[2 i + j]
// for B.
template <typename T, bool kDeep, bool kIsA>
__device__ __forceinline__ void load_fragment(uint32_t (&words)[4], const T* shared, int row, int k) {
  const int matrix = threadIdx.x % 32 / 8, line = threadIdx.x % 8;
  const int r = row + (kIsA ? matrix % 2 : matrix / 2) * 8;
  const int d = k + (kIsA ? matrix / 2 : matrix % 2) * 8;
  if constexpr (kDeep) {
    load_matrix_x4(words, shared + (r + line) * kDeepPitch + d);
  } else {
    load_matrix_x4<true>(words, shared + (d + line) * kWidePitch + r);
  }
}

// Eight warps of 64 x 32 each. `run` columns of a pixel are consecutive in planes.
template <typename T, bool kADeep, bool kBDeep, Store kStore>
__global__ __launch_bounds__(kThreads) void conv_transpose2d_tiles_kernel(Product p, int blocks_m, int blocks_n,
                                                                          const T* a, const T* b, const T* bias,
                                                                          void* c, int run) {
  T* const shared = dynamic_shared<T>();
  __shared__ float add[kTile];
  const int block_n = blockIdx.x % blocks_n;
  const int block_m = blockIdx.x / blocks_n % blocks_m;
  const int chunk = blockIdx.x / blocks_n / blocks_m;
  const int m0 = block_m * kTile, n0 = block_n * kTile;
  const int begin = chunk * p.chunk, end = min(p.depth - begin, p.chunk) + begin;
  const Operand<T, kADeep> a_part(a, p.a_row, p.a_depth, m0, p.m);
  const Operand<T, kBDeep> b_part(b, p.b_column, p.b_depth, n0, p.n);
  if (kStore != Store::kSums && threadIdx.x < kTile) {
    const int column = n0 + static_cast<int>(threadIdx.x);
    add[threadIdx.x] = bias && column < p.n ? static_cast<float>(bias[p.bias.offset(column)]) : 0.0f;
  }

  const int steps = (end - begin + kDepth - 1) / kDepth;
  const auto fetch = [&](int step) {
    if (step < steps) {
      T* const stage = shared + step % kStages * 2 * kOperand;
      a_part.copy(stage, begin + step * kDepth, end);
      b_part.copy(stage + kOperand, begin + step * kDepth, end);
    }
    __pipeline_commit();
  };
  for (int step = 0; step < kStages - 1; ++step) {
    fetch(step);
  }
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int warp_m = warp / 4 * 64, warp_n = warp % 4 * 32;
  float sums[4][4][4] = {};
  for (int step = 0; step < steps; ++step) {
    __pipeline_wait_prior(kStages - 2);
    __syncthreads();
    fetch(step + kStages - 1);
    const T* const a_stage = shared + step % kStages * 2 * kOperand;
    const T* const b_stage = a_stage + kOperand;
#pragma unroll
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t b_words[2][4];
      load_fragment<T, kBDeep, false>(b_words[0], b_stage, warp_n, k);
      load_fragment<T, kBDeep, false>(b_words[1], b_stage, warp_n + 16, k);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t a_words[4];
        load_fragment<T, kADeep, true>(a_words, a_stage, warp_m + i * 16, k);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint32_t pair[2] = {b_words[j / 2][j % 2 * 2], b_words[j / 2][j % 2 * 2 + 1]};
          mma_m16n8k16<T>(sums[i][j], a_words, pair);
        }
      }
    }
  }
  __pipeline_wait_prior(0);
  __syncthreads();  // the stages become the tile of results

  const int pitch = kStore == Store::kRows ? kWidePitch : kTile + run;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int half_tile = 0; half_tile < 2; ++half_tile) {
        const int row = warp_m + i * 16 + lane / 4 + half_tile * 8;
        const int column = warp_n + j * 8 + lane % 4 * 2;
        const float low = sums[i][j][half_tile * 2], high = sums[i][j][half_tile * 2 + 1];
        if constexpr (kStore == Store::kSums) {
          if (m0 + row < p.m && n0 + column < p.n) {
            float* const to =
                static_cast<float*>(c) + (static_cast<int64_t>(chunk) * p.m + m0 + row) * p.n + n0 + column;
            *reinterpret_cast<float2*>(to) = make_float2(low, high);
          }
        } else {
          shared[row * pitch + column] = static_cast<T>(low + add[column]);
          shared[row * pitch + column + 1] = static_cast<T>(high + add[column + 1]);
        }
      }
    }
  }
  if constexpr (kStore != Store::kSums) {
    __syncthreads();
    T* const output = static_cast<T*>(c);
    if constexpr (kStore == Store::kRows) {
      for (int vector = threadIdx.x; vector < kTile * kTile / kVector; vector += kThreads) {
        const int row = vector / (kTile / kVector), column = vector % (kTile / kVector) * kVector;
        if (m0 + row < p.m && n0 + column < p.n) {
          T* const to = output + p.c_row.offset(m0 + row) + p.c_column.offset(n0 + column);
          *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(shared + row * pitch + column);
        }
      }
    } else {
      for (int item = threadIdx.x; item < kTile * kTile / run; item += kThreads) {
        const int row = item % kTile, column = item / kTile * run;
        if (m0 + row < p.m && n0 + column < p.n) {
          T* const to = output + p.c_row.offset(m0 + row) + p.c_column.offset(n0 + column);
          const T* const from = shared + row * pitch + column;
          if (run == 2) {
            *reinterpret_cast<uint32_t*>(to) = *reinterpret_cast<const uint32_t*>(from);
          } else {
            *reinterpret_cast<uint2*>(to) = *reinterpret_cast<const uint2*>(from);
          }
        }
      }
    }
  }
}

// to[target(i)] = the sum over chunks of partial[chunk, i], in order.
template <typename T, typename acc_t>
__global__ void conv_transpose2d_sum_kernel(const acc_t* partial,  // [chunks, count]
                                            int count, int chunks, Axis target, T* to) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    acc_t sum = 0;
    for (int chunk = 0; chunk < chunks; ++chunk) {
      sum += partial[static_cast<int64_t>(chunk) * count + i];
    }
    to[target.offset(static_cast<int>(i))] = static_cast<T>(sum);
  }
}

// Where (pixel, out channel, tap) lies in the output and its gradient, in both layouts.
struct Shuffle {
  Axis pixels, columns, channel;

  Shuffle(const ConvTranspose2dParams& p, bool channels_last)
      : pixels(p.in_h, p.in_w, p.out_channels * p.out_plane(), p.kernel_h * p.out_w * step(p, channels_last),
               p.kernel_w * step(p, channels_last)),
        columns(channels_last
                    ? Axis(p.kernel_w, p.out_channels, p.out_w * p.out_channels, p.out_channels, 1)  // (i, j, channel)
                    : Axis(p.kernel_h, p.kernel_w, p.out_plane(), p.out_w, 1)),                      // (channel, i, j)
        channel(channels_last ? Axis(p.kernel_w, p.out_channels, 0, 0, 1) : Axis(p.kernel_h, p.kernel_w, 1, 0, 0)) {}

  static int64_t step(const ConvTranspose2dParams& p, bool channels_last) {
    return channels_last ? p.out_channels : 1;
  }
};

template <typename T, bool kADeep, bool kBDeep, Store kStore>
void multiply(const Product& p, const T* a, const T* b, const T* bias, void* c, int64_t run, cudaStream_t stream) {
  const int64_t blocks_m = (p.m + kTile - 1) / kTile, blocks_n = (p.n + kTile - 1) / kTile;
  const int64_t chunks = (p.depth + p.chunk - 1) / p.chunk;
  launch(conv_transpose2d_tiles_kernel<T, kADeep, kBDeep, kStore>, blocks_for(blocks_m * blocks_n * chunks, 1),
         kThreads, kTilesShared, stream, p, static_cast<int>(blocks_m), static_cast<int>(blocks_n), a, b, bias, c,
         static_cast<int>(run));
}

// Weights lie in the layout of the maps: [in channel, i, j, out channel] in channels_last, else [in channel, out
// channel, i, j]. A row of them has as many columns as the product.
template <typename T>
struct Tiles {
  const ConvTranspose2dParams& p;
  const bool channels_last;
  const Shuffle shuffle;
  const int pixels, columns, channels;

  Tiles(const ConvTranspose2dParams& params, bool channels_last_)
      : p(params),
        channels_last(channels_last_),
        shuffle(params, channels_last_),
        pixels(static_cast<int>(params.batch * params.in_plane())),
        columns(static_cast<int>(params.out_channels * params.taps())),
        channels(static_cast<int>(params.in_channels)) {}

  void forward(const T* input, const T* weight, const T* bias, T* output, cudaStream_t stream) const {
    const Axis one = Axis::linear(1), rows = Axis::linear(columns);
    if (channels_last) {
      const Product product{pixels, columns, channels,       channels,        Axis::linear(channels), one,
                            rows,   one,     shuffle.pixels, shuffle.columns, shuffle.channel};
      multiply<T, true, false, Store::kRows>(product, input, weight, bias, output, 0, stream);
    } else {
      const Axis plane(p.in_h, p.in_w, p.in_channels * p.in_plane(), p.in_w, 1);
      const Product product{
          pixels, columns, channels,       channels,        plane,          Axis::linear(p.in_plane()),
          rows,   one,     shuffle.pixels, shuffle.columns, shuffle.channel};
      multiply<T, false, false, Store::kPlanes>(product, input, weight, bias, output, p.kernel_w, stream);
    }
  }

  // Both gradients are for channels_last.
  void grad_input(const T* grad, const T* weight, T* result, cudaStream_t stream) const {
    const Axis one = Axis::linear(1);
    const Product product{pixels,
                          channels,
                          columns,
                          columns,
                          shuffle.pixels,
                          shuffle.columns,
                          one,
                          Axis::linear(columns),
                          Axis::linear(channels),
                          one,
                          one};
    multiply<T, true, true, Store::kRows>(product, grad, weight, static_cast<const T*>(nullptr), result, 0, stream);
  }

  // Pixels summed by one block: a number that depends on shapes only.
  int chunk() const {
    constexpr int kPixels = 4096, kMostChunks = 64;
    const int least = (pixels + kMostChunks - 1) / kMostChunks;
    return (std::max(kPixels, least) + kDepth - 1) / kDepth * kDepth;
  }
  int chunks() const {
    return (pixels + chunk() - 1) / chunk();
  }

  // `partial` is [chunks, in channel, (i, j, out channel)], the result [in channel, out channel, i, j].
  void grad_weight(const T* input, const T* grad, float* partial, T* result, cudaStream_t stream) const {
    const Axis one = Axis::linear(1);
    const Product product{channels,       columns,         pixels, chunk(), one, Axis::linear(channels),
                          shuffle.pixels, shuffle.columns, one,    one,     one};
    multiply<T, false, false, Store::kSums>(product, input, grad, static_cast<const T*>(nullptr), partial, 0, stream);
    const int count = channels * columns;
    launch(conv_transpose2d_sum_kernel<T, float>, blocks_for(count), kThreads, 0, stream,
           static_cast<const float*>(partial), count, chunks(), Axis(p.taps(), p.out_channels, columns, 1, p.taps()),
           result);
  }
};

// Whether every access of the tiles is 16 bytes wide and every index fits.
inline bool tiles_apply(const ConvTranspose2dParams& p, ScalarType dtype, bool channels_last, bool forward) {
  if (!p.kernel_is_stride() || p.taps() == 1 || (dtype != ScalarType::Half && dtype != ScalarType::BFloat16)) {
    return false;
  }
  constexpr int64_t kMost = int64_t{1} << 30;
  const int64_t columns = p.out_channels * p.taps(), pixels = p.batch * p.in_plane();
  if (pixels >= kMost || columns * p.in_channels >= kMost || pixels / kTile * (columns / kTile + 1) >= kMost) {
    return false;
  }
  if (channels_last) {
    return p.in_channels % kVector == 0 && p.out_channels % kVector == 0;
  }
  return forward && p.in_plane() % kVector == 0 && columns % kVector == 0 && (p.kernel_w == 2 || p.kernel_w == 4);
}

}  // namespace
}  // namespace segkernels

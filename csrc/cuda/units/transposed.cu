// Transposed and separable convolutions as one translation unit: reading the headers takes nvcc longer than the kernels
// of most files.
#include "../conv_transpose1d.cu"
#include "../conv_transpose2d.cu"
#include "../depthwise_separable_conv2d.cu"

// Convolutions as one translation unit: reading the headers takes nvcc longer than the kernels of most files.
#include "../conv2d.cu"
#include "../conv2d_backward.cu"
#include "../multi_dilation_conv2d.cu"

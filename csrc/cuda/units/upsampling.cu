// Upsampling as one translation unit: reading the headers takes nvcc longer than the kernels of most files.
#include "../upsample_argmax.cu"
#include "../upsample_bilinear2d.cu"
#include "../upsample_nearest2d.cu"

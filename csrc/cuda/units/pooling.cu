// Pooling and unpooling as one translation unit: reading the headers takes nvcc longer than the kernels of most files.
#include "../bed_of_nails.cu"
#include "../max_pool2d.cu"
#include "../max_unpool2d.cu"

// Kernels compiled per resident dtype: `kernels.cu` includes this once per T and KERNEL.
#include "attention.cuh"
#include "decoder.cuh"
#include "overlay.cuh"
#include "apply.cuh"

// The kernels of a dtype; included once for each.
#include "attention.cuh"
#include "decoder.cuh"
#include "overlay.cuh"
#include "apply.cuh"

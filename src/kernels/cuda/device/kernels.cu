// All kernels, in one translation unit.
//
// On the host (`HOST_EMULATION`), tests/cuda/emulation.h is included first: it defines the CUDA
// keywords and functions, and a NAMED_KERNEL that registers each kernel by name.
#include "common.cuh"
#include "csr.cuh"

#ifndef HOST_EMULATION
#define SHARED_MEMORY(type, name)                \
    extern __shared__ unsigned char name##_bytes[]; \
    type *const name = reinterpret_cast<type *>(name##_bytes)
#define NAMED_KERNEL(name, ...) extern "C" __global__ void name(__VA_ARGS__)
#endif

#define T float
#define KERNEL(name, ...) NAMED_KERNEL(name##_f32, __VA_ARGS__)
#include "each_dtype.cuh"
#undef T
#undef KERNEL

#define T __nv_bfloat16
#define KERNEL(name, ...) NAMED_KERNEL(name##_bf16, __VA_ARGS__)
#include "each_dtype.cuh"
#undef T
#undef KERNEL

#define T __half
#define KERNEL(name, ...) NAMED_KERNEL(name##_f16, __VA_ARGS__)
#include "each_dtype.cuh"
#undef T
#undef KERNEL

#include "sample.cuh"
#include "training.cuh"

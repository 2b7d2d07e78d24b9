// Dtype conversions and reductions shared by all kernels.
//
// `kernels.cu` includes the kernels once per resident dtype, with T defined as the dtype and KERNEL
// as the declaration of a kernel for it. All arithmetic is in float.
#pragma once
#include <cstdint>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

constexpr uint32_t WARP = 32;
constexpr uint32_t ALL_LANES = 0xffffffffu;
// Positions per KV cache block; equals `kernels::kv::BLOCK`.
constexpr uint32_t KV_BLOCK = 16;

__device__ inline float widen(float v) { return v; }
__device__ inline float widen(__nv_bfloat16 v) { return __bfloat162float(v); }
__device__ inline float widen(__half v) { return __half2float(v); }

// Rounds to nearest, ties to even.
__device__ inline void store(float *to, float v) { *to = v; }
__device__ inline void store(__nv_bfloat16 *to, float v) { *to = __float2bfloat16_rn(v); }
__device__ inline void store(__half *to, float v) { *to = __float2half_rn(v); }

// N adjacent values, aligned so that one instruction reads them.
template <typename V, uint32_t N>
struct alignas(sizeof(V) * N) Neighbours {
    V values[N];
};

// Loads and widens N adjacent values, in reads of up to 16 bytes. `from` must be aligned to the
// size of one read.
template <uint32_t N, typename V>
__device__ inline void load(float (&to)[N], const V *from) {
    constexpr uint32_t READ = N * sizeof(V) <= 16 ? N : 16 / sizeof(V);
#pragma unroll
    for (uint32_t start = 0; start < N; start += READ) {
        const auto read = *reinterpret_cast<const Neighbours<V, READ> *>(from + start);
#pragma unroll
        for (uint32_t i = 0; i < READ; ++i) to[start + i] = widen(read.values[i]);
    }
}

// Sum over a group of `lanes` adjacent lanes (a power of two), returned to all of them.
__device__ inline float sum_over(float v, uint32_t lanes) {
    for (uint32_t step = lanes / 2; step > 0; step /= 2) v += __shfl_xor_sync(ALL_LANES, v, step);
    return v;
}

// Sum over a block of at most 32 warps, returned to all threads.
__device__ inline float sum_over_block(float v) {
    __shared__ float sums[WARP];
    const uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    v = sum_over(v, WARP);
    __syncthreads(); // an earlier sum may still be read
    if (lane == 0) sums[warp] = v;
    __syncthreads();
    return sum_over(lane < blockDim.x / WARP ? sums[lane] : 0.f, WARP);
}

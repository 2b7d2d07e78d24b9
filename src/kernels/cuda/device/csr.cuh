// Ticket deltas, as one CSR matrix per weight, and iteration over their nonzeros.
#pragma once
#include "common.cuh"

// Deltas of one weight; `row_offsets` is null if the ticket does not touch it. Columns are strictly
// increasing within a row. `present/ticket/layout.rs` has the same struct.
struct Deltas {
    const uint32_t *row_offsets; // [out + 1]
    const void *columns;         // [nonzeros], u16 or u32
    const void *values;          // [nonzeros], bf16 or f32
    uint32_t kinds;
    uint32_t lanes; // lanes per row in the overlay, a power of two
};
constexpr uint32_t WIDE_COLUMNS = 1, WIDE_VALUES = 2;

__device__ inline uint32_t column_of(const Deltas &deltas, uint32_t nonzero) {
    return deltas.kinds & WIDE_COLUMNS ? static_cast<const uint32_t *>(deltas.columns)[nonzero]
                                       : static_cast<const uint16_t *>(deltas.columns)[nonzero];
}

__device__ inline float value_of(const Deltas &deltas, uint32_t nonzero) {
    return deltas.kinds & WIDE_VALUES
               ? static_cast<const float *>(deltas.values)[nonzero]
               : widen(static_cast<const __nv_bfloat16 *>(deltas.values)[nonzero]);
}

// Row of a nonzero, by binary search among the rows `first..last`.
__device__ inline uint32_t row_of(const uint32_t *row_offsets, uint32_t first, uint32_t last,
                                  uint32_t nonzero) {
    while (last - first > 1) {
        const uint32_t middle = first + (last - first) / 2;
        if (row_offsets[middle] <= nonzero)
            first = middle;
        else
            last = middle;
    }
    return first;
}

// Nonzeros per block of `for_each_nonzero`. Adjacent lanes read adjacent nonzeros.
constexpr uint32_t CHUNK = 1024;

// Calls `visit(nonzero, row)` for the block's nonzeros, which start at `first`; each thread visits
// its share. All threads of the block must call this.
template <typename Visit>
__device__ inline void for_each_nonzero(const uint32_t *row_offsets, uint32_t rows, uint32_t first,
                                        Visit visit) {
    __shared__ uint32_t bounds[2];
    const uint32_t nonzeros = row_offsets[rows];
    const uint32_t end = nonzeros - first < CHUNK ? nonzeros : first + CHUNK;
    if (threadIdx.x < 2)
        bounds[threadIdx.x] = row_of(row_offsets, 0, rows, threadIdx.x == 0 ? first : end - 1);
    __syncthreads();
    for (uint32_t nonzero = first + threadIdx.x; nonzero < end; nonzero += blockDim.x)
        visit(nonzero, row_of(row_offsets, bounds[0], bounds[1] + 1, nonzero));
}

// `y += scale * x * Delta^T` for a ragged batch: its rows lie in segments, each under one ticket.

#ifndef TOMBOLA_OVERLAY
#define TOMBOLA_OVERLAY
// Batch rows under one ticket. `kernels::cuda::overlay` writes this struct.
struct Segment {
    const Deltas *ticket; // its deltas of every weight
    uint32_t first_row, rows;
    float scale;
    uint32_t padding;
};

// Batch rows that share a nonzero's read.
constexpr uint32_t OVERLAY_ROWS = 4;

// A few batch rows: the lanes of a group take a row's nonzeros in turn, then add up their sums. The
// order of a sum hangs on the ticket alone, never on the other rows. `x(row, column)` reads the input.
template <typename V, typename Input>
__device__ inline void add_rows(V *y, uint32_t out, uint32_t rows, const Deltas &deltas, float scale,
                                uint32_t first, uint32_t last, Input x) {
    const uint32_t lanes = deltas.lanes, lane = threadIdx.x % lanes;
    const uint32_t at_once = blockDim.x / lanes;
    // All lanes of a warp stay in the loop, since they meet in the sums.
    for (uint32_t start = first; start < last; start += at_once) {
        const uint32_t row = start + threadIdx.x / lanes;
        const bool inside = row < last;
        const uint32_t end = inside ? deltas.row_offsets[row + 1] : 0;
        float sums[OVERLAY_ROWS] = {};
        for (uint32_t k = inside ? deltas.row_offsets[row] + lane : 0; k < end; k += lanes) {
            const uint32_t column = column_of(deltas, k);
            const float value = value_of(deltas, k);
#pragma unroll
            for (uint32_t t = 0; t < OVERLAY_ROWS; ++t)
                if (t < rows) sums[t] += value * x(t, column);
        }
#pragma unroll
        for (uint32_t t = 0; t < OVERLAY_ROWS; ++t) {
            if (t >= rows) break;
            const float sum = sum_over(sums[t], lanes);
            V *to = y + uint64_t(t) * out + row;
            if (inside && lane == t % lanes) store(to, widen(*to) + scale * sum);
        }
    }
}
#endif

// Blocks `(parts of the weight's rows, segments)`. Where `staged`, dynamic shared memory has room for
// OVERLAY_ROWS rows of x, or for fewer: `at_once`.
KERNEL(overlay, T *y, const T *x, const Segment *segments, uint32_t weight, uint32_t inner,
       uint32_t out, uint32_t at_once, uint32_t staged) {
    SHARED_MEMORY(float, stage);
    const Segment segment = segments[blockIdx.y];
    if (segment.rows == 0) return;
    const Deltas deltas = segment.ticket[weight];
    if (deltas.row_offsets == nullptr) return;
    const uint32_t first = uint64_t(out) * blockIdx.x / gridDim.x;
    const uint32_t last = uint64_t(out) * (blockIdx.x + 1) / gridDim.x;
    for (uint32_t done = 0; done < segment.rows; done += at_once) {
        const uint32_t left = segment.rows - done, rows = left < at_once ? left : at_once;
        const uint64_t row = segment.first_row + done;
        const T *from = x + row * inner;
        T *to = y + row * out;
        if (staged) {
            __syncthreads(); // the rows before are done with
            for (uint32_t i = threadIdx.x; i < rows * inner; i += blockDim.x) stage[i] = widen(from[i]);
            __syncthreads();
            add_rows(to, out, rows, deltas, segment.scale, first, last,
                     [&](uint32_t t, uint32_t column) { return stage[t * inner + column]; });
        } else {
            add_rows(to, out, rows, deltas, segment.scale, first, last,
                     [&](uint32_t t, uint32_t column) { return widen(from[uint64_t(t) * inner + column]); });
        }
    }
}

// Writes a weight's deltas, times `factor`, into a matrix of zeros: for so many batch rows that a dense
// product is cheaper.
KERNEL(overlay_expand, T *dense, const Deltas *ticket, uint32_t weight, uint32_t inner, uint32_t out,
       float factor) {
    const Deltas deltas = ticket[weight];
    for_each_nonzero(deltas.row_offsets, out, blockIdx.x * CHUNK, [&](uint32_t nonzero, uint32_t row) {
        store(dense + uint64_t(row) * inner + column_of(deltas, nonzero), factor * value_of(deltas, nonzero));
    });
}

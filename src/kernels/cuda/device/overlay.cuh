// `y + scale * x * Delta^T` for a ragged batch, divided into segments of rows with the same ticket
// or none. The product `y` is in float and the sum is rounded once: a ticket often adds less than
// half a unit in the last place of a rounded product, and that would be lost.

#ifndef TOMBOLA_OVERLAY
#define TOMBOLA_OVERLAY
// Batch rows with the same ticket, or with none (null). `present/ticket/overlay.rs` has the same
// struct.
struct Segment {
    const Deltas *ticket; // one entry per weight
    uint32_t first_row, rows;
    float scale;
    uint32_t padding;
};

// Batch rows computed per read of a nonzero.
constexpr uint32_t OVERLAY_ROWS = 4;

// Rounds rows without deltas, using all blocks of the segment. Each thread issues several reads
// before its first write, to hide their latency.
template <typename V>
__device__ inline void round_all(V *to, const float *y, uint64_t count) {
    constexpr uint32_t AT_ONCE = 8;
    const uint64_t threads = uint64_t(gridDim.x) * blockDim.x;
    for (uint64_t start = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x; start < count;
         start += AT_ONCE * threads) {
        float values[AT_ONCE];
#pragma unroll
        for (uint32_t t = 0; t < AT_ONCE; ++t)
            if (start + t * threads < count) values[t] = y[start + t * threads];
#pragma unroll
        for (uint32_t t = 0; t < AT_ONCE; ++t)
            if (start + t * threads < count) store(to + start + t * threads, values[t]);
    }
}

// Adds the sparse product for up to OVERLAY_ROWS batch rows. Each group of lanes divides the
// nonzeros of one weight row among its lanes, then adds their partial sums. The summation order
// depends only on the ticket. `x(row, column)` reads the input.
template <typename V, typename Input>
__device__ inline void add_rows(V *to, const float *y, uint32_t out, uint32_t rows,
                                const Deltas &deltas, float scale, uint32_t first, uint32_t last,
                                Input x) {
    const uint32_t lanes = deltas.lanes, lane = threadIdx.x % lanes;
    const uint32_t at_once = blockDim.x / lanes;
    // All lanes of a warp stay in the loop, because the shuffles of `sum_over` need all of them.
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
            const uint64_t at = uint64_t(t) * out + row;
            if (inside && lane == t % lanes) store(to + at, y[at] + scale * sum);
        }
    }
}
#endif

// Overlay of one weight. Grid: (ranges of weight rows, segments). If `staged`, dynamic shared
// memory holds `at_once` rows of x, at most OVERLAY_ROWS.
KERNEL(overlay, T *sums, const float *y, const T *x, const Segment *segments, uint32_t weight,
       uint32_t inner, uint32_t out, uint32_t at_once, uint32_t staged) {
    SHARED_MEMORY(float, stage);
    const Segment segment = segments[blockIdx.y];
    if (segment.rows == 0) return;
    const Deltas deltas = segment.ticket == nullptr ? Deltas{} : segment.ticket[weight];
    if (deltas.row_offsets == nullptr) {
        const uint64_t start = uint64_t(segment.first_row) * out;
        return round_all(sums + start, y + start, uint64_t(segment.rows) * out);
    }
    const uint32_t first = uint64_t(out) * blockIdx.x / gridDim.x;
    const uint32_t last = uint64_t(out) * (blockIdx.x + 1) / gridDim.x;
    for (uint32_t done = 0; done < segment.rows; done += at_once) {
        const uint32_t left = segment.rows - done, rows = left < at_once ? left : at_once;
        const uint64_t row = segment.first_row + done;
        const T *from = x + row * inner;
        const float *dense = y + row * out;
        T *to = sums + row * out;
        if (staged) {
            __syncthreads(); // wait until the previous rows are consumed
            for (uint32_t i = threadIdx.x; i < rows * inner; i += blockDim.x)
                stage[i] = widen(from[i]);
            __syncthreads();
            add_rows(to, dense, out, rows, deltas, segment.scale, first, last,
                     [&](uint32_t t, uint32_t column) { return stage[t * inner + column]; });
        } else {
            add_rows(to, dense, out, rows, deltas, segment.scale, first, last,
                     [&](uint32_t t, uint32_t column) {
                         return widen(from[uint64_t(t) * inner + column]);
                     });
        }
    }
}

// Expands the deltas of a weight, times `factor`, into a zeroed dense matrix, for a dense product
// with many batch rows.
KERNEL(overlay_expand, T *dense, const Deltas *ticket, uint32_t weight, uint32_t inner,
       uint32_t out, float factor) {
    const Deltas deltas = ticket[weight];
    for_each_nonzero(deltas.row_offsets, out, blockIdx.x * CHUNK,
                     [&](uint32_t nonzero, uint32_t row) {
                         store(dense + uint64_t(row) * inner + column_of(deltas, nonzero),
                               factor * value_of(deltas, nonzero));
                     });
}

// In-place apply and revert of a ticket: one launch for all weights that it touches.

#ifndef TOMBOLA_APPLY
#define TOMBOLA_APPLY
// A weight `[rows, inner]` with its deltas. `present/ticket/apply.rs` has the same struct.
struct AppliedWeight {
    void *weight;
    Deltas deltas;
    uint64_t first_saved; // index of its first value in `saved`
    uint32_t rows, inner;
    uint32_t first_block, blocks;
};

// Weight of a block, by binary search; weights are ordered by `first_block`.
__device__ inline const AppliedWeight &weight_of(const AppliedWeight *weights, uint32_t count,
                                                 uint32_t block) {
    uint32_t first = 0, last = count;
    while (last - first > 1) {
        const uint32_t middle = first + (last - first) / 2;
        if (weights[middle].first_block <= block)
            first = middle;
        else
            last = middle;
    }
    return weights[first];
}
#endif

// Saves the base's values, then writes `round(w + scale * delta)`. Product and sum are rounded
// separately, as on the CPU: no fused multiply-add.
KERNEL(ticket_apply, const AppliedWeight *weights, uint32_t count, T *saved, float scale) {
    const AppliedWeight applied = weight_of(weights, count, blockIdx.x);
    T *weight = static_cast<T *>(applied.weight);
    T *kept = saved + applied.first_saved;
    const uint32_t first = (blockIdx.x - applied.first_block) * CHUNK;
    for_each_nonzero(
        applied.deltas.row_offsets, applied.rows, first, [&](uint32_t nonzero, uint32_t row) {
            T *at = weight + uint64_t(row) * applied.inner + column_of(applied.deltas, nonzero);
            const T old = *at;
            kept[nonzero] = old;
            store(at, __fadd_rn(widen(old), __fmul_rn(scale, value_of(applied.deltas, nonzero))));
        });
}

// Restores the saved values.
KERNEL(ticket_revert, const AppliedWeight *weights, uint32_t count, const T *saved) {
    const AppliedWeight applied = weight_of(weights, count, blockIdx.x);
    T *weight = static_cast<T *>(applied.weight);
    const T *kept = saved + applied.first_saved;
    const uint32_t first = (blockIdx.x - applied.first_block) * CHUNK;
    for_each_nonzero(
        applied.deltas.row_offsets, applied.rows, first, [&](uint32_t nonzero, uint32_t row) {
            weight[uint64_t(row) * applied.inner + column_of(applied.deltas, nonzero)] =
                kept[nonzero];
        });
}

// Applying and reverting a ticket in place: one launch for all weights that it touches.

#ifndef TOMBOLA_APPLY
#define TOMBOLA_APPLY
// One weight `[rows, inner]` that is written. `kernels::cuda::present::ticket::apply` writes this struct.
struct AppliedWeight {
    void *weight;
    Deltas deltas;
    uint64_t first_saved; // where its values are in `saved`
    uint32_t rows, inner;
    uint32_t first_block, blocks;
};

// The part that a block works on: parts lie in the order of their blocks.
__device__ inline const AppliedWeight &part_of(const AppliedWeight *parts, uint32_t count, uint32_t block) {
    uint32_t first = 0, last = count;
    while (last - first > 1) {
        const uint32_t middle = first + (last - first) / 2;
        if (parts[middle].first_block <= block)
            first = middle;
        else
            last = middle;
    }
    return parts[first];
}
#endif

// Keeps the base's own values in `saved`, then writes `round(w + scale * delta)`. The product and the
// sum are rounded one by one, as the CPU does it: not one fused multiply-add.
KERNEL(ticket_apply, const AppliedWeight *parts, uint32_t count, T *saved, float scale) {
    const AppliedWeight part = part_of(parts, count, blockIdx.x);
    T *weight = static_cast<T *>(part.weight);
    T *kept = saved + part.first_saved;
    const uint32_t first = (blockIdx.x - part.first_block) * CHUNK;
    for_each_nonzero(part.deltas.row_offsets, part.rows, first, [&](uint32_t nonzero, uint32_t row) {
        T *at = weight + uint64_t(row) * part.inner + column_of(part.deltas, nonzero);
        const T old = *at;
        kept[nonzero] = old;
        store(at, __fadd_rn(widen(old), __fmul_rn(scale, value_of(part.deltas, nonzero))));
    });
}

// Writes the kept values back.
KERNEL(ticket_revert, const AppliedWeight *parts, uint32_t count, const T *saved) {
    const AppliedWeight part = part_of(parts, count, blockIdx.x);
    T *weight = static_cast<T *>(part.weight);
    const T *kept = saved + part.first_saved;
    const uint32_t first = (blockIdx.x - part.first_block) * CHUNK;
    for_each_nonzero(part.deltas.row_offsets, part.rows, first, [&](uint32_t nonzero, uint32_t row) {
        weight[uint64_t(row) * part.inner + column_of(part.deltas, nonzero)] = kept[nonzero];
    });
}

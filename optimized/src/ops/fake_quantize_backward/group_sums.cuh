// What the backwards of quantizers share: sums over groups that may lie in several tiles.
//
// Every part of a group that lies in one tile is summed by the lanes of a warp; later a thread per
// group adds the parts from left to right. Both orders are fixed, so a rerun has the same bits.
#pragma once
#include "quantizer.cuh"

// Parts of a row's groups: group g and tile t meet in part t + g. To the right, at every border of
// either kind the number grows, so no two meetings share one.
__device__ __forceinline__ unsigned parts(unsigned width, unsigned groups, unsigned tile_columns) {
    return (width - 1) / tile_columns + groups;
}

// Place of the part that the lane's group has in its tile, for the warp's row i.
template <unsigned C>
__device__ __forceinline__ word part_at(const LowRank& q, const Tile<C>& tile, unsigned i) {
    return (word)(tile.row + i) * parts(q.width, q.groups, 32 * C) + tile.index + tile.group;
}

// The lanes of each group of a warp, which are neighbours.
struct GroupLanes {
    unsigned joined;  // bit k: lane + 2^k has the same group
    bool leads;       // whether the lane is the first of its group

    __device__ __forceinline__ explicit GroupLanes(unsigned group) : joined(0) {
        unsigned lane = threadIdx.x % 32;
        for (unsigned k = 0; k < 5; ++k) {
            bool same = __shfl_down_sync(~0u, group, 1u << k) == group && lane + (1u << k) < 32;
            joined |= (same ? 1u : 0u) << k;
        }
        leads = __shfl_up_sync(~0u, group, 1) != group || lane == 0;
    }

    // Adds up the lanes of each group; the first of them has the sums.
    template <unsigned N>
    __device__ __forceinline__ void add_up(Pack<N>& sums) const {
        for (unsigned k = 0; k < 5; ++k) {
            Pack<N> beside;
            for (unsigned n = 0; n < N; ++n) {
                beside.at[n] = __shfl_down_sync(~0u, sums.at[n], 1u << k);
            }
            if (joined >> k & 1) {
                for (unsigned n = 0; n < N; ++n) sums.at[n] += beside.at[n];
            }
        }
    }
};

// One group's sum of its parts, left to right.
template <unsigned N>
__device__ __forceinline__ float group_sum(const Pack<N>* partial, unsigned which, word index,
                                           unsigned width, unsigned groups) {
    unsigned group_size = width / groups, tile_columns = by_four(group_size) ? 128 : 32;
    unsigned group = index % groups, first = group * group_size;
    const Pack<N>* row = partial + index / groups * parts(width, groups, tile_columns) + group;
    float sum = 0.0f;
    for (unsigned t = first / tile_columns; t <= (first + group_size - 1) / tile_columns; ++t) {
        sum += row[t].at[which];
    }
    return sum;
}

// d_scale += factor * sum; nothing for a scale below its floor, which no longer moves the output.
template <unsigned N>
__device__ __forceinline__ void add_to_scale(const Pack<N>* partial, unsigned which,
                                             const float* scale, float* d_scale, float factor,
                                             unsigned width, unsigned groups, word len) {
    for (word i = first_element(); i < len; i += all_threads()) {
        float sum = group_sum(partial, which, i, width, groups);
        if (scale[i] >= SCALE_FLOOR) d_scale[i] += factor * sum;
    }
}

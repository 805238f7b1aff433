// What fake_quantize_backward and weight_gradient share: the gradient of a tile behind the mask,
// and the sums of its groups. Eqs. (Q5) to (Q7).
#pragma once
#include "group_sums.cuh"

// The sums of a group: for the scale D * (code - M * v), for the offset D * (1 - M).
enum Sum { OF_SCALE, OF_OFFSET };

// Masks the lane's part of the gradient and leaves the sums of its groups' parts.
template <unsigned C, typename W>
__device__ __forceinline__ void mask(const Quantizer<W>& q, const Tile<C>& tile,
                                     const Arguments<C>& arguments, float (&d)[ROWS][C],
                                     Pack<2>* partial) {
    GroupLanes lanes(tile.inside ? tile.group : ~0u);
    for (unsigned i = 0; i < ROWS; ++i) {
        Pack<2> sums = {};
        for (unsigned c = 0; c < C; ++c) {
            float v = arguments.v[i][c];
            bool in_range = v >= q.qmin && v <= q.qmax;
            sums.at[OF_SCALE] += d[i][c] * (q.code(v) - (in_range ? v : 0.0f));
            sums.at[OF_OFFSET] += in_range ? 0.0f : d[i][c];
            d[i][c] = in_range ? d[i][c] : 0.0f;
        }
        lanes.add_up(sums);
        if (lanes.leads && tile.has(q, i)) partial[part_at(q, tile, i)] = sums;
    }
}

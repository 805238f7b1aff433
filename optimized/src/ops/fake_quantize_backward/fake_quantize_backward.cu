// fake_quantize_backward: Eqs. (Q5) to (Q7). Twin: ops/fake_quantize_backward/cpu.rs. Class:
// d_output exact, d_scale and d_offset reductions. (M2) is two plain products of what is left in
// d_output.
// weight [out, in], lora_a [rank, in], lora_b [out, rank], scale, offset [out, groups],
// d_output [out, in] masked in place -> d_scale, d_offset [out, groups], added to.
// First a block per tile of 32 rows, see quantizer.cuh: reads 8 B and writes 4 B per element,
// 2 * rank operations and about 40 more. It leaves the sums of every part of a group that lies in
// one tile; then a thread per group adds the parts from left to right. Both orders are fixed, so a
// rerun has the same bits.
// Host guarantees: as fake_quantize.
#include "quantizer.cuh"

// A group's sums before the constant factor, or a part of them.
struct __align__(8) Sums {
    float scale;   // of D * (code - M * v)
    float offset;  // of D * (1 - M)
};

// Parts of a row's groups: group g and tile t meet in part t + g. To the right, at every border of
// either kind the number grows, so no two meetings share one.
__device__ __forceinline__ unsigned parts(unsigned width, unsigned groups, unsigned tile_columns) {
    return (width - 1) / tile_columns + groups;
}

// Adds up the lanes of each group, which are neighbours; the first lane of a group has its sum.
// bit k of `joined`: lane + 2^k has the same group.
__device__ __forceinline__ Sums group_sums(Sums sums, unsigned joined) {
    for (unsigned k = 0; k < 5; ++k) {
        float scale = __shfl_down_sync(~0u, sums.scale, 1u << k);
        float offset = __shfl_down_sync(~0u, sums.offset, 1u << k);
        if (joined >> k & 1) {
            sums.scale += scale;
            sums.offset += offset;
        }
    }
    return sums;
}

template <unsigned C>
__device__ __forceinline__ void mask_tile(const Quantizer& q, float* d_output, Sums* partial,
                                          word* status, unsigned first) {
    Tile<C> tile(q);
    Arguments<C> arguments(q, tile);
    // No stand-ins here: another lane writes what it masked.
    float d[ROWS][C] = {};
    for (unsigned i = 0; i < ROWS; ++i) {
        if (tile.has(q, i)) load(d_output + tile.at(q, i), d[i]);
    }

    unsigned lane = threadIdx.x % 32, joined = 0;
    unsigned group = tile.inside ? tile.group : ~0u;
    for (unsigned k = 0; k < 5; ++k) {
        bool same = __shfl_down_sync(~0u, group, 1u << k) == group && lane + (1u << k) < 32;
        joined |= (same ? 1u : 0u) << k;
    }
    bool leads = __shfl_up_sync(~0u, group, 1) != group || lane == 0;

    for (unsigned i = 0; i < ROWS; ++i) {
        Sums sums = {0.0f, 0.0f};
        for (unsigned c = 0; c < C; ++c) {
            float v = arguments.v[i][c];
            bool in_range = v >= q.qmin && v <= q.qmax;
            sums.scale += d[i][c] * (q.code(v) - (in_range ? v : 0.0f));
            sums.offset += in_range ? 0.0f : d[i][c];
            d[i][c] = in_range ? d[i][c] : 0.0f;
        }
        sums = group_sums(sums, joined);
        if (!tile.has(q, i)) continue;
        store(d_output + tile.at(q, i), d[i]);
        word row = (word)(tile.row + i) * parts(q.width, q.groups, 32 * C);
        if (leads) partial[row + tile.index + group] = sums;
    }
    arguments.report(q, tile, nullptr, status, first);
}

extern "C" __global__ void fake_quantize_backward(const float* weight,  // [out, in]
                                                  const float* lora_a,  // [rank, in]
                                                  const float* lora_b,  // [out, rank]
                                                  const float* scale,   // [out, groups]
                                                  const float* offset,  // [out, groups]
                                                  unsigned out, unsigned width, unsigned groups,
                                                  unsigned rank, float lora_scaling, float qmin, float qmax,
                                                  float* d_output,      // [out, in]
                                                  Sums* partial,        // [out, parts]
                                                  word* status, unsigned first) {
    Quantizer q = {weight, lora_a, lora_b, scale,        offset, out,
                   width,  groups, rank,   lora_scaling, qmin,   qmax};
    if (by_four(width / groups)) {
        mask_tile<4>(q, d_output, partial, status, first);
    } else {
        mask_tile<1>(q, d_output, partial, status, first);
    }
}

// One group's sum of its parts, left to right.
__device__ __forceinline__ float group_sum(const Sums* partial, float Sums::* which, word index,
                                           unsigned width, unsigned groups) {
    unsigned group_size = width / groups, tile_columns = by_four(group_size) ? 128 : 32;
    unsigned group = index % groups, first = group * group_size;
    const Sums* row = partial + index / groups * parts(width, groups, tile_columns) + group;
    float sum = 0.0f;
    for (unsigned t = first / tile_columns; t <= (first + group_size - 1) / tile_columns; ++t) {
        sum += row[t].*which;
    }
    return sum;
}

extern "C" __global__ void scale_gradient(const Sums* partial,  // [out, parts]
                                          const float* scale,   // [out, groups]
                                          float* d_scale,       // [out, groups]
                                          float factor, unsigned width, unsigned groups,
                                          word len) {
    for (word i = first_element(); i < len; i += all_threads()) {
        float sum = group_sum(partial, &Sums::scale, i, width, groups);
        if (scale[i] >= SCALE_FLOOR) d_scale[i] += factor * sum;
    }
}

extern "C" __global__ void offset_gradient(const Sums* partial,  // [out, parts]
                                           float* d_offset,      // [out, groups]
                                           float factor, unsigned width, unsigned groups,
                                           word len) {
    for (word i = first_element(); i < len; i += all_threads()) {
        d_offset[i] += factor * group_sum(partial, &Sums::offset, i, width, groups);
    }
}

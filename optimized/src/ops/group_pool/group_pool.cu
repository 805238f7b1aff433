// group_pool and its backward: Eqs. (M8a), (M9). Twin: ops/group_pool/cpu.rs. Class: exact, the sums
// too: their order is the cpu backend's.
// x [tokens, in] -> pooled [tokens, groups]; d_pooled [tokens, groups] -> d_x [tokens, in].
// Half a warp per group, reads 4 B per input. Backward: a block per row and 256 * C columns, a thread
// takes C neighbours; writes 4 B per input, and reads as much where it adds.
// Host guarantees: width % groups == 0.
#include "groups.cuh"

template <unsigned C>
__device__ __forceinline__ void spread(const float* d_pooled, float* d_x, unsigned width,
                                       unsigned groups, float divisor, float factor, unsigned add) {
    Columns<C> at(width, groups);
    if (!at.inside) return;
    float d_input = d_pooled[at.group] * factor / divisor, d[C];
    if (add) {
        load(d_x + at.first, d);
        for (unsigned c = 0; c < C; ++c) d[c] += d_input;
    } else {
        for (unsigned c = 0; c < C; ++c) d[c] = d_input;
    }
    store(d_x + at.first, d);
}

extern "C" __global__ void group_pool(const float* x,  // [tokens, in]
                                      float* pooled,   // [tokens, groups]
                                      word groups,     // of all rows
                                      unsigned group_size, float divisor, float factor) {
    word group = group_of_lanes(), from = group * group_size;
    bool exists = group < groups;
    float sum = lane_sum(exists ? group_size : 0, [&](unsigned i) { return x[from + i]; });
    if (exists && threadIdx.x % LANES == 0) pooled[group] = sum / divisor * factor;
}

extern "C" __global__ void group_pool_backward(const float* d_pooled,  // [tokens, groups]
                                               float* d_x,             // [tokens, in]
                                               unsigned width, unsigned groups, float divisor,
                                               float factor,
                                               unsigned add) {  // else replace
    if (by_four(width / groups)) {
        spread<4>(d_pooled, d_x, width, groups, divisor, factor, add);
    } else {
        spread<1>(d_pooled, d_x, width, groups, divisor, factor, add);
    }
}

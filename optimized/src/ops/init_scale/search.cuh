// What operations share that choose the grid of a group by its weights: a thread per group, because
// its sums run in ascending order, and the search for the range with the least error.
#pragma once
#include "groups.cuh"

constexpr unsigned GROUPS = 128;  // of a block, and its threads
constexpr unsigned CHUNK = 32;    // weights of a group in shared memory

struct Groups {
    const float* weight;
    word groups;
    unsigned group_size;
    float (*chunk)[CHUNK + 1];  // one more spreads a column over the banks

    __device__ __forceinline__ word mine() const { return first_element(); }

    // Calls visit(w, i) for each weight of the thread's group in ascending order. Every thread of
    // the block must come here.
    template <typename Visit>
    __device__ __forceinline__ void each(Visit visit) const {
        word first = (word)blockIdx.x * GROUPS;
        for (unsigned start = 0; start < group_size; start += CHUNK) {
            unsigned count = min(CHUNK, group_size - start);
            __syncthreads();  // every thread is done with the chunk before
            for (unsigned e = threadIdx.x; e < GROUPS * CHUNK; e += GROUPS) {
                word group = first + e / CHUNK;
                if (group < groups && e % CHUNK < count) {
                    chunk[e / CHUNK][e % CHUNK] = weight[group * group_size + start + e % CHUNK];
                }
            }
            __syncthreads();  // the chunk is there
            if (mine() < groups) {
#pragma unroll 1
                for (unsigned c = 0; c < count; ++c) visit(chunk[threadIdx.x][c], start + c);
            }
        }
    }
};

// x^p of x >= 0. To a whole power up to 4 the nearest double, because x comes from a float and its
// square is exact; else within some 1e-14, which can matter only between ranges that are as good.
__device__ __forceinline__ double power(double x, double p) {
    if (p == 1.0) return x;
    if (p == 2.0) return x * x;
    if (p == 3.0) return x * x * x;
    if (p == 4.0) return (x * x) * (x * x);
    return x == 0.0 ? 0.0 : exp2(p * log2(x));
}

// The first of the grids part(1) .. part(steps) with the least sum |w - output(w)|^p over the group,
// or `best` where no sum is finite. In f64, so that close ranges are told apart.
template <typename Grid, typename Part>
__device__ __forceinline__ Grid best_grid(const Groups& all, Grid best, Part part, double p,
                                          word steps) {
    double least = __longlong_as_double(0x7ff0000000000000);
    for (word k = 1; k <= steps; ++k) {
        Grid grid = part(k);
        double error = 0.0;
        all.each([&](float w, unsigned) { error += power(fabsf(w - grid.output(w)), p); });
        if (error < least) least = error, best = grid;
    }
    return best;
}

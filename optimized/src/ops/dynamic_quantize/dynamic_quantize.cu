// dynamic_quantize, dynamic_quantize_backward: Eqs. (Q14), (Q15). Twin:
// ops/dynamic_quantize/cpu.rs. Class: exact.
// x, output [rows, size] f32, codes [rows, size] u8, scale, zero_point [rows] f32. A row is a group
// of a token. Backward: d [rows, size] f32 is set to 0 outside the grid, in place.
// A block per row: least and greatest over the block, then each value by itself. Floor 8 B per
// element (9 B with codes), backward 4 B and what is set to 0: the second reading of a row is of
// the L1 cache. About 10 operations, one of them a division.
// Host guarantees: blocks of whole warps; rows lie one after the other.
#include "kernels.cuh"

#define SCALE_FLOOR 1e-8f  // a constant of type float would be a variable in memory

// Places in the list of tensors that status.rs keeps.
enum Complaint { X, SCALE, OUTPUT };

// Least and greatest over a block of whole warps, in every thread of it. Every thread calls.
__device__ __forceinline__ void block_extremes(float& low, float& high) {
    __shared__ float low_of[32], high_of[32];  // of each warp
    for (unsigned distance = 16; distance > 0; distance /= 2) {
        low = fminf(low, __shfl_xor_sync(0xffffffffu, low, distance));
        high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, distance));
    }
    const unsigned lane = threadIdx.x % 32, warps = blockDim.x / 32;
    if (lane == 0) low_of[threadIdx.x / 32] = low, high_of[threadIdx.x / 32] = high;
    __syncthreads();
    for (unsigned warp = 0; warp < warps; ++warp) {
        low = fminf(low, low_of[warp]);
        high = fmaxf(high, high_of[warp]);
    }
}

// The grid of a row.
struct Grid {
    float scale, zero_point, last;

    // Where a value would lie on a grid without ends.
    __device__ __forceinline__ float place(float x) const {
        return rintf(x / scale) + zero_point;
    }
};

// Takes the grid from a row, in every thread of the block; values that are not finite are reported.
template <unsigned WIDTH>
__device__ __forceinline__ Grid grid_of(const float* x, word row, unsigned size, float last,
                                        unsigned integer, word* status, unsigned first) {
    float low = x[0], high = x[0];
    for (unsigned i = WIDTH * threadIdx.x; i < size; i += WIDTH * blockDim.x) {
        Pack<WIDTH> a = pack<WIDTH>(x + i);
        for (unsigned k = 0; k < WIDTH; ++k) {
            if (!isfinite(a.at[k])) complain(status, first + X, row * size + i + k, a.at[k]);
            low = fminf(low, a.at[k]);
            high = fmaxf(high, a.at[k]);
        }
    }
    block_extremes(low, high);
    float scale = high > low ? fmaxf((high - low) / last, SCALE_FLOOR)
                             : low == 0.0f ? 1.0f : fmaxf(fabsf(low), SCALE_FLOOR);
    if (threadIdx.x == 0 && !isfinite(scale)) complain(status, first + SCALE, row, scale);
    // 0 - low and not -low, and 0 more after rounding: there is no zero point -0.
    float zero_point = (0.0f - low) / scale;
    if (integer) zero_point = rintf(zero_point);
    return {scale, zero_point + 0.0f, last};
}

template <unsigned WIDTH>
__device__ __forceinline__ void quantize_row(const float* x, float* output, unsigned char* codes,
                                             unsigned wants_codes, const Grid& grid, word row,
                                             unsigned size, word* status, unsigned first) {
    for (unsigned i = WIDTH * threadIdx.x; i < size; i += WIDTH * blockDim.x) {
        Pack<WIDTH> a = pack<WIDTH>(x + i), y;
        for (unsigned k = 0; k < WIDTH; ++k) {
            float level = fminf(fmaxf(grid.place(a.at[k]), 0.0f), grid.last);
            y.at[k] = grid.scale * (level - grid.zero_point);
            if (!isfinite(y.at[k])) complain(status, first + OUTPUT, row * size + i + k, y.at[k]);
            if (wants_codes) codes[i + k] = (unsigned char)level;
        }
        store<WIDTH>(output + i, y);
    }
}

extern "C" __global__ void dynamic_quantize(const float* x,        // [rows, size]
                                            float* output,         // [rows, size]
                                            unsigned char* codes,  // [rows, size]
                                            float* scale,          // [rows]
                                            float* zero_point,     // [rows]
                                            unsigned wants_codes,  // else those three are nothing
                                            unsigned size, float last,
                                            unsigned integer,  // 1: zero points are rounded
                                            word* status, unsigned first) {
    const word row = blockIdx.x, at = row * size;
    const bool by_four = size % 4 == 0;
    Grid grid = by_four ? grid_of<4>(x + at, row, size, last, integer, status, first)
                        : grid_of<1>(x + at, row, size, last, integer, status, first);
    if (wants_codes && threadIdx.x == 0) {
        scale[row] = grid.scale;
        zero_point[row] = grid.zero_point;
    }
    unsigned char* to = wants_codes ? codes + at : nullptr;
    if (by_four) {
        quantize_row<4>(x + at, output + at, to, wants_codes, grid, row, size, status, first);
    } else {
        quantize_row<1>(x + at, output + at, to, wants_codes, grid, row, size, status, first);
    }
}

extern "C" __global__ void dynamic_quantize_backward(const float* x,  // [rows, size]
                                                     float* d,        // [rows, size], in place
                                                     unsigned size, float last,
                                                     unsigned integer,  // as above
                                                     word* status, unsigned first) {
    const word row = blockIdx.x, at = row * size;
    Grid grid = size % 4 == 0 ? grid_of<4>(x + at, row, size, last, integer, status, first)
                              : grid_of<1>(x + at, row, size, last, integer, status, first);
    for (unsigned i = threadIdx.x; i < size; i += blockDim.x) {
        float place = grid.place(x[at + i]);
        if (place < 0.0f || place > grid.last) d[at + i] = 0.0f;
    }
}

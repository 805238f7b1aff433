// The products of weight_gradient: d_weight = d_y^T @ x on a tile of 128 rows by 32 * C columns.
//
// 8 warps, 2 down and 4 across. The rows go in four slabs of 32, 16 of each for either row of
// warps; a warp computes [16, 8 * C] of each slab with mma.m16n8k16 on bf16 and f32 sums, tokens
// ascending. 32 tokens of both operands lie in shared memory while the next 32 are copied there.
// Both operands lie by tokens, so ldmatrix turns every matrix of 8 by 8.
#pragma once
#include "mask.cuh"

constexpr unsigned THREADS = WARPS * 32;
constexpr unsigned TOKENS = 32;               // of a step
constexpr unsigned SLABS = 4;                 // of a tile; one has a quantizer tile's rows
constexpr unsigned TALL = SLABS * TILE_ROWS;  // rows of a tile

// What one step multiplies. 8 values more put the 8 rows that ldmatrix reads into different banks.
template <unsigned C>
struct __align__(16) Stage {
    bf16 d_y[TOKENS][TALL + 8];
    bf16 x[TOKENS][32 * C + 8];
};

// One slab of d_weight. 4 values more spread a column over the banks.
template <unsigned C>
struct __align__(16) Slab {
    float at[TILE_ROWS][32 * C + 4];
};

template <unsigned C>
union Space {
    Stage<C> stages[2];
    Slab<C> slab;
};

// The lane's part of a tile: of slab s, rows place + 0 and 8, columns place + 8 j + 0 and 1.
template <unsigned C>
using Products = float[SLABS][C][4];

struct Place {
    unsigned lane, down, across;
    __device__ __forceinline__ Place()
        : lane(threadIdx.x % 32), down(threadIdx.x / 32 / 4), across(threadIdx.x / 32 % 4) {}
};

// WIDTH columns of a step's tokens.
template <unsigned WIDTH, unsigned PITCH>
__device__ __forceinline__ void start_copy(bf16 (&to)[TOKENS][PITCH], const bf16* from,
                                           unsigned pitch) {
    for (unsigned piece = threadIdx.x; piece < TOKENS * WIDTH / 8; piece += THREADS) {
        unsigned token = piece / (WIDTH / 8), column = piece % (WIDTH / 8) * 8;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
                     :
                     : "r"(shared_address(&to[token][column])),
                       "l"(from + (word)token * pitch + column)
                     : "memory");
    }
}

template <unsigned C>
__device__ __forceinline__ void add_step(Products<C>& sums, const Stage<C>& stage,
                                         const Place& place) {
    unsigned b[C][4];  // the 32 tokens, 8 a matrix
    for (unsigned j = 0; j < C; ++j) {
        load_turned(b[j], &stage.x[place.lane][place.across * 8 * C + 8 * j]);
    }
    for (unsigned half = 0; half < 2; ++half) {
        // Matrices: tokens 0 of rows 0, of rows 8, then tokens 8 of the same.
        unsigned token = 16 * half + place.lane / 16 * 8 + place.lane % 8;
        unsigned row = 16 * place.down + place.lane / 8 % 2 * 8;
        for (unsigned s = 0; s < SLABS; ++s) {
            unsigned a[4];
            load_turned(a, &stage.d_y[token][TILE_ROWS * s + row]);
            for (unsigned j = 0; j < C; ++j) {
                add_product(sums[s][j], a, b[j][2 * half], b[j][2 * half + 1]);
            }
        }
    }
}

// Both operands point at their tile's first column; their pitches are whole tiles.
template <unsigned C>
__device__ __forceinline__ void add_tokens(Products<C>& sums, Space<C>& space, const Place& place,
                                           const bf16* d_y, unsigned d_y_pitch, const bf16* x,
                                           unsigned x_pitch, unsigned steps) {
    auto start = [&](unsigned step) {
        Stage<C>& stage = space.stages[step % 2];
        start_copy<TALL>(stage.d_y, d_y + (word)step * TOKENS * d_y_pitch, d_y_pitch);
        start_copy<32 * C>(stage.x, x + (word)step * TOKENS * x_pitch, x_pitch);
    };
    start(0);
    asm volatile("cp.async.commit_group;" ::: "memory");
    for (unsigned step = 0; step < steps; ++step) {
        if (step + 1 < steps) start(step + 1);
        asm volatile("cp.async.commit_group;" ::: "memory");
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();  // this step's copies are there, those of every thread
        add_step(sums, space.stages[step % 2], place);
        __syncthreads();  // the stage has been read and may be copied over
    }
}

// Puts one slab where all threads can read it.
template <unsigned C>
__device__ __forceinline__ void share(Slab<C>& slab, const Products<C>& sums, const Place& place,
                                      unsigned which) {
    unsigned row = 16 * place.down + place.lane / 4, column = place.lane % 4 * 2;
#pragma unroll  // a number of a register is known when compiling
    for (unsigned s = 0; s < SLABS; ++s) {
        if (s != which) continue;
        for (unsigned j = 0; j < C; ++j) {
            for (unsigned k = 0; k < 4; ++k) {
                unsigned to = place.across * 8 * C + 8 * j + column + k % 2;
                slab.at[row + k / 2 * 8][to] = sums[s][j][k];
            }
        }
    }
}

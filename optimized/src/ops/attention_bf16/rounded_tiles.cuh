// Products of tiles for attention on bf16: 4 warps, each 16 of a block's 64 own rows or keys, with
// mma.m16n8k16 and f32 sums. The lanes that hold a product hold it as the left operand of the next
// one needs it, so that scores never leave the registers.
#pragma once
#include "bf16.cuh"
#include "tiles.cuh"

constexpr unsigned OWN = 64;  // rows or keys of a block, 16 of each warp

// 8 values more put the 8 rows that ldmatrix reads into different banks.
template <unsigned COUNT, unsigned D>
struct __align__(16) Tile {
    bf16 at[COUNT][D + 8];
};

// The lane's part of a product [16, 8 N]: rows lane / 4 + 8 (k / 2), columns 8 n + column(k).
template <unsigned N>
using Part = float[N][4];

__device__ __forceinline__ unsigned lane() { return threadIdx.x % 32; }
__device__ __forceinline__ unsigned first_of_warp() { return threadIdx.x / 32 * 16; }
__device__ __forceinline__ unsigned column(unsigned k) { return lane() % 4 * 2 + k % 2; }

// The 4 lanes of a row are neighbours.
__device__ __forceinline__ float row_max(float value) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
    return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
}

__device__ __forceinline__ float row_sum(float value) {
    value += __shfl_xor_sync(0xffffffffu, value, 2);
    return value + __shfl_xor_sync(0xffffffffu, value, 1);
}

// COUNT rows of a tensor from `row` on, zeros beyond its last.
template <Side SIDE, unsigned COUNT, unsigned D>
__device__ __forceinline__ void load_rounded(Tile<COUNT, D>& tile, const float* x,
                                             const Place& place, unsigned row) {
#pragma unroll 4
    for (unsigned i = threadIdx.x; i < COUNT * D / 4; i += THREADS) {
        const unsigned r = i / (D / 4), c = i % (D / 4) * 4;
        Pack<4> values = {};
        if (row + r < place.count<SIDE>()) {
            values = pack<4>(x + place.vector<SIDE>(row + r) + c);
        }
        bf16 narrow[4];
        for (unsigned k = 0; k < 4; k++) narrow[k] = rounded<bf16>(values.at[k]);
        store(&tile.at[r][c], narrow);
    }
}

// own's 16 rows of this warp @ other^T
template <unsigned COUNT, unsigned D>
__device__ __forceinline__ void dots(Part<COUNT / 8>& dot, const Tile<OWN, D>& own,
                                     const Tile<COUNT, D>& other) {
    for (unsigned n = 0; n < COUNT / 8; n++) {
        for (unsigned k = 0; k < 4; k++) dot[n][k] = 0.0f;
    }
    for (unsigned c = 0; c < D; c += 16) {
        unsigned a[4];  // rows 0 and 8 of columns c, then of columns c + 8
        load_straight(a, &own.at[first_of_warp() + lane() % 16][c + lane() / 16 * 8]);
        for (unsigned n = 0; n < COUNT / 8; n += 2) {
            unsigned b[4];  // columns c and c + 8 of 8 rows of `other`, then of the next 8
            const unsigned row = 8 * n + lane() / 16 * 8 + lane() % 8;
            load_straight(b, &other.at[row][c + lane() / 8 % 2 * 8]);
            add_product(dot[n], a, b[0], b[1]);
            add_product(dot[n + 1], a, b[2], b[3]);
        }
    }
}

// sum += weights @ x, the weights rounded
template <unsigned COUNT, unsigned D>
__device__ __forceinline__ void add_weighted(Part<D / 8>& sum, const Part<COUNT / 8>& weights,
                                             const Tile<COUNT, D>& x) {
    for (unsigned s = 0; s < COUNT / 16; s++) {
        unsigned a[4];
        for (unsigned k = 0; k < 4; k++) {
            const float(&of)[4] = weights[2 * s + k / 2];
            a[k] = rounded_pair(of[k % 2 * 2], of[k % 2 * 2 + 1]);
        }
        for (unsigned d = 0; d < D / 8; d += 2) {
            unsigned b[4];  // rows 0 and 8 of 8 columns, then of the next 8
            load_turned(b, &x.at[16 * s + lane() % 16][8 * d + lane() / 16 * 8]);
            add_product(sum[d], a, b[0], b[1]);
            add_product(sum[d + 1], a, b[2], b[3]);
        }
    }
}

// Writes this warp's 16 rows, divided, where the tensor has them.
template <Side SIDE, unsigned N>
__device__ __forceinline__ void write(float* x, const Place& place, unsigned row,
                                      const Part<N>& sum, const float (&divisor)[2]) {
    for (unsigned i = 0; i < 2; i++) {
        const unsigned r = row + 8 * i;
        if (r >= place.count<SIDE>()) continue;
        float* to = x + place.vector<SIDE>(r) + column(0);
        for (unsigned n = 0; n < N; n++) {
            store<2>(to + 8 * n, {sum[n][2 * i] / divisor[i], sum[n][2 * i + 1] / divisor[i]});
        }
    }
}

// What quantizers with a low-rank update share: the update on a tile of the weight, and the
// quantizer argument of fake_quantize and its backward. Eqs. (Q2), (M1).
//
// A block of 8 warps takes a tile of 32 rows by 32 * C columns: a warp takes 4 of the rows, a lane
// C neighbouring columns. C is 4 where a group is a multiple of 4 long, so that a lane's columns
// share their group and are read at once, and 1 elsewhere. DEPTH ranks at a time, the tile's parts
// of lora_a and lora_b go through shared memory; a lane reads C + 4 values there for 4 * C products.
#pragma once
#include "bf16.cuh"
#include "groups.cuh"

constexpr unsigned WARPS = 8;   // of a block
constexpr unsigned ROWS = 4;    // of a warp
constexpr unsigned TILE_ROWS = WARPS * ROWS;
constexpr unsigned DEPTH = 16;  // ranks in shared memory together

// Places in the list of tensors that status.rs keeps for every operation with a quantizer.
enum Complaint { SCALE, OFFSET, WEIGHT, LORA_A, LORA_B, ARGUMENT, OUTPUT };

// A low-rank update lora_scaling * (lora_b @ lora_a), and the sizes of the weight that it is for.
struct LowRank {
    const float* lora_a;  // [rank, in]
    const float* lora_b;  // [out, rank]
    unsigned out, width, groups, rank;
    float lora_scaling;
};

// W is the type that the weight is stored in.
template <typename W>
struct Quantizer : LowRank {
    const W* weight;      // [out, in]
    const float* scale;   // [out, groups]
    const float* offset;  // [out, groups]
    float qmin, qmax;

    // round_half_even(clamp(v, qmin, qmax)), still a float. Adding zero makes a negative zero
    // positive: a code is an integer and has one zero.
    __device__ __forceinline__ float code(float v) const {
        return rintf(fminf(fmaxf(v, qmin), qmax)) + 0.0f;
    }
};

// One lane's part of a tile. Rows and columns beyond the weight stand in for its last ones, so that
// loads need no condition; `has` tells them apart.
template <unsigned C>
struct Tile {
    unsigned index;         // among the tiles of its rows
    unsigned first_row;     // of the block
    unsigned first_column;  // of the block
    unsigned row;           // first of the warp
    unsigned column;        // first of the lane
    bool inside;            // whether the lane's columns exist
    unsigned group;         // of the lane's columns

    // Tiles across a row.
    static __device__ __forceinline__ unsigned across(const LowRank& q) {
        return (q.width + 32 * C - 1) / (32 * C);
    }

    // The block's own, where each block has one.
    __device__ __forceinline__ explicit Tile(const LowRank& q)
        : Tile(q, blockIdx.x % across(q), blockIdx.x / across(q) * TILE_ROWS) {}

    __device__ __forceinline__ Tile(const LowRank& q, unsigned index, unsigned first_row)
        : index(index), first_row(first_row) {
        first_column = index * 32 * C;
        row = first_row + threadIdx.x / 32 * ROWS;
        column = first_column + threadIdx.x % 32 * C;
        inside = column < q.width;
        column = inside ? column : q.width - C;
        group = column / (q.width / q.groups);
    }

    __device__ __forceinline__ bool has(const LowRank& q, unsigned i) const {
        return inside && row + i < q.out;
    }
    __device__ __forceinline__ unsigned row_of(const LowRank& q, unsigned i) const {
        return min(row + i, q.out - 1);
    }
    __device__ __forceinline__ word at(const LowRank& q, unsigned i) const {
        return (word)row_of(q, i) * q.width + column;
    }
    __device__ __forceinline__ word group_at(const LowRank& q, unsigned i) const {
        return (word)row_of(q, i) * q.groups + group;
    }
};

// The tile's parts of some ranks of lora_a and lora_b, in shared memory.
template <unsigned C>
struct __align__(16) Ranks {
    float a[DEPTH][32 * C];
    float b[DEPTH][TILE_ROWS + 4];  // 4 spread its columns over the banks

    // Fetches up to DEPTH ranks from `start` on and returns their number; zeros beyond the weight.
    __device__ __forceinline__ unsigned fetch(const LowRank& q, const Tile<C>& tile,
                                              unsigned start) {
        unsigned depth = min(DEPTH, q.rank - start);
        __syncthreads();  // every warp is done with the ranks before
        for (unsigned r = threadIdx.x / 32; r < depth; r += WARPS) {
            float part[C] = {};
            if (tile.inside) load(q.lora_a + (word)(start + r) * q.width + tile.column, part);
            store(&a[r][threadIdx.x % 32 * C], part);
        }
        for (unsigned e = threadIdx.x; e < TILE_ROWS * DEPTH; e += WARPS * 32) {
            unsigned r = e % DEPTH, row = tile.first_row + e / DEPTH;
            if (r < depth) {
                word from = (word)row * q.rank + start + r;
                b[r][e / DEPTH] = row < q.out ? q.lora_b[from] : 0.0f;
            }
        }
        __syncthreads();  // the ranks are there
        return depth;
    }
};

// The block's only ones.
template <unsigned C>
__device__ __forceinline__ Ranks<C>& shared_ranks() {
    __shared__ Ranks<C> ranks;
    return ranks;
}

// sum = lora_b @ lora_a on the tile, from zero in ascending order of the rank.
template <unsigned C>
__device__ __forceinline__ void low_rank_sums(const LowRank& q, const Tile<C>& tile,
                                              float (&sum)[ROWS][C]) {
    Ranks<C>& ranks = shared_ranks<C>();
    for (unsigned i = 0; i < ROWS; ++i)
        for (unsigned c = 0; c < C; ++c) sum[i][c] = 0.0f;
    for (unsigned start = 0; start < q.rank; start += DEPTH) {
        unsigned depth = ranks.fetch(q, tile, start);
#pragma unroll 2
        for (unsigned r = 0; r < depth; ++r) {
            float a_r[C], b_r[ROWS];
            load(&ranks.a[r][threadIdx.x % 32 * C], a_r);
            load(&ranks.b[r][threadIdx.x / 32 * ROWS], b_r);
            for (unsigned i = 0; i < ROWS; ++i)
                for (unsigned c = 0; c < C; ++c) sum[i][c] += b_r[i] * a_r[c];
        }
    }
}

// Where a number that is not finite may come from, beside the update; nullptr for nowhere.
template <typename W, typename T>
struct Suspects {
    const float* scale;   // [out, groups]
    const float* offset;  // [out, groups]
    const W* weight;      // [out, in]
    const T* output;      // [out, in]
};

// Tells the host of all that is not finite among what the lane's part of a tile depends on.
template <unsigned C, typename W, typename T>
__device__ __forceinline__ void report_tile(const LowRank& q, const Tile<C>& tile,
                                            const Suspects<W, T>& suspects, word* status,
                                            unsigned first) {
    if (!tile.inside) return;
    auto look = [&](float value, word index, unsigned tensor) {
        if (!isfinite(value)) complain(status, first + tensor, index, value);
    };
#pragma unroll 1
    for (unsigned e = 0; e < ROWS * C; ++e) {
        word row = tile.row + e / C, column = tile.column + e % C;
        if (row >= q.out) return;
        word group = row * q.groups + tile.group, at = row * q.width + column;
        if (suspects.scale) look(suspects.scale[group], group, SCALE);
        if (suspects.offset) look(suspects.offset[group], group, OFFSET);
        if (suspects.weight) look(widened(suspects.weight[at]), at, WEIGHT);
#pragma unroll 1
        for (unsigned r = 0; r < q.rank; ++r) {
            word in_a = (word)r * q.width + column, in_b = row * q.rank + r;
            look(q.lora_a[in_a], in_a, LORA_A);
            look(q.lora_b[in_b], in_b, LORA_B);
        }
        if (suspects.output) look(widened(suspects.output[at]), at, OUTPUT);
    }
}

// The lane's arguments v = (weight + lora_scaling * (lora_b @ lora_a) - offset) / floored(scale).
template <unsigned C>
struct Arguments {
    float v[ROWS][C];
    float scale[ROWS];  // floored
    float offset[ROWS];
    bool finite;        // inputs and arguments; a kernel adds its results
    bool undefined;     // an argument is NaN

    template <typename W>
    __device__ __forceinline__ Arguments(const Quantizer<W>& q, const Tile<C>& tile)
        : finite(true), undefined(false) {
        low_rank_sums<C>(q, tile, v);
        // All loads before the arithmetic, so that they wait together.
        float w[ROWS][C];
        for (unsigned i = 0; i < ROWS; ++i) {
            load_widened(q.weight + tile.at(q, i), w[i]);
            scale[i] = q.scale[tile.group_at(q, i)];
            offset[i] = q.offset[tile.group_at(q, i)];
        }
        for (unsigned i = 0; i < ROWS; ++i) {
            // Looked at itself: an infinite scale hides in a quotient of zero.
            finite &= isfinite(scale[i]);
            scale[i] = floored(scale[i]);
            for (unsigned c = 0; c < C; ++c) {
                float combined = q.rank > 0 ? w[i][c] + q.lora_scaling * v[i][c] : w[i][c];
                v[i][c] = (combined - offset[i]) / scale[i];
                finite &= isfinite(v[i][c]);
                undefined |= isnan(v[i][c]) && tile.has(q, i);
            }
        }
    }

    // Tells the host what is not finite, in the order of the cpu backend: the inputs; a NaN from
    // finite inputs; the output, where there is one. An argument that overflows saturates.
    template <typename W, typename T>
    __device__ __forceinline__ void report(const Quantizer<W>& q, const Tile<C>& tile,
                                           const T* output, word* status, unsigned first) const {
        if (undefined) complain(status, first + ARGUMENT, 0, nanf(""));
        Suspects<W, T> suspects = {q.scale, q.offset, q.weight, output};
        if (!finite) report_tile(q, tile, suspects, status, first);
    }
};

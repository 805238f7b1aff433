// Products of tiles for attention: a block computes [8 I, 16 J] with 128 threads, 16 across the
// columns and 8 down the rows; thread (across, down) owns the rows down + 8 i and the columns
// across + 16 j. Operands pass through shared memory, sums stay in registers, in ascending order.
#pragma once
#include "kernels.cuh"

const unsigned THREADS = 128;       // 16 across the columns of a product, 8 down its rows
const unsigned CHUNK = 64;          // of head_dim: what a dot product holds in shared memory
const unsigned STRIDE = CHUNK + 4;  // 16 B units of 8 neighbouring rows lie in different banks

enum Side { QUERY, KEY };

// The keys that a row sees.
struct Seen {
    unsigned first, end;
    __device__ bool has(unsigned key) const { return first <= key && key < end; }
};

// The block's tile, and where the rows and keys of its key head lie in the tensors.
struct Place {
    unsigned queries, keys, head_dim, group;
    unsigned pair, tile;  // pair = batch * kv_heads + kv_head: those of a tile are together
    const int* documents;  // [queries], or null
    word first_query, query_step, first_key, key_step;  // floats; a step is one token

    __device__ Place(unsigned batch, unsigned queries, unsigned keys, unsigned heads,
                     unsigned kv_heads, unsigned head_dim, const int* all_documents,
                     unsigned packed)
        : queries(queries), keys(keys), head_dim(head_dim), group(heads / kv_heads),
          pair(blockIdx.x % (batch * kv_heads)), tile(blockIdx.x / (batch * kv_heads)),
          query_step((word)heads * head_dim), key_step((word)kv_heads * head_dim) {
        const unsigned sequence = pair / kv_heads, kv_head = pair % kv_heads;
        documents = packed ? all_documents + (word)sequence * queries : nullptr;
        first_query = (word)sequence * queries * query_step + (word)kv_head * group * head_dim;
        first_key = (word)sequence * keys * key_step + (word)kv_head * head_dim;
    }

    __device__ unsigned first(unsigned row) const {  // rows beyond the last are like it
        return documents ? documents[min(row / group, queries - 1)] : 0;
    }
    __device__ unsigned visible(unsigned row) const { return keys - queries + row / group + 1; }
    __device__ Seen sees(unsigned row) const { return {first(row), visible(row)}; }
    __device__ word saved(unsigned row) const {  // in log_sum_exp
        return ((word)pair * group + row % group) * queries + row / group;
    }
    template <Side SIDE>
    __device__ unsigned count() const {
        return SIDE == KEY ? keys : queries * group;
    }
    template <Side SIDE>
    __device__ word vector(unsigned row) const {  // of head_dim
        if (SIDE == KEY) return first_key + row * key_step;
        return first_query + row / group * query_step + row % group * head_dim;
    }
};

// ROWS x WIDTH of a tensor into shared memory, zeros beyond its rows and columns.
template <Side SIDE, unsigned ROWS, unsigned WIDTH, unsigned PITCH>
__device__ __forceinline__ void load(float* tile, const float* x, const Place& place, unsigned row,
                                     unsigned column) {
    const unsigned rows = place.count<SIDE>();
    if (place.head_dim % 4 == 0) {
#pragma unroll 4
        for (unsigned i = threadIdx.x; i < ROWS * WIDTH / 4; i += THREADS) {
            const unsigned r = i / (WIDTH / 4), c = i % (WIDTH / 4) * 4;
            Pack<4> values = {};
            if (row + r < rows && column + c < place.head_dim) {
                values = pack<4>(x + place.vector<SIDE>(row + r) + column + c);
            }
            store<4>(tile + r * PITCH + c, values);
        }
    } else {
#pragma unroll 1
        for (unsigned i = threadIdx.x; i < ROWS * WIDTH; i += THREADS) {
            const unsigned r = i / WIDTH, c = i % WIDTH;
            const bool inside = row + r < rows && column + c < place.head_dim;
            tile[r * PITCH + c] = inside ? x[place.vector<SIDE>(row + r) + column + c] : 0.0f;
        }
    }
}

// dot[i][j] = a[a_row + down + 8 i, :] . b[b_row + across + 16 j, :], in ascending order.
template <Side A, unsigned I, unsigned J>
__device__ __forceinline__ void dots(float (&dot)[I][J], const Place& place, float* a_tile,
                                     const float* a, unsigned a_row, float* b_tile, const float* b,
                                     unsigned b_row) {
    const unsigned across = threadIdx.x % 16, down = threadIdx.x / 16;
    for (unsigned i = 0; i < I; i++) {
        for (unsigned j = 0; j < J; j++) dot[i][j] = 0.0f;
    }
    for (unsigned start = 0; start < place.head_dim; start += CHUNK) {
        __syncthreads();  // whoever used the tiles before is done
        load<A, 8 * I, CHUNK, STRIDE>(a_tile, a, place, a_row, start);
        load<A == KEY ? QUERY : KEY, 16 * J, CHUNK, STRIDE>(b_tile, b, place, b_row, start);
        __syncthreads();  // the tiles are filled
        const unsigned end = min(CHUNK, place.head_dim - start);
#pragma unroll 1
        for (unsigned column = 0; column < end; column += 4) {
            Pack<4> right[J];
            for (unsigned j = 0; j < J; j++) {
                right[j] = pack<4>(b_tile + (across + 16 * j) * STRIDE + column);
            }
            for (unsigned i = 0; i < I; i++) {
                Pack<4> left = pack<4>(a_tile + (down + 8 * i) * STRIDE + column);
                for (unsigned k = 0; k < 4; k++) {
                    for (unsigned j = 0; j < J; j++) {
                        dot[i][j] = __fmaf_rn(left.at[k], right[j].at[k], dot[i][j]);
                    }
                }
            }
        }
    }
}

// Writes this thread's part of a product, [8 I][16 J + 4], where all threads can read it.
template <unsigned I, unsigned J>
__device__ __forceinline__ void share(float* weights, const float (&own)[I][J]) {
    for (unsigned i = 0; i < I; i++) {
        for (unsigned j = 0; j < J; j++) {
            const unsigned row = threadIdx.x / 16 + 8 * i;
            weights[row * (16 * J + 4) + threadIdx.x % 16 + 16 * j] = own[i][j];
        }
    }
}

// sum[i][c] += weights[down + 8 i, :] @ x[row.., 4 across + 64 c + 0..4], the COUNT rows of x in
// ascending order. The weights may be written just before: the first barrier shows them.
template <Side SIDE, unsigned COUNT, unsigned I, unsigned C>
__device__ __forceinline__ void add_weighted(Pack<4> (&sum)[I][C], const Place& place,
                                             const float* weights, float* tile, const float* x,
                                             unsigned row) {
    constexpr unsigned DIM = 64 * C, HELD = COUNT < 64 / C ? COUNT : 64 / C;
    const unsigned across = threadIdx.x % 16, down = threadIdx.x / 16;
    for (unsigned start = 0; start < COUNT; start += HELD) {
        __syncthreads();  // whoever used the tile before is done
        load<SIDE, HELD, DIM, DIM>(tile, x, place, row + start, 0);
        __syncthreads();  // the tile is filled
#pragma unroll 1
        for (unsigned r = 0; r < HELD; r += 4) {
            Pack<4> weight[I];
            for (unsigned i = 0; i < I; i++) {
                weight[i] = pack<4>(weights + (down + 8 * i) * (COUNT + 4) + start + r);
            }
            for (unsigned k = 0; k < 4; k++) {
                for (unsigned c = 0; c < C; c++) {
                    Pack<4> value = pack<4>(tile + (r + k) * DIM + 4 * across + 64 * c);
                    for (unsigned i = 0; i < I; i++) {
                        for (unsigned n = 0; n < 4; n++) {
                            float& to = sum[i][c].at[n];
                            to = __fmaf_rn(weight[i].at[k], value.at[n], to);
                        }
                    }
                }
            }
        }
    }
}

// Writes those of this thread's sums that the tensor has room for.
template <Side SIDE, unsigned I, unsigned C>
__device__ __forceinline__ void write(float* x, const Place& place, unsigned row,
                                      const Pack<4> (&sum)[I][C]) {
    for (unsigned i = 0; i < I; i++) {
        const unsigned r = row + threadIdx.x / 16 + 8 * i;
        if (r >= place.count<SIDE>()) continue;
        float* to = x + place.vector<SIDE>(r);
        for (unsigned c = 0; c < C; c++) {
            const unsigned column = threadIdx.x % 16 * 4 + 64 * c;
            if (place.head_dim % 4 == 0) {
                if (column < place.head_dim) store<4>(to + column, sum[i][c]);
            } else {
                for (unsigned n = 0; n < 4 && column + n < place.head_dim; n++) {
                    to[column + n] = sum[i][c].at[n];
                }
            }
        }
    }
}

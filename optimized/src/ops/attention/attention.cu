// attention, attention_backward: Eqs. (N4), (N4b). Twin: ops/attention/cpu.rs. Class: bounded.
// q, output, d_q [batch, queries, heads, head_dim], k, v, d_k, d_v [batch, keys, kv_heads,
// head_dim], log_sum_exp, delta [batch, heads, queries], all f32; documents [batch, queries] int.
// The heads that share a key head are rows of one matrix, row = query * group + member: a tile of
// keys is read once for all of them, and d_k and d_v are summed over them as over queries.
// Scores live in registers and in one tile of shared memory. The forward walks the keys with a
// running maximum; the backward finds the probabilities again from log_sum_exp, per tile of rows
// for d_q and per tile of keys for d_k and d_v, so that nothing is added atomically. Tiles of keys
// before the first row's document and tiles of rows whose documents begin later are not read.
// FLOPs per visible pair: 4 head_dim forward, 14 backward (10 if d_q shared its products); their
// time at the f32 rate is the floor, the tensors' bytes weigh less. Shared memory: 35 KiB.
// Host guarantees: blocks of THREADS, queries <= keys, 0 < head_dim <= DIM, kv_heads | heads;
// documents ascend in a sequence and none begins after its query.
#include "tiles.cuh"

// The 16 threads of a row are one half of a warp.
__device__ __forceinline__ float row_max(float value) {
    for (unsigned distance = 8; distance > 0; distance /= 2) {
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance));
    }
    return value;
}

__device__ __forceinline__ float row_sum(float value) {
    for (unsigned distance = 8; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, distance);
    }
    return value;
}

// 8 I rows, head_dim <= 64 C.
template <unsigned I, unsigned C>
__device__ __forceinline__ void forward(const Place& place, const float* q, const float* k,
                                        const float* v, float* output, float* log_sum_exp,
                                        float factor) {
    __shared__ __align__(16) float a_tile[8 * I * STRIDE], b_tile[64 * STRIDE];
    const unsigned across = threadIdx.x % 16, down = threadIdx.x / 16;
    const unsigned rows = place.count<QUERY>(), tiles = (rows + 8 * I - 1) / (8 * I);
    // The last rows see the most keys: they begin first, so that the short ones fill the end.
    const unsigned row = (tiles - 1 - place.tile) * 8 * I;
    const unsigned seen = place.visible(min(row + 8 * I, rows) - 1);
    __shared__ Seen of_row[8 * I];  // shown by the barriers of the dot products
    if (threadIdx.x < 8 * I) of_row[threadIdx.x] = place.sees(row + threadIdx.x);
    Pack<4> result[I][C] = {};
    float max[I], sum[I];
    for (unsigned i = 0; i < I; i++) max[i] = __int_as_float(0xff800000), sum[i] = 0.0f;
    for (unsigned key = place.first(row); key < seen; key += 64) {
        float p[I][4];
        dots<QUERY>(p, place, a_tile, q, row, b_tile, k, key);
        for (unsigned i = 0; i < I; i++) {
            // Until a row's document begins, the maximum is minus infinity and the rest zero.
            const Seen keys = of_row[down + 8 * i];
            float larger = max[i];
            for (unsigned j = 0; j < 4; j++) {
                p[i][j] *= factor;
                if (keys.has(key + across + 16 * j)) larger = fmaxf(larger, p[i][j]);
            }
            larger = row_max(larger);
            const float shrink = larger > max[i] ? expf(max[i] - larger) : 1.0f;
            max[i] = larger;
            sum[i] *= shrink;
            for (unsigned j = 0; j < 4; j++) {
                p[i][j] = keys.has(key + across + 16 * j) ? expf(p[i][j] - larger) : 0.0f;
                sum[i] += p[i][j];
            }
            for (unsigned c = 0; c < C; c++) {
                for (unsigned n = 0; n < 4; n++) result[i][c].at[n] *= shrink;
            }
        }
        __syncthreads();  // the dot products have read a_tile
        share(a_tile, p);
        add_weighted<KEY, 64>(result, place, a_tile, b_tile, v, key);
    }
    for (unsigned i = 0; i < I; i++) {
        sum[i] = row_sum(sum[i]);
        for (unsigned c = 0; c < C; c++) {
            for (unsigned n = 0; n < 4; n++) result[i][c].at[n] /= sum[i];
        }
        const unsigned r = row + down + 8 * i;
        if (across == 0 && r < rows) log_sum_exp[place.saved(r)] = max[i] + logf(sum[i]);
    }
    write<QUERY>(output, place, row, result);
}

// d_q of 64 rows, and delta for the other kernel.
template <unsigned C>
__device__ __forceinline__ void backward_rows(const Place& place, const float* q, const float* k,
                                              const float* v, const float* output,
                                              const float* log_sum_exp, const float* d_output,
                                              float* d_q, float* delta, float factor) {
    __shared__ __align__(16) float a_tile[64 * STRIDE], b_tile[32 * STRIDE], weights[64 * 36];
    const unsigned across = threadIdx.x % 16, down = threadIdx.x / 16;
    const unsigned rows = place.count<QUERY>(), tiles = (rows + 63) / 64;
    const unsigned row = (tiles - 1 - place.tile) * 64;
    const unsigned seen = place.visible(min(row + 64, rows) - 1);
    __shared__ Seen of_row[64];  // shown by the barriers of the dot products
    if (threadIdx.x < 64) of_row[threadIdx.x] = place.sees(row + threadIdx.x);
    Pack<4> result[8][C] = {};
    float own_delta[8], own_saved[8];
    // Lane i sums row i in the order of the dot products below: where a row sees one key, delta is
    // its product to the bit, and nothing flows back through the score.
    float sum = 0.0f;
    const unsigned lane_row = row + down + 8 * across;
    if (across < 8 && lane_row < rows) {
        const word first = place.vector<QUERY>(lane_row);
        for (unsigned c = 0; c < place.head_dim; c++) {
            sum = __fmaf_rn(d_output[first + c], output[first + c], sum);
        }
        delta[place.saved(lane_row)] = sum;
    }
    for (unsigned i = 0; i < 8; i++) {
        const unsigned r = row + down + 8 * i;
        own_delta[i] = __shfl_sync(0xffffffffu, sum, i, 16);
        own_saved[i] = r < rows ? log_sum_exp[place.saved(r)] : 0.0f;
    }
    for (unsigned key = place.first(row); key < seen; key += 32) {
        float p[8][2], d_score[8][2];
        dots<QUERY>(p, place, a_tile, q, row, b_tile, k, key);
        dots<QUERY>(d_score, place, a_tile, d_output, row, b_tile, v, key);
        for (unsigned i = 0; i < 8; i++) {
            const Seen keys = of_row[down + 8 * i];
            for (unsigned j = 0; j < 2; j++) {
                const bool sees = keys.has(key + across + 16 * j);
                p[i][j] = sees ? expf(p[i][j] * factor - own_saved[i]) : 0.0f;
                const float inner = p[i][j] * (d_score[i][j] - own_delta[i]) * factor;
                d_score[i][j] = sees ? inner : 0.0f;
            }
        }
        share(weights, d_score);  // its last readers passed the barriers of the dot products
        add_weighted<KEY, 32>(result, place, weights, a_tile, k, key);
    }
    write<QUERY>(d_q, place, row, result);
}

// d_k and d_v of 32 keys; products are transposed, keys down and rows across.
template <unsigned C>
__device__ __forceinline__ void backward_keys(const Place& place, const float* q, const float* k,
                                              const float* v, const float* log_sum_exp,
                                              const float* delta, const float* d_output,
                                              float* d_k, float* d_v, float factor) {
    __shared__ __align__(16) float a_tile[32 * STRIDE], b_tile[64 * STRIDE], weights[32 * 68];
    const unsigned across = threadIdx.x % 16, down = threadIdx.x / 16;
    const unsigned rows = place.count<QUERY>(), key = place.tile * 32;
    const unsigned before = place.keys - place.queries;  // keys that every query sees
    Pack<4> for_k[4][C] = {}, for_v[4][C] = {};
    for (unsigned row = key > before ? (key - before) * place.group : 0; row < rows; row += 64) {
        if (place.first(row) >= key + 32) break;  // the later rows' documents begin later still
        float p[4][4], d_score[4][4];
        dots<KEY>(p, place, a_tile, k, key, b_tile, q, row);
        dots<KEY>(d_score, place, a_tile, v, key, b_tile, d_output, row);
        for (unsigned j = 0; j < 4; j++) {
            const unsigned r = row + across + 16 * j;
            const Seen keys = place.sees(r);
            const float of_saved = r < rows ? log_sum_exp[place.saved(r)] : 0.0f;
            const float of_delta = r < rows ? delta[place.saved(r)] : 0.0f;
            for (unsigned i = 0; i < 4; i++) {
                const bool sees = r < rows && keys.has(key + down + 8 * i);
                p[i][j] = sees ? expf(p[i][j] * factor - of_saved) : 0.0f;
                const float inner = p[i][j] * (d_score[i][j] - of_delta) * factor;
                d_score[i][j] = sees ? inner : 0.0f;
            }
        }
        share(weights, p);  // its last readers passed the barriers of the dot products
        add_weighted<QUERY, 64>(for_v, place, weights, b_tile, d_output, row);
        __syncthreads();  // weights has been read
        share(weights, d_score);
        add_weighted<QUERY, 64>(for_k, place, weights, b_tile, q, row);
    }
    write<KEY>(d_k, place, key, for_k);
    write<KEY>(d_v, place, key, for_v);
}

#define SIZES                                                                                   \
    unsigned batch, unsigned queries, unsigned keys, unsigned heads, unsigned kv_heads,         \
        unsigned head_dim, float factor, /* 1 / sqrt(head_dim) */                               \
        const int *documents,   /* [batch, queries], the first key that each sees */            \
        unsigned packed         /* else they are nothing */
#define PLACE Place(batch, queries, keys, heads, kv_heads, head_dim, documents, packed)

// Blocks of a multiprocessor. Without a number, the compiler spills to fit one more.
#define BLOCKS(I, C) (I == 2 ? 5 : C == 4 ? 2 : C == 1 ? 4 : 3)
#define D_BLOCKS(C) (C == 4 ? 2 : 3)

#define FORWARD(NAME, I, C)                                                                     \
    extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS(I, C)) NAME(                   \
        const float* q,     /* [batch, queries, heads, head_dim] */                             \
        const float* k,     /* [batch, keys, kv_heads, head_dim] */                             \
        const float* v,     /* [batch, keys, kv_heads, head_dim] */                             \
        float* output,      /* like q */                                                        \
        float* log_sum_exp, /* [batch, heads, queries] */                                       \
        SIZES) {                                                                                \
        forward<I, C>(PLACE, q, k, v, output, log_sum_exp, factor);                             \
    }
#define BACKWARD(ROWS_NAME, KEYS_NAME, C)                                                       \
    extern "C" __global__ void __launch_bounds__(THREADS, D_BLOCKS(C)) ROWS_NAME(               \
        const float* q, const float* k, const float* v, /* as in the forward */                 \
        const float* output,      /* like q */                                                  \
        const float* log_sum_exp, /* [batch, heads, queries] */                                 \
        const float* d_output,    /* like q */                                                  \
        float* d_q,               /* like q */                                                  \
        float* delta,             /* [batch, heads, queries] */                                 \
        SIZES) {                                                                                \
        backward_rows<C>(PLACE, q, k, v, output, log_sum_exp, d_output, d_q, delta, factor);    \
    }                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS, D_BLOCKS(C)) KEYS_NAME(               \
        const float* q, const float* k, const float* v, /* as in the forward */                 \
        const float* log_sum_exp,                       /* [batch, heads, queries] */           \
        const float* delta,                             /* [batch, heads, queries] */           \
        const float* d_output,                          /* like q */                            \
        float* d_k,                                     /* like k */                            \
        float* d_v,                                     /* like k */                            \
        SIZES) {                                                                                \
        backward_keys<C>(PLACE, q, k, v, log_sum_exp, delta, d_output, d_k, d_v, factor);       \
    }

// Named by rows and head_dim of a tile; the few rows are those of a generated token.
FORWARD(attention_16x64, 2, 1)
FORWARD(attention_16x128, 2, 2)
FORWARD(attention_16x256, 2, 4)
FORWARD(attention_64x64, 8, 1)
FORWARD(attention_64x128, 8, 2)
FORWARD(attention_64x256, 8, 4)
BACKWARD(attention_d_rows_64, attention_d_keys_64, 1)
BACKWARD(attention_d_rows_128, attention_d_keys_128, 2)
BACKWARD(attention_d_rows_256, attention_d_keys_256, 4)

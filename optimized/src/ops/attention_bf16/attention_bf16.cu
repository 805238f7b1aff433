// attention, attention_backward on tensor cores: Eqs. (N4), (N4b) of operands rounded to bf16.
// Twin: ops/attention/attention.cu on the rounded operands. Class: bounded.
// q, output, d_q [batch, queries, heads, D], k, v, d_k, d_v [batch, keys, kv_heads, D],
// log_sum_exp, delta [batch, heads, queries], all f32; documents [batch, queries] int; D 64 or 128.
// Rows, tiles and their order are those of attention.cu. q, k, v and d_output are rounded on their
// way to shared memory, probabilities and d_score in registers; sums, the softmax and everything in
// memory stay f32. A warp multiplies 16 of a block's 64 own rows (or keys) with all of the other
// operand's STEP with mma.m16n8k16. Scores never leave the registers. Nothing is added atomically.
// FLOPs per visible pair: 4 D forward, 14 D backward (10 if d_q shared its products). Floor at 32
// heads of 128 and 2048 tokens: 43 us forward at 790 TFLOP/s; the left operand is read again from
// shared memory for every product, so these instructions will not reach it. Shared memory of a
// block, D = 128: 34816 B forward, 43520 B backward. Nothing is spilled.
// Host guarantees: as attention.cu; head_dim = D.
#include "rounded_tiles.cuh"

// 64 rows; STEP keys at a time.
template <unsigned STEP, unsigned D>
__device__ __forceinline__ void forward(const Place& place, const float* q, const float* k,
                                        const float* v, float* output, float* log_sum_exp,
                                        float factor) {
    __shared__ Tile<OWN, D> q_tile;
    __shared__ Tile<STEP, D> k_tile, v_tile;
    const unsigned rows = place.count<QUERY>(), tiles = (rows + OWN - 1) / OWN;
    // The last rows see the most keys: they begin first, so that the short ones fill the end.
    const unsigned row = (tiles - 1 - place.tile) * OWN;
    const unsigned own_row = row + first_of_warp() + lane() / 4;
    const unsigned seen = place.visible(min(row + OWN, rows) - 1);
    Part<D / 8> result = {};
    float max[2], sum[2] = {};
    for (unsigned i = 0; i < 2; i++) max[i] = __int_as_float(0xff800000);
    load_rounded<QUERY>(q_tile, q, place, row);
    for (unsigned key = place.first(row); key < seen; key += STEP) {
        __syncthreads();  // the tiles before have been read
        load_rounded<KEY>(k_tile, k, place, key);
        load_rounded<KEY>(v_tile, v, place, key);
        __syncthreads();  // the tiles are filled
        Part<STEP / 8> p;
        dots(p, q_tile, k_tile);
        for (unsigned i = 0; i < 2; i++) {
            // Until a row's document begins, the maximum is minus infinity and the rest zero.
            const Seen keys = place.sees(own_row + 8 * i);
            float larger = max[i];
            for (unsigned n = 0; n < STEP / 8; n++) {
                for (unsigned j = 2 * i; j < 2 * i + 2; j++) {
                    p[n][j] *= factor;
                    if (keys.has(key + 8 * n + column(j))) larger = fmaxf(larger, p[n][j]);
                }
            }
            larger = row_max(larger);
            const float shrink = larger > max[i] ? expf(max[i] - larger) : 1.0f;
            max[i] = larger;
            sum[i] *= shrink;
            for (unsigned n = 0; n < STEP / 8; n++) {
                for (unsigned j = 2 * i; j < 2 * i + 2; j++) {
                    p[n][j] = keys.has(key + 8 * n + column(j)) ? expf(p[n][j] - larger) : 0.0f;
                    sum[i] += p[n][j];
                }
            }
            for (unsigned d = 0; d < D / 8; d++) {
                for (unsigned j = 2 * i; j < 2 * i + 2; j++) result[d][j] *= shrink;
            }
        }
        add_weighted(result, p, v_tile);
    }
    for (unsigned i = 0; i < 2; i++) {
        sum[i] = row_sum(sum[i]);
        const unsigned r = own_row + 8 * i;
        if (lane() % 4 == 0 && r < rows) log_sum_exp[place.saved(r)] = max[i] + logf(sum[i]);
    }
    write<QUERY>(output, place, own_row, result, sum);
}

// d_q of 64 rows, and delta for the other kernel; STEP keys at a time.
template <unsigned STEP, unsigned D>
__device__ __forceinline__ void backward_rows(const Place& place, const float* q, const float* k,
                                              const float* v, const float* output,
                                              const float* log_sum_exp, const float* d_output,
                                              float* d_q, float* delta, float factor) {
    __shared__ Tile<OWN, D> q_tile, d_output_tile;
    __shared__ Tile<STEP, D> k_tile, v_tile;
    const unsigned rows = place.count<QUERY>(), tiles = (rows + OWN - 1) / OWN;
    const unsigned row = (tiles - 1 - place.tile) * OWN;
    const unsigned own_row = row + first_of_warp() + lane() / 4;
    const unsigned seen = place.visible(min(row + OWN, rows) - 1);
    Part<D / 8> result = {};
    float own_delta[2], own_saved[2];
    load_rounded<QUERY>(q_tile, q, place, row);
    load_rounded<QUERY>(d_output_tile, d_output, place, row);
    __syncthreads();  // the rounded d_output is there: delta is of what the products see
    for (unsigned i = 0; i < 2; i++) {
        const unsigned r = own_row + 8 * i;
        float sum = 0.0f;
        for (unsigned c = lane() % 4; r < rows && c < D; c += 4) {
            sum = __fmaf_rn(widened(d_output_tile.at[r - row][c]),
                            output[place.vector<QUERY>(r) + c], sum);
        }
        own_delta[i] = row_sum(sum);
        own_saved[i] = r < rows ? log_sum_exp[place.saved(r)] : 0.0f;
        if (lane() % 4 == 0 && r < rows) delta[place.saved(r)] = own_delta[i];
    }
    for (unsigned key = place.first(row); key < seen; key += STEP) {
        __syncthreads();  // the tiles before have been read
        load_rounded<KEY>(k_tile, k, place, key);
        load_rounded<KEY>(v_tile, v, place, key);
        __syncthreads();  // the tiles are filled
        Part<STEP / 8> p, d_score;
        dots(p, q_tile, k_tile);
        dots(d_score, d_output_tile, v_tile);
        for (unsigned j = 0; j < 4; j++) {
            const Seen keys = place.sees(own_row + j / 2 * 8);
            for (unsigned n = 0; n < STEP / 8; n++) {
                const bool sees = keys.has(key + 8 * n + column(j));
                p[n][j] = sees ? expf(p[n][j] * factor - own_saved[j / 2]) : 0.0f;
                const float inner = p[n][j] * (d_score[n][j] - own_delta[j / 2]) * factor;
                d_score[n][j] = sees ? inner : 0.0f;
            }
        }
        add_weighted(result, d_score, k_tile);
    }
    write<QUERY>(d_q, place, own_row, result, {1.0f, 1.0f});
}

// d_k and d_v of 64 keys; products are transposed, keys down and STEP rows across.
template <unsigned STEP, unsigned D>
__device__ __forceinline__ void backward_keys(const Place& place, const float* q, const float* k,
                                              const float* v, const float* log_sum_exp,
                                              const float* delta, const float* d_output,
                                              float* d_k, float* d_v, float factor) {
    __shared__ Tile<OWN, D> k_tile, v_tile;
    __shared__ Tile<STEP, D> q_tile, d_output_tile;
    const unsigned rows = place.count<QUERY>(), key = place.tile * OWN;
    const unsigned own_key = key + first_of_warp() + lane() / 4;
    const unsigned before = place.keys - place.queries;  // keys that every query sees
    Part<D / 8> for_k = {}, for_v = {};
    load_rounded<KEY>(k_tile, k, place, key);
    load_rounded<KEY>(v_tile, v, place, key);
    for (unsigned row = key > before ? (key - before) * place.group : 0; row < rows; row += STEP) {
        if (place.first(row) >= key + OWN) break;  // the later rows' documents begin later still
        __syncthreads();                           // the tiles before have been read
        load_rounded<QUERY>(q_tile, q, place, row);
        load_rounded<QUERY>(d_output_tile, d_output, place, row);
        __syncthreads();  // the tiles are filled
        Part<STEP / 8> p, d_score;
        dots(p, k_tile, q_tile);
        dots(d_score, v_tile, d_output_tile);
        for (unsigned n = 0; n < STEP / 8; n++) {
            for (unsigned j = 0; j < 4; j++) {
                const unsigned r = row + 8 * n + column(j);
                const bool sees = r < rows && place.sees(r).has(own_key + j / 2 * 8);
                const float of_saved = r < rows ? log_sum_exp[place.saved(r)] : 0.0f;
                const float of_delta = r < rows ? delta[place.saved(r)] : 0.0f;
                p[n][j] = sees ? expf(p[n][j] * factor - of_saved) : 0.0f;
                const float inner = p[n][j] * (d_score[n][j] - of_delta) * factor;
                d_score[n][j] = sees ? inner : 0.0f;
            }
        }
        add_weighted(for_v, p, d_output_tile);
        add_weighted(for_k, d_score, q_tile);
    }
    write<KEY>(d_k, place, own_key, for_k, {1.0f, 1.0f});
    write<KEY>(d_v, place, own_key, for_v, {1.0f, 1.0f});
}

#define SIZES                                                                                   \
    unsigned batch, unsigned queries, unsigned keys, unsigned heads, unsigned kv_heads,         \
        unsigned head_dim, float factor, /* 1 / sqrt(head_dim) */                               \
        const int *documents,   /* [batch, queries], the first key that each sees */            \
        unsigned packed         /* else they are nothing */
#define PLACE Place(batch, queries, keys, heads, kv_heads, head_dim, documents, packed)

// STEP and, of the backward, HELD are what fits beside the 64 own ones.
#define ATTENTION(NAME, ROWS_NAME, KEYS_NAME, D, STEP, HELD)                                    \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(                                 \
        const float* q,     /* [batch, queries, heads, D] */                                    \
        const float* k,     /* [batch, keys, kv_heads, D] */                                    \
        const float* v,     /* [batch, keys, kv_heads, D] */                                    \
        float* output,      /* like q */                                                        \
        float* log_sum_exp, /* [batch, heads, queries] */                                       \
        SIZES) {                                                                                \
        forward<STEP, D>(PLACE, q, k, v, output, log_sum_exp, factor);                          \
    }                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS) ROWS_NAME(                            \
        const float* q, const float* k, const float* v, /* as in the forward */                 \
        const float* output,      /* like q */                                                  \
        const float* log_sum_exp, /* [batch, heads, queries] */                                 \
        const float* d_output,    /* like q */                                                  \
        float* d_q,               /* like q */                                                  \
        float* delta,             /* [batch, heads, queries] */                                 \
        SIZES) {                                                                                \
        backward_rows<HELD, D>(PLACE, q, k, v, output, log_sum_exp, d_output, d_q, delta,       \
                               factor);                                                         \
    }                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS) KEYS_NAME(                            \
        const float* q, const float* k, const float* v, /* as in the forward */                 \
        const float* log_sum_exp,                       /* [batch, heads, queries] */           \
        const float* delta,                             /* [batch, heads, queries] */           \
        const float* d_output,                          /* like q */                            \
        float* d_k,                                     /* like k */                            \
        float* d_v,                                     /* like k */                            \
        SIZES) {                                                                                \
        backward_keys<HELD, D>(PLACE, q, k, v, log_sum_exp, delta, d_output, d_k, d_v, factor); \
    }

ATTENTION(attention_bf16_64, attention_bf16_d_rows_64, attention_bf16_d_keys_64, 64, 64, 32)
ATTENTION(attention_bf16_128, attention_bf16_d_rows_128, attention_bf16_d_keys_128, 128, 32, 16)

// weight_gradient: Eqs. (N1b), (Q5) to (Q7), (M2) in one, without storing d_weight = d_y^T @ x.
// Twin: the two steps of ops/weight_gradient/mod.rs. Class: reductions.
// d_y [tokens, out], x [tokens, in] bf16 in whole tiles, zeros beyond; the rest as in
// fake_quantize_backward -> d_scale, d_offset [out, groups], d_lora_a [rank, in], d_lora_b
// [out, rank], added to.
// A block per tile of 128 rows by 128 columns (32 where groups are no multiple of 4), see
// products.cuh. Slab by slab of 32 rows the products go through shared memory to the lanes of a
// quantizer's tile, which find the quantizer's arguments again in the exact order, mask, and leave
// the groups' sums where fake_quantize_backward would; what the mask left is multiplied with the
// tile's parts of lora_b and lora_a in f32. Every tile leaves its part of both; add_partial_sums
// adds them in ascending order of the tiles. All orders are fixed: a rerun has the same bits.
// Per element of the weight: 2 * tokens FLOPs on tensor cores, 6 * rank + about 40 beside them.
// Bytes: 4 (bf16, f16: 2) per element for the weight; 2 * tokens * (out * in / tile_columns + in * out / 128) for
// the operands, from the second cache; (out / 128) * rank * in + (in / tile_columns) * out * rank
// floats written seven times (a slab adds to the one before) and read once.
// Floor at out = in = 4096, tokens 2048: 87 us at 790 TFLOP/s, 16 us for the weight at 4.3 TB/s.
// A thread of the wide kernel has 160 registers or a few less, 64 of them sums, and a block 45312 B
// of shared memory: one block runs on a multiprocessor at a time. Of the narrow one, with 128 and
// 26880 B, two do. Nothing is spilled (sm_80, sm_90, sm_120).
// Host guarantees: as fake_quantize; rank <= 64; steps > 0 of 32 tokens; operands in whole tiles.
#include "products.cuh"

// Adds up what one slab of masked d_weight gives to both factors' gradients.
template <unsigned C>
__device__ __forceinline__ void add_factor_gradients(const LowRank& q, const Tile<C>& tile,
                                                     const Slab<C>& slab,
                                                     float* d_lora_a,  // [rank, in], the tile's
                                                     float* d_lora_b,  // [out, rank], the tile's
                                                     bool first_slab) {
    constexpr unsigned COLUMNS = 32 * C;
    Ranks<C>& ranks = shared_ranks<C>();
    for (unsigned start = 0; start < q.rank; start += DEPTH) {
        unsigned depth = ranks.fetch(q, tile, start);  // its barriers show the masked slab, too
        unsigned column = threadIdx.x % COLUMNS;
        float own[TILE_ROWS];
        for (unsigned o = 0; o < TILE_ROWS; ++o) own[o] = slab.at[o][column];
#pragma unroll 1
        for (unsigned r = threadIdx.x / COLUMNS; r < depth; r += THREADS / COLUMNS) {
            float sum = 0.0f, b[TILE_ROWS];
            load(ranks.b[r], b);
            for (unsigned o = 0; o < TILE_ROWS; ++o) sum = __fmaf_rn(b[o], own[o], sum);
            word to = (word)(start + r) * q.width + tile.first_column + column;
            // The same thread adds here for every slab.
            if (tile.first_column + column < q.width) {
                d_lora_a[to] = first_slab ? sum : d_lora_a[to] + sum;
            }
        }
        unsigned row = threadIdx.x / 8;
#pragma unroll 1
        for (unsigned r = threadIdx.x % 8; r < depth; r += 8) {
            float sum = 0.0f;
            for (unsigned quad = 0; quad < COLUMNS / 4; ++quad) {
                // Each rank begins at a place of its own, so that 8 lanes read different banks.
                unsigned at = (quad + r) % (COLUMNS / 4) * 4;
                float a[4], d[4];
                load(&ranks.a[r][at], a);
                load(&slab.at[row][at], d);
                for (unsigned c = 0; c < 4; ++c) sum = __fmaf_rn(d[c], a[c], sum);
            }
            word to = (word)(tile.first_row + row) * q.rank + start + r;
            if (tile.first_row + row < q.out) d_lora_b[to] = sum;
        }
    }
}

template <unsigned C, typename W>
__device__ __forceinline__ void weight_gradient(const Quantizer<W>& q, const bf16* d_y,
                                                const bf16* x, unsigned steps, Pack<2>* partial,
                                                float* factors, unsigned wants_factors,
                                                word* status, unsigned first) {
    __shared__ Space<C> space;
    const unsigned across = Tile<C>::across(q), down = (q.out + TALL - 1) / TALL;
    const unsigned tile_column = blockIdx.x % across, tile_row = blockIdx.x / across;
    const Place place;
    Products<C> sums = {};
    add_tokens<C>(sums, space, place, d_y + tile_row * TALL, down * TALL,
                  x + tile_column * 32 * C, across * 32 * C, steps);

    float* d_lora_a = factors + (word)tile_row * q.rank * q.width;
    float* d_lora_b = factors + (word)down * q.rank * q.width + (word)tile_column * q.out * q.rank;
#pragma unroll 1
    for (unsigned s = 0; s < SLABS; ++s) {
        const Tile<C> tile(q, tile_column, tile_row * TALL + s * TILE_ROWS);
        if (tile.first_row >= q.out) break;
        __syncthreads();  // the last copies or the slab before have been read
        share<C>(space.slab, sums, place, s);
        __syncthreads();  // the slab is there
        const Arguments<C> arguments(q, tile);
        // Rows and columns beyond the weight are products of zeros.
        float d[ROWS][C];
        float(*own)[32 * C + 4] = &space.slab.at[threadIdx.x / 32 * ROWS];
        for (unsigned i = 0; i < ROWS; ++i) load(&own[i][threadIdx.x % 32 * C], d[i]);
        mask(q, tile, arguments, d, partial);
        for (unsigned i = 0; i < ROWS; ++i) store(&own[i][threadIdx.x % 32 * C], d[i]);
        if (wants_factors) {
            add_factor_gradients(q, tile, space.slab, d_lora_a, d_lora_b, s == 0);
        }
        arguments.report(q, tile, (const float*)nullptr, status, first);
    }
}

// Named by the columns of a tile and the type of the weight.
#define WEIGHT_GRADIENT(NAME, C, W)                                                             \
    extern "C" __global__ void __launch_bounds__(THREADS) NAME(                                 \
        const W* weight,     /* [out, in] */                                                    \
        const float* lora_a, /* [rank, in] */                                                   \
        const float* lora_b, /* [out, rank] */                                                  \
        const float* scale,  /* [out, groups] */                                                \
        const float* offset, /* [out, groups] */                                                \
        unsigned out, unsigned width, unsigned groups, unsigned rank, float lora_scaling,       \
        float qmin, float qmax,                                                                 \
        const bf16* d_y,        /* [32 * steps, whole tiles of out] */                          \
        const bf16* x,          /* [32 * steps, whole tiles of in] */                           \
        unsigned steps,                                                                         \
        Pack<2>* partial,       /* [out, parts] */                                              \
        float* factors,         /* [tiles down, rank, in], then [tiles across, out, rank] */    \
        unsigned wants_factors, /* else they are nothing */                                     \
        word* status, unsigned first) {                                                         \
        Quantizer<W> q = {{lora_a, lora_b, out, width, groups, rank, lora_scaling},                \
                       weight, scale, offset, qmin, qmax};                                      \
        weight_gradient<C>(q, d_y, x, steps, partial, factors, wants_factors, status, first);   \
    }

WEIGHT_GRADIENT(weight_gradient_128, 4, float)
WEIGHT_GRADIENT(weight_gradient_128_of_bf16, 4, bf16)
WEIGHT_GRADIENT(weight_gradient_128_of_f16, 4, f16)
WEIGHT_GRADIENT(weight_gradient_32, 1, float)
WEIGHT_GRADIENT(weight_gradient_32_of_bf16, 1, bf16)
WEIGHT_GRADIENT(weight_gradient_32_of_f16, 1, f16)

// to += factor * (the sum of `count` parts, in ascending order)
extern "C" __global__ void add_partial_sums(const float* parts,  // [count, len] from `start` on
                                            float* to,           // [len]
                                            float factor, unsigned count, word start, word len) {
    for (word i = first_element(); i < len; i += all_threads()) {
        float sum = 0.0f;
        for (unsigned p = 0; p < count; ++p) sum += parts[start + p * len + i];
        to[i] += factor * sum;
    }
}

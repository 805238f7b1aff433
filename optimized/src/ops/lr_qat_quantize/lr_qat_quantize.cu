// lr_qat_quantize and its backward: Eqs. (M5), (M6). Twin: ops/lr_qat_quantize/cpu.rs. Class:
// exact, d_scale a reduction. The gradients of the factors are two plain products of what is left
// in d_output.
// weight [out, in] as stored, lora_a [rank, in], lora_b [out, rank],
// scale, zero_point [out, groups] -> output [out, in] f32 or rounded once to bf16, codes [out, in]
// i8; d_output [out, in] in place, d_scale [out, groups].
// A block per tile of 32 rows, see quantizer.cuh. Reads half a byte to 4 B of the weight and writes
// 4 B per element, 1 B more for a code; 2 * rank operations and about 20 more. Backward: reads and
// writes d_output beside, and sums groups as group_sums.cuh has it.
// Host guarantees: width % groups == 0; `stored` is what weight holds.
#include "group_sums.cuh"

constexpr unsigned ZERO_POINT = OFFSET;  // among the complaints

// How the weight is stored, as cuda.rs numbers it: floats, bytes in steps of 1 / unit, two codes
// to a byte. The last two have the range of the signed grid.
enum Stored { F32, BF16, F16, FIXED8, INT };

struct LrQat : LowRank {
    const void* weight;       // [out, in]
    const float* scale;       // [out, groups]
    const float* zero_point;  // [out, groups]
    unsigned has_zero_point;  // else the signed grid, and zero_point is nothing
    unsigned stored;
    unsigned live;           // the weight is divided by the scale
    unsigned rounds_update;  // and not the sum
    unsigned pre_round;      // the mask looks at the argument before it is rounded
    float qmin, steps;       // of the grid
    float unit;              // steps of FIXED8 in one of the grid
};

// C stored weights of a row; what has the range of the signed grid is moved by `shift`.
template <unsigned STORED, unsigned C>
__device__ __forceinline__ void read(const LrQat& q, unsigned row, unsigned column, float shift,
                                     float (&phi)[C]) {
    word at = (word)row * q.width + column;
    if constexpr (STORED == F32) {
        load(static_cast<const float*>(q.weight) + at, phi);
    } else if constexpr (STORED == FIXED8) {
        load_codes(static_cast<const signed char*>(q.weight) + at, phi);
        for (unsigned c = 0; c < C; ++c) phi[c] = phi[c] / q.unit + shift;
    } else if constexpr (STORED == INT) {
        // C is 1 or an even number of columns from an even one: one byte or whole ones.
        unsigned char bytes[C == 1 ? 1 : C / 2];
        word row_bytes = (q.width + 1) / 2;
        load(static_cast<const unsigned char*>(q.weight) + row * row_bytes + column / 2, bytes);
        for (unsigned c = 0; c < C; ++c) {
            unsigned place = (column + c) % 2 * 4;
            int code = static_cast<int>(static_cast<unsigned>(bytes[c / 2]) << (28 - place)) >> 28;
            phi[c] = static_cast<float>(code) + shift;
        }
    } else if constexpr (STORED == BF16) {
        load_widened(static_cast<const bf16*>(q.weight) + at, phi);
    } else {
        load_widened(static_cast<const f16*>(q.weight) + at, phi);
    }
}

// One weight on its way to its code.
struct Rounded {
    float inner;   // as stored, in units of the grid
    float value;   // rounded
    float tested;  // what the mask looks at
    float code;    // still a float
};

// The lane's weights, and what was wrong with them.
template <unsigned C>
struct Rounding {
    float stored[ROWS][C];
    float update[ROWS][C];  // lora_b @ lora_a
    float scale[ROWS];      // floored
    float low[ROWS];        // smallest code
    bool sound;             // all inputs and arguments; a kernel adds its results
    bool overflows;         // an argument is not finite

    template <unsigned STORED>
    __device__ __forceinline__ void read_rows(const LrQat& q, const Tile<C>& tile) {
        for (unsigned i = 0; i < ROWS; ++i) {
            read<STORED>(q, tile.row_of(q, i), tile.column, low[i] - q.qmin, stored[i]);
        }
    }

    __device__ __forceinline__ Rounding(const LrQat& q, const Tile<C>& tile)
        : sound(true), overflows(false) {
        low_rank_sums<C>(q, tile, update);
        for (unsigned i = 0; i < ROWS; ++i) {
            scale[i] = q.scale[tile.group_at(q, i)];
            sound &= isfinite(scale[i]);
            scale[i] = floored(scale[i]);
            low[i] = q.qmin;
            if (q.has_zero_point) {
                float z = q.zero_point[tile.group_at(q, i)];
                sound &= is_code(q, z);
                low[i] = 0.0f - z;
            }
        }
        switch (q.stored) {
            case F32: read_rows<F32>(q, tile); break;
            case BF16: read_rows<BF16>(q, tile); break;
            case F16: read_rows<F16>(q, tile); break;
            case FIXED8: read_rows<FIXED8>(q, tile); break;
            default: read_rows<INT>(q, tile); break;
        }
    }

    // The weight of row i and column c; what is wrong with its argument stays in the flags.
    __device__ __forceinline__ Rounded at(const LrQat& q, const Tile<C>& tile, unsigned i,
                                          unsigned c) {
        Rounded one;
        one.inner = q.live ? stored[i][c] / scale[i] : stored[i][c];
        float delta = q.lora_scaling * update[i][c];
        float argument = one.inner + delta;
        one.value = q.rounds_update ? one.inner + rintf(delta) : rintf(argument);
        one.tested = q.pre_round ? argument : one.value;
        // Adding zero makes a negative zero positive: a code is an integer and has one zero.
        one.code = fminf(fmaxf(one.value, low[i]), low[i] + q.steps) + 0.0f;
        sound &= isfinite(argument);
        overflows |= !isfinite(argument) && tile.has(q, i);
        return one;
    }

    static __device__ __forceinline__ bool is_code(const LrQat& q, float z) {
        return z == truncf(z) && z >= 0.0f && z <= q.steps;
    }

    // Tells the host what is wrong, in the order of the cpu backend: the inputs; an argument; the
    // output, where there is one.
    template <typename T>
    __device__ __forceinline__ void report(const LrQat& q, const Tile<C>& tile,
                                           const T* output, word* status, unsigned first) const {
        if (overflows) complain(status, first + ARGUMENT, 0, __int_as_float(0x7f800000));
        if (sound) return;
        for (unsigned i = 0; q.has_zero_point && i < ROWS; ++i) {
            word at = tile.group_at(q, i);
            float z = q.zero_point[at];
            if (!is_code(q, z)) complain(status, first + ZERO_POINT, at, z);
        }
        auto weight = q.stored == F32 ? static_cast<const float*>(q.weight) : nullptr;
        Suspects<float, T> suspects = {q.scale, nullptr, weight, output};
        report_tile(q, tile, suspects, status, first);
    }
};

template <unsigned C, typename T>
__device__ __forceinline__ void quantize_tile(const LrQat& q, T* output, signed char* codes,
                                              unsigned wants_codes, word* status, unsigned first) {
    Tile<C> tile(q);
    Rounding<C> rounding(q, tile);
    for (unsigned i = 0; i < ROWS; ++i) {
        if (!tile.has(q, i)) continue;
        float code[C];
        T y[C];
        for (unsigned c = 0; c < C; ++c) {
            code[c] = rounding.at(q, tile, i, c).code;
            y[c] = rounded<T>(code[c] * rounding.scale[i]);
            rounding.sound &= isfinite(widened(y[c]));
        }
        store(output + tile.at(q, i), y);
        if (wants_codes) store_codes(codes + tile.at(q, i), code);
    }
    rounding.report(q, tile, output, status, first);
}

template <unsigned C>
__device__ __forceinline__ void mask_tile(const LrQat& q, float* d_output, Pack<1>* partial,
                                          word* status, unsigned first) {
    Tile<C> tile(q);
    Rounding<C> rounding(q, tile);
    // No stand-ins here: another lane writes what it masked.
    float d[ROWS][C] = {};
    for (unsigned i = 0; i < ROWS; ++i) {
        if (tile.has(q, i)) load(d_output + tile.at(q, i), d[i]);
    }
    GroupLanes lanes(tile.inside ? tile.group : ~0u);
#pragma unroll  // else the rows' values would lie in memory
    for (unsigned i = 0; i < ROWS; ++i) {
        Pack<1> sum = {};
        for (unsigned c = 0; c < C; ++c) {
            Rounded one = rounding.at(q, tile, i, c);
            float low = rounding.low[i];
            bool in_range = one.tested >= low && one.tested <= low + q.steps;
            sum.at[0] += d[i][c] * (one.code - (q.live && in_range ? one.inner : 0.0f));
            d[i][c] = in_range ? rounding.scale[i] * d[i][c] : 0.0f;
        }
        lanes.add_up(sum);
        if (!tile.has(q, i)) continue;
        store(d_output + tile.at(q, i), d[i]);
        if (lanes.leads) partial[part_at(q, tile, i)] = sum;
    }
    rounding.report(q, tile, (const float*)nullptr, status, first);
}

// One entry for each type of the output.
#define LR_QAT_QUANTIZE(NAME, T)                                                                \
    extern "C" __global__ void NAME(                                                            \
        const float* lora_a, /* [rank, in] */                                                   \
        const float* lora_b, /* [out, rank] */                                                  \
        unsigned out, unsigned width, unsigned groups, unsigned rank, float lora_scaling,       \
        const void* weight,                               /* [out, in] as stored */             \
        const float* scale,                               /* [out, groups] */                   \
        const float* zero_point, unsigned has_zero_point, /* [out, groups], else nothing */     \
        unsigned stored, unsigned live, unsigned rounds_update, float qmin, float steps,        \
        float unit, T* output,                            /* [out, in] */                       \
        signed char* codes, unsigned wants_codes,         /* [out, in], else nothing */         \
        word* status, unsigned first) {                                                         \
        LrQat q = {{lora_a, lora_b, out, width, groups, rank, lora_scaling}, weight, scale,     \
                   zero_point, has_zero_point, stored, live, rounds_update, 0, qmin, steps, unit};\
        if (by_four(width / groups)) {                                                          \
            quantize_tile<4>(q, output, codes, wants_codes, status, first);                     \
        } else {                                                                                \
            quantize_tile<1>(q, output, codes, wants_codes, status, first);                     \
        }                                                                                       \
    }
LR_QAT_QUANTIZE(lr_qat_quantize, float)
LR_QAT_QUANTIZE(lr_qat_quantize_bf16, bf16)

extern "C" __global__ void lr_qat_quantize_backward(
    const float* lora_a,                               // [rank, in]
    const float* lora_b,                               // [out, rank]
    unsigned out, unsigned width, unsigned groups, unsigned rank, float lora_scaling,
    const void* weight,                                // [out, in] as stored
    const float* scale,                                // [out, groups]
    const float* zero_point, unsigned has_zero_point,  // [out, groups], else nothing
    unsigned stored, unsigned live, unsigned rounds_update, float qmin, float steps, float unit,
    unsigned pre_round,                                // what the mask looks at
    float* d_output,                                   // [out, in]
    Pack<1>* partial,                                  // [out, parts]
    word* status, unsigned first) {
    LrQat q = {{lora_a, lora_b, out, width, groups, rank, lora_scaling},
               weight, scale, zero_point, has_zero_point,
               stored, live,  rounds_update, pre_round, qmin, steps, unit};
    if (by_four(width / groups)) {
        mask_tile<4>(q, d_output, partial, status, first);
    } else {
        mask_tile<1>(q, d_output, partial, status, first);
    }
}

extern "C" __global__ void lr_qat_scale_gradient(const Pack<1>* partial,  // [out, parts]
                                                 const float* scale,      // [out, groups]
                                                 float* d_scale,          // [out, groups]
                                                 unsigned width, unsigned groups, word len) {
    add_to_scale(partial, 0, scale, d_scale, 1.0f, width, groups, len);
}

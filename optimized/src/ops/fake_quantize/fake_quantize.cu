// fake_quantize, dequantize: Eqs. (Q2) to (Q4), (M1). Twin: ops/fake_quantize/cpu.rs. Class: exact.
// weight [out, in] f32, bf16 or f16, lora_a [rank, in], lora_b [out, rank], scale, offset
// [out, groups] -> output [out, in] f32, or that rounded once to bf16; codes [out, in] i8.
// A block per tile of 32 rows, see quantizer.cuh. Reads 4 B (bf16, f16: 2 B) and writes 4 B (bf16:
// 2 B) per element, 1 B more for a code; 2 * rank operations and about 30 more. lora_a is read again
// for every tile of rows, lora_b for every tile of columns, mostly from the second cache.
// dequantize: a block per row and 256 * C columns. Reads 1 B and writes 4 B or 2 B per element.
// Host guarantees: width % groups == 0.
#include "quantizer.cuh"

template <unsigned C, typename W, typename T>
__device__ __forceinline__ void quantize_tile(const Quantizer<W>& q, T* output,
                                              signed char* codes, unsigned wants_codes,
                                              word* status, unsigned first) {
    Tile<C> tile(q);
    Arguments<C> arguments(q, tile);
    for (unsigned i = 0; i < ROWS; ++i) {
        if (!tile.has(q, i)) continue;
        float code[C];
        T y[C];
        for (unsigned c = 0; c < C; ++c) {
            code[c] = q.code(arguments.v[i][c]);
            y[c] = rounded<T>(code[c] * arguments.scale[i] + arguments.offset[i]);
            arguments.finite &= isfinite(widened(y[c]));
        }
        store(output + tile.at(q, i), y);
        if (wants_codes) store_codes(codes + tile.at(q, i), code);
    }
    arguments.report(q, tile, output, status, first);
}

template <unsigned C, typename T>
__device__ __forceinline__ void dequantize_row(const signed char* codes, const float* scale,
                                               const float* offset, T* output,
                                               unsigned width, unsigned groups) {
    Columns<C> at(width, groups);
    if (!at.inside) return;
    float code[C];
    load_codes(codes + at.first, code);
    T y[C];
    for (unsigned c = 0; c < C; ++c) {
        y[c] = rounded<T>(code[c] * scale[at.group] + offset[at.group]);
    }
    store(output + at.first, y);
}

// One entry for each type of the weight and each of the output.
#define FAKE_QUANTIZE(NAME, W, T)                                                               \
    extern "C" __global__ void NAME(                                                            \
        const W* weight,     /* [out, in] */                                                    \
        const float* lora_a, /* [rank, in] */                                                   \
        const float* lora_b, /* [out, rank] */                                                  \
        const float* scale,  /* [out, groups] */                                                \
        const float* offset, /* [out, groups] */                                                \
        unsigned out, unsigned width, unsigned groups, unsigned rank, float lora_scaling,       \
        float qmin, float qmax,                                                                 \
        T* output,            /* [out, in] */                                                   \
        signed char* codes,   /* [out, in] */                                                   \
        unsigned wants_codes, /* else codes is nothing */                                       \
        word* status, unsigned first) {                                                         \
        Quantizer<W> q = {{lora_a, lora_b, out, width, groups, rank, lora_scaling},                \
                       weight, scale, offset, qmin, qmax};                                      \
        if (by_four(width / groups)) {                                                          \
            quantize_tile<4>(q, output, codes, wants_codes, status, first);                     \
        } else {                                                                                \
            quantize_tile<1>(q, output, codes, wants_codes, status, first);                     \
        }                                                                                       \
    }
#define DEQUANTIZE(NAME, T)                                                                     \
    extern "C" __global__ void NAME(const signed char* codes, /* [out, in] */                   \
                                    const float* scale,       /* [out, groups] */               \
                                    const float* offset,      /* [out, groups] */               \
                                    T* output,                /* [out, in] */                   \
                                    unsigned width, unsigned groups) {                          \
        if (by_four(width / groups)) {                                                          \
            dequantize_row<4>(codes, scale, offset, output, width, groups);                     \
        } else {                                                                                \
            dequantize_row<1>(codes, scale, offset, output, width, groups);                     \
        }                                                                                       \
    }

FAKE_QUANTIZE(fake_quantize, float, float)
FAKE_QUANTIZE(fake_quantize_bf16, float, bf16)
FAKE_QUANTIZE(fake_quantize_of_bf16, bf16, float)
FAKE_QUANTIZE(fake_quantize_of_bf16_bf16, bf16, bf16)
FAKE_QUANTIZE(fake_quantize_of_f16, f16, float)
FAKE_QUANTIZE(fake_quantize_of_f16_bf16, f16, bf16)
DEQUANTIZE(dequantize, float)
DEQUANTIZE(dequantize_bf16, bf16)

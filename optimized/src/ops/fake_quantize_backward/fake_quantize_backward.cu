// fake_quantize_backward: Eqs. (Q5) to (Q7). Twin: ops/fake_quantize_backward/cpu.rs. Class:
// d_output exact, d_scale and d_offset reductions. (M2) is two plain products of what is left in
// d_output.
// weight [out, in] f32, bf16 or f16, lora_a [rank, in], lora_b [out, rank], scale, offset
// [out, groups], d_output [out, in] masked in place -> d_scale, d_offset [out, groups], added to.
// First a block per tile of 32 rows, see quantizer.cuh: reads 8 B (6 B) and writes 4 B per element,
// 2 * rank operations and about 40 more. It leaves the sums of every part of a group that lies in
// one tile; then a thread per group adds the parts from left to right. Both orders are fixed, so a
// rerun has the same bits.
// Host guarantees: as fake_quantize.
#include "mask.cuh"

template <unsigned C, typename W>
__device__ __forceinline__ void mask_tile(const Quantizer<W>& q, float* d_output, Pack<2>* partial,
                                          word* status, unsigned first) {
    Tile<C> tile(q);
    Arguments<C> arguments(q, tile);
    // No stand-ins here: another lane writes what it masked.
    float d[ROWS][C] = {};
    for (unsigned i = 0; i < ROWS; ++i) {
        if (tile.has(q, i)) load(d_output + tile.at(q, i), d[i]);
    }
    mask(q, tile, arguments, d, partial);
    for (unsigned i = 0; i < ROWS; ++i) {
        if (tile.has(q, i)) store(d_output + tile.at(q, i), d[i]);
    }
    arguments.report(q, tile, (const float*)nullptr, status, first);
}

// One entry for each type of the weight.
#define FAKE_QUANTIZE_BACKWARD(NAME, W)                                                         \
    extern "C" __global__ void NAME(                                                            \
        const W* weight,     /* [out, in] */                                                    \
        const float* lora_a, /* [rank, in] */                                                   \
        const float* lora_b, /* [out, rank] */                                                  \
        const float* scale,  /* [out, groups] */                                                \
        const float* offset, /* [out, groups] */                                                \
        unsigned out, unsigned width, unsigned groups, unsigned rank, float lora_scaling,       \
        float qmin, float qmax,                                                                 \
        float* d_output,     /* [out, in] */                                                    \
        Pack<2>* partial,    /* [out, parts] */                                                 \
        word* status, unsigned first) {                                                         \
        Quantizer<W> q = {{lora_a, lora_b, out, width, groups, rank, lora_scaling},             \
                          weight, scale, offset, qmin, qmax};                                   \
        if (by_four(width / groups)) {                                                          \
            mask_tile<4>(q, d_output, partial, status, first);                                  \
        } else {                                                                                \
            mask_tile<1>(q, d_output, partial, status, first);                                  \
        }                                                                                       \
    }

FAKE_QUANTIZE_BACKWARD(fake_quantize_backward, float)
FAKE_QUANTIZE_BACKWARD(fake_quantize_backward_of_bf16, bf16)
FAKE_QUANTIZE_BACKWARD(fake_quantize_backward_of_f16, f16)

extern "C" __global__ void scale_gradient(const Pack<2>* partial,  // [out, parts]
                                          const float* scale,      // [out, groups]
                                          float* d_scale,          // [out, groups]
                                          float factor, unsigned width, unsigned groups,
                                          word len) {
    add_to_scale(partial, OF_SCALE, scale, d_scale, factor, width, groups, len);
}

extern "C" __global__ void offset_gradient(const Pack<2>* partial,  // [out, parts]
                                           float* d_offset,         // [out, groups]
                                           float factor, unsigned width, unsigned groups,
                                           word len) {
    for (word i = first_element(); i < len; i += all_threads()) {
        d_offset[i] += factor * group_sum(partial, OF_OFFSET, i, width, groups);
    }
}

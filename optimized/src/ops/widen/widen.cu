// widen: a stored weight as f32, or as the bf16 operand of a product. Twin: ops/widen/cpu.rs.
// Class: exact.
// weight [len] f32, bf16 or f16 -> output [len] f32, or that rounded once to bf16.
// Four elements per thread, grid-stride. Reads 2 B (f32: 4 B) and writes 4 B (bf16: 2 B) for each.
#include "bf16.cuh"
#include "groups.cuh"

template <typename W, typename T>
__device__ __forceinline__ void widen_weights(const W* weight, T* output, word len) {
    for (word i = first_element(); i < (len + 3) / 4; i += all_threads()) {
        if (4 * i + 4 <= len) {
            float wide[4];
            T out[4];
            load_widened(weight + 4 * i, wide);
            for (unsigned k = 0; k < 4; ++k) out[k] = rounded<T>(wide[k]);
            store(output + 4 * i, out);
        } else {
            for (word k = 4 * i; k < len; ++k) output[k] = rounded<T>(widened(weight[k]));
        }
    }
}

#define WIDEN(NAME, W, T)                                            \
    extern "C" __global__ void NAME(const W* weight, /* [len] */     \
                                    T* output,       /* [len] */     \
                                    word len) {                      \
        widen_weights(weight, output, len);                          \
    }

WIDEN(widen, float, float)
WIDEN(widen_bf16, float, bf16)
WIDEN(widen_of_bf16, bf16, float)
WIDEN(widen_of_bf16_bf16, bf16, bf16)
WIDEN(widen_of_f16, f16, float)
WIDEN(widen_of_f16_bf16, f16, bf16)

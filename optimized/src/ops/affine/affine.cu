// affine_quantize, affine_dequantize and its backward: Eqs. (Q11), (Q12), (M16). Twin:
// ops/affine/cpu.rs. Class: exact, the sums too: their order is the cpu backend's.
// weight, codes, output, d_output [out, in], scale, zero_point, d_scale [out, groups]; a code is an
// unsigned byte; output is f32, or that rounded once to bf16.
// A block per row and 256 * C columns, a thread takes C neighbours; 4 B of the one and 1 B of the
// other matrix per element. Backward: half a warp per group, reads 5 B per element once.
// Host guarantees: width % groups == 0.
#include "bf16.cuh"
#include "groups.cuh"

// Places in the lists of tensors that status.rs keeps for the two operations.
enum Quantize { WEIGHT, QUANTIZE_SCALE };
enum Dequantize { DEQUANTIZE_SCALE, ZERO_POINT, OUTPUT };

template <unsigned C>
__device__ __forceinline__ void quantize(const float* weight, const float* scale,
                                         const float* zero_point, unsigned char* codes,
                                         unsigned width, unsigned groups, float largest,
                                         word* status, unsigned first) {
    Columns<C> at(width, groups);
    if (!at.inside) return;
    float s = scale[at.group], w[C], code[C];
    if (!isfinite(s)) complain(status, first + QUANTIZE_SCALE, at.group, s);
    load(weight + at.first, w);
    for (unsigned c = 0; c < C; ++c) {
        if (!isfinite(w[c])) complain(status, first + WEIGHT, at.first + c, w[c]);
        // The quotient is rounded before the zero point is added: an odd one does not turn a tie.
        float moved = rintf(w[c] / floored(s)) + zero_point[at.group];
        code[c] = fminf(fmaxf(moved, 0.0f), largest);
    }
    store_codes(codes + at.first, code);
}

template <unsigned C, typename T>
__device__ __forceinline__ void dequantize(const unsigned char* codes, const float* scale,
                                           const float* zero_point, T* output, unsigned width,
                                           unsigned groups, word* status, unsigned first) {
    Columns<C> at(width, groups);
    if (!at.inside) return;
    float s = scale[at.group], z = zero_point[at.group], code[C];
    load_codes(codes + at.first, code);
    T y[C];
    for (unsigned c = 0; c < C; ++c) {
        y[c] = rounded<T>(floored(s) * (code[c] - z));
        if (isfinite(widened(y[c]))) continue;
        complain(status, first + OUTPUT, at.first + c, widened(y[c]));
        if (!isfinite(s)) complain(status, first + DEQUANTIZE_SCALE, at.group, s);
        if (!isfinite(z)) complain(status, first + ZERO_POINT, at.group, z);
    }
    store(output + at.first, y);
}

extern "C" __global__ void affine_quantize(const float* weight,      // [out, in]
                                           const float* scale,       // [out, groups]
                                           const float* zero_point,  // [out, groups]
                                           unsigned char* codes,     // [out, in]
                                           unsigned width, unsigned groups,
                                           float largest,  // code
                                           word* status, unsigned first) {
    if (by_four(width / groups)) {
        quantize<4>(weight, scale, zero_point, codes, width, groups, largest, status, first);
    } else {
        quantize<1>(weight, scale, zero_point, codes, width, groups, largest, status, first);
    }
}

// One entry for each type of the output.
#define AFFINE_DEQUANTIZE(NAME, T)                                                              \
    extern "C" __global__ void NAME(const unsigned char* codes, /* [out, in] */                 \
                                    const float* scale,         /* [out, groups] */             \
                                    const float* zero_point,    /* [out, groups] */             \
                                    T* output,                  /* [out, in] */                 \
                                    unsigned width, unsigned groups, word* status,              \
                                    unsigned first) {                                           \
        if (by_four(width / groups)) {                                                          \
            dequantize<4>(codes, scale, zero_point, output, width, groups, status, first);      \
        } else {                                                                                \
            dequantize<1>(codes, scale, zero_point, output, width, groups, status, first);      \
        }                                                                                       \
    }
AFFINE_DEQUANTIZE(affine_dequantize, float)
AFFINE_DEQUANTIZE(affine_dequantize_bf16, bf16)

extern "C" __global__ void affine_dequantize_backward(const unsigned char* codes,  // [out, in]
                                                      const float* scale,       // [out, groups]
                                                      const float* zero_point,  // [out, groups]
                                                      const float* d_output,    // [out, in]
                                                      float* d_scale,           // [out, groups]
                                                      word groups,              // of all rows
                                                      unsigned group_size) {
    word group = group_of_lanes(), from = group * group_size;
    bool exists = group < groups;
    float z = exists ? zero_point[group] : 0.0f;
    float sum = lane_sum(exists ? group_size : 0, [&](unsigned i) {
        return d_output[from + i] * (static_cast<float>(codes[from + i]) - z);
    });
    // The raised scale no longer moves with the parameter.
    if (exists && threadIdx.x % LANES == 0 && scale[group] >= SCALE_FLOOR) d_scale[group] += sum;
}

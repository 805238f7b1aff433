// affine_quantize, affine_dequantize and its backward: Eqs. (Q11), (Q12), (M16). Twin:
// ops/affine/cpu.rs. Class: exact, the sums too: their order is the cpu backend's.
// weight, codes, output, d_output [out, in], scale, zero_point, d_scale [out, groups]; a code is
// written as an unsigned byte and read from rows of 2, 3, 4 or 8 bits each, Eq. (Q10); output is
// f32, or that rounded once to bf16.
// A block per row and 256 * C columns, a thread takes C neighbours; 4 B of a weight and a code per
// element. Backward: half a warp per group, reads 4 B and a code per element once.
// Host guarantees: width % groups == 0; bits is one of the four.
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

// How a code is stored.
template <unsigned N>
struct Packed {
    static constexpr unsigned BITS = N;

    // C codes of a row from `column` on, the first in the lowest bits. Four begin at a column that
    // is a multiple of four: three bits each, they take one byte and half of another.
    template <unsigned C>
    static __device__ __forceinline__ void read(const unsigned char* row, unsigned column,
                                                float (&codes)[C]) {
        unsigned bit = column % 8 * BITS, window = 0;
        row += column / 8 * BITS + bit / 8;
        if constexpr (C * BITS % 8 == 0) {
            unsigned char bytes[C * BITS / 8];
            load(row, bytes);
            for (unsigned k = 0; k < C * BITS / 8; ++k) window |= (unsigned)bytes[k] << 8 * k;
        } else {
            window = row[0];
            if (bit % 8 + C * BITS > 8) window |= (unsigned)row[1] << 8;
            window >>= bit % 8;
        }
        for (unsigned c = 0; c < C; ++c) {
            codes[c] = static_cast<float>(window >> BITS * c & ((1u << BITS) - 1));
        }
    }
};

// A weight in codes.
struct Coded {
    const unsigned char* codes;  // [out, row_bytes]
    const float* scale;          // [out, groups]
    const float* zero_point;     // [out, groups]
    unsigned width, groups, row_bytes;
};

template <typename Stored, unsigned C, typename T>
__device__ __forceinline__ void dequantize(const Coded& weight, T* output, word* status,
                                           unsigned first) {
    Columns<C> at(weight.width, weight.groups);
    if (!at.inside) return;
    float s = weight.scale[at.group], z = weight.zero_point[at.group], code[C];
    Stored::read(weight.codes + (word)at.row * weight.row_bytes, at.column, code);
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

template <unsigned C, typename T>
__device__ __forceinline__ void dequantize(unsigned bits, const Coded& weight, T* output,
                                           word* status, unsigned first) {
    switch (bits) {
        case 2: return dequantize<Packed<2>, C>(weight, output, status, first);
        case 3: return dequantize<Packed<3>, C>(weight, output, status, first);
        case 4: return dequantize<Packed<4>, C>(weight, output, status, first);
        default: return dequantize<Packed<8>, C>(weight, output, status, first);
    }
}

// What the codes of a row from `column` on, less z, give with d_output, in the order of lane_sum.
template <typename Stored>
__device__ __forceinline__ float group_sum(const unsigned char* row, unsigned column,
                                           const float* d_output, float z, unsigned len) {
    return lane_sum(len, [&](unsigned i) {
        float code[1];
        Stored::read(row, column + i, code);
        return d_output[i] * (code[0] - z);
    });
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
    extern "C" __global__ void NAME(const unsigned char* codes, /* [out, row_bytes] */          \
                                    const float* scale,         /* [out, groups] */             \
                                    const float* zero_point,    /* [out, groups] */             \
                                    T* output,                  /* [out, in] */                 \
                                    unsigned width, unsigned groups, unsigned bits,             \
                                    unsigned row_bytes, word* status, unsigned first) {         \
        Coded weight = {codes, scale, zero_point, width, groups, row_bytes};                    \
        if (by_four(width / groups)) {                                                          \
            dequantize<4>(bits, weight, output, status, first);                                 \
        } else {                                                                                \
            dequantize<1>(bits, weight, output, status, first);                                 \
        }                                                                                       \
    }
AFFINE_DEQUANTIZE(affine_dequantize, float)
AFFINE_DEQUANTIZE(affine_dequantize_bf16, bf16)

extern "C" __global__ void affine_dequantize_backward(
    const unsigned char* codes,  // [out, row_bytes]
    const float* scale,          // [out, groups]
    const float* zero_point,     // [out, groups]
    const float* d_output,       // [out, in]
    float* d_scale,              // [out, groups]
    word all_groups,             // of all rows
    unsigned groups, unsigned group_size, unsigned bits, unsigned row_bytes) {
    word group = group_of_lanes(), row = group / groups;
    bool exists = group < all_groups;
    unsigned column = static_cast<unsigned>(group - row * groups) * group_size;
    unsigned len = exists ? group_size : 0;
    float z = exists ? zero_point[group] : 0.0f, sum;
    codes += row * row_bytes;
    d_output += group * group_size;
    switch (bits) {
        case 2: sum = group_sum<Packed<2>>(codes, column, d_output, z, len); break;
        case 3: sum = group_sum<Packed<3>>(codes, column, d_output, z, len); break;
        case 4: sum = group_sum<Packed<4>>(codes, column, d_output, z, len); break;
        default: sum = group_sum<Packed<8>>(codes, column, d_output, z, len); break;
    }
    // The raised scale no longer moves with the parameter.
    if (exists && threadIdx.x % LANES == 0 && scale[group] >= SCALE_FLOOR) d_scale[group] += sum;
}

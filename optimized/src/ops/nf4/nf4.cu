// nf4_dequantize: Eqs. (Q18b), (Q19c). Twin: ops/nf4/cpu.rs. Class: exact.
// codes, two to a byte, and the magnitude of every block, in f32 or in eight bits -> output [len]
// f32, or that rounded once to bf16.
// A thread takes four neighbours of a block, or one where a block is no multiple of four long.
// Reads half a byte and the magnitude's 4 B or 1 B over the length of a block, writes 4 B or 2 B
// per element. The levels are one line of the cache.
// Host guarantees: a share is four elements or one, len and block are multiples of it.
#include "bf16.cuh"
#include "groups.cuh"

constexpr unsigned LEVELS = 16;
constexpr unsigned ABSMAX_BLOCK = 256;  // magnitudes in eight bits that share a scale

enum Complaint { OUTPUT };  // the place in the list of tensors that status.rs keeps

// Magnitudes as they are.
struct Plain {
    const float* absmax;  // [blocks]

    __device__ __forceinline__ float of(unsigned block) const { return absmax[block]; }
};

// Magnitudes in eight bits.
struct Double {
    const float* map;            // [256], value of a code
    const unsigned char* codes;  // [blocks]
    const float* scale;          // [ceil(blocks / 256)]
    float offset;

    __device__ __forceinline__ float of(unsigned block) const {
        return map[codes[block]] * scale[block / ABSMAX_BLOCK] + offset;
    }
};

template <unsigned C, typename Absmax, typename T>
__device__ __forceinline__ void dequantize(const unsigned char* codes, const float* levels,
                                           Absmax absmax, T* output, unsigned shares,
                                           unsigned shares_of_block, word* status,
                                           unsigned first) {
    unsigned share = blockIdx.x * blockDim.x + threadIdx.x;
    if (share >= shares) return;
    word at = (word)share * C;
    float magnitude = absmax.of(share / shares_of_block);
    unsigned char bytes[(C + 1) / 2];
    load(codes + at / 2, bytes);
    T y[C];
    for (unsigned c = 0; c < C; ++c) {
        // The first of a pair is in the high half.
        unsigned code = bytes[c / 2] >> ((at + c) % 2 == 0 ? 4 : 0) & 15;
        y[c] = rounded<T>(levels[code] * magnitude);
        if (!isfinite(widened(y[c]))) complain(status, first + OUTPUT, at + c, widened(y[c]));
    }
    store(output + at, y);
}

template <typename Absmax, typename T>
__device__ __forceinline__ void dequantize(const unsigned char* codes, const float* levels,
                                           Absmax absmax, T* output, unsigned shares,
                                           unsigned shares_of_block, unsigned of_share,
                                           word* status, unsigned first) {
    if (of_share == 4) {
        dequantize<4>(codes, levels, absmax, output, shares, shares_of_block, status, first);
    } else {
        dequantize<1>(codes, levels, absmax, output, shares, shares_of_block, status, first);
    }
}

// Two entries for each type of the output.
#define NF4_DEQUANTIZE(NAME, DOUBLE, T)                                                            \
    extern "C" __global__ void NAME(const unsigned char* codes, /* [ceil(len / 2)] */              \
                                    const float* tables,        /* [16 levels + 256 of the map] */ \
                                    const float* absmax,        /* [blocks] */                     \
                                    T* output,                  /* [len] */                        \
                                    unsigned shares,            /* of all elements */              \
                                    unsigned shares_of_block, unsigned of_share, word* status,     \
                                    unsigned first) {                                              \
        dequantize(codes, tables, Plain{absmax}, output, shares, shares_of_block, of_share,        \
                   status, first);                                                                 \
    }                                                                                              \
    extern "C" __global__ void DOUBLE(const unsigned char* codes,        /* [ceil(len / 2)] */     \
                                      const float* tables,               /* [16 + 256] */          \
                                      const unsigned char* absmax_codes, /* [blocks] */            \
                                      const float* absmax_scale, /* [ceil(blocks / 256)] */        \
                                      float absmax_offset, T* output, /* [len] */                  \
                                      unsigned shares, unsigned shares_of_block,                   \
                                      unsigned of_share, word* status, unsigned first) {           \
        Double absmax = {tables + LEVELS, absmax_codes, absmax_scale, absmax_offset};              \
        dequantize(codes, tables, absmax, output, shares, shares_of_block, of_share, status,       \
                   first);                                                                         \
    }
NF4_DEQUANTIZE(nf4_dequantize, nf4_dequantize_double, float)
NF4_DEQUANTIZE(nf4_dequantize_bf16, nf4_dequantize_double_bf16, bf16)

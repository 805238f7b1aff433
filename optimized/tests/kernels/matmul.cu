// A tensor-core product, for the interpreter's tests.
// a [rows, inner], b [columns, inner] bf16 -> output [rows, columns] f32, output = a @ b^T.
// A block of 32 threads makes a tile of 16 x 16. rows and columns are multiples of 16, inner of 32.
#include "kernels.cuh"

const int TILE = 16;
const int DEPTH = 32;
// Rows of a tile lie 80 bytes apart, so that the eight rows of a matrix hit different banks.
const int STRIDE = 40;

__device__ __forceinline__ void copy_tile(unsigned short* tile,         // [TILE, STRIDE]
                                          const unsigned short* rows,  // [TILE, inner]
                                          int inner) {
    for (int piece = threadIdx.x; piece < TILE * DEPTH / 8; piece += 32) {
        int row = piece / (DEPTH / 8), column = piece % (DEPTH / 8) * 8;
        unsigned to = (unsigned)__cvta_generic_to_shared(tile + row * STRIDE + column);
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to),
                     "l"(rows + (word)row * inner + column)
                     : "memory");
    }
}

extern "C" __global__ void matmul(const unsigned short* a,  // [rows, inner]
                                  const unsigned short* b,  // [columns, inner]
                                  float* output,            // [rows, columns]
                                  int columns, int inner) {
    __shared__ __align__(16) unsigned short a_tiles[2][TILE * STRIDE];
    __shared__ __align__(16) unsigned short b_tiles[2][TILE * STRIDE];
    const unsigned short* a_rows = a + (word)blockIdx.y * TILE * inner;
    const unsigned short* b_rows = b + (word)blockIdx.x * TILE * inner;
    int lane = threadIdx.x;
    float sums[2][4] = {};
    copy_tile(a_tiles[0], a_rows, inner);
    copy_tile(b_tiles[0], b_rows, inner);
    asm volatile("cp.async.commit_group;" ::: "memory");
    for (int begin = 0, stage = 0; begin < inner; begin += DEPTH, stage ^= 1) {
        if (begin + DEPTH < inner) {
            copy_tile(a_tiles[stage ^ 1], a_rows + begin + DEPTH, inner);
            copy_tile(b_tiles[stage ^ 1], b_rows + begin + DEPTH, inner);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        __syncthreads();
        for (int k = 0; k < DEPTH; k += 16) {
            unsigned x[4], y[4];
            unsigned from = (unsigned)__cvta_generic_to_shared(
                a_tiles[stage] + lane % 16 * STRIDE + k + lane / 16 * 8);
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                         : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                         : "r"(from)
                         : "memory");
            from = (unsigned)__cvta_generic_to_shared(
                b_tiles[stage] + lane % 16 * STRIDE + k + lane / 16 * 8);
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                         : "=r"(y[0]), "=r"(y[1]), "=r"(y[2]), "=r"(y[3])
                         : "r"(from)
                         : "memory");
            for (int half = 0; half < 2; ++half) {
                asm volatile(
                    "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                    "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                    : "+f"(sums[half][0]), "+f"(sums[half][1]), "+f"(sums[half][2]),
                      "+f"(sums[half][3])
                    : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[half]), "r"(y[half + 2]));
            }
        }
        // The next copies overwrite what others may still read.
        __syncthreads();
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
    float* tile = output + (word)blockIdx.y * TILE * columns + blockIdx.x * TILE;
    for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < 4; ++i) {
            int row = lane / 4 + i / 2 * 8, column = half * 8 + lane % 4 * 2 + i % 2;
            tile[(word)row * columns + column] = sums[half][i];
        }
    }
}

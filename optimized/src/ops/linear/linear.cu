// linear: the operands of Eqs. (N1a) and (N1b), rounded once to bf16. Class: exact.
// values [rows, columns] f32 -> operand [rows + below, pitch] bf16, zero beyond the values.
// A thread takes four neighbours. Reads 4 B and writes 2 B per element.
// Host guarantees: columns <= pitch, pitch % 4 == 0, a block per row and 1024 columns of it.
#include "bf16.cuh"
#include "kernels.cuh"

extern "C" __global__ void round_to_bf16(const float* values,  // [rows, columns]
                                         bf16* operand,        // [rows + below, pitch]
                                         word rows, word columns, word pitch) {
    unsigned across = (unsigned)((pitch + 4 * blockDim.x - 1) / (4 * blockDim.x));
    word row = blockIdx.x / across;
    word column = ((word)(blockIdx.x % across) * blockDim.x + threadIdx.x) * 4;
    if (column >= pitch) return;
    Pack<4> four = {};
    const float* from = values + row * columns + column;
    if (row < rows && column < columns) {
        if (columns % 4 == 0) {
            four = pack<4>(from);
        } else {
            for (unsigned k = 0; k < 4; ++k) four.at[k] = column + k < columns ? from[k] : 0.0f;
        }
    }
    bf16 narrow[4];
    for (unsigned k = 0; k < 4; ++k) narrow[k] = rounded<bf16>(four.at[k]);
    store(operand + row * pitch + column, narrow);
}

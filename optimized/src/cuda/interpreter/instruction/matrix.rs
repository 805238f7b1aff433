//! Matrix products of a warp: where the elements lie in the lanes' registers, and the sums.
//!
//! The order in which a device adds the products of one instruction, and how it rounds in between,
//! is not specified. Here each product is exact in f32 (bf16, f16) and added in ascending order;
//! what uses the result must be judged by a bound.

use half::{bf16, f16};

use super::Lanes;

/// A product `d[16, 8] = a[16, K] @ b[K, 8] + c[16, 8]` with f32 sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Product {
    /// K = 16.
    Bf16,
    /// K = 16.
    F16,
    /// K = 8; only the upper 19 bits of the inputs count.
    Tf32,
}

impl Product {
    pub(in super::super) fn of(opcode: &str) -> Option<Self> {
        Some(match opcode {
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32" => Self::Bf16,
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32" => Self::F16,
            "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32" => Self::Tf32,
            _ => return None,
        })
    }

    /// Two values of a 32-bit register, or one twice.
    fn values(self, register: u64) -> [f32; 2] {
        let (low, high) = (register as u16, (register >> 16) as u16);
        match self {
            Self::Bf16 => [bf16::from_bits(low).to_f32(), bf16::from_bits(high).to_f32()],
            Self::F16 => [f16::from_bits(low).to_f32(), f16::from_bits(high).to_f32()],
            Self::Tf32 => [f32::from_bits(register as u32 & !0x1FFF); 2],
        }
    }

    /// The result's registers from those of `a` (4), `b` (2) and `c` (4).
    pub(in super::super) fn apply(
        self,
        a: [&Lanes; 4],
        b: [&Lanes; 2],
        c: [&Lanes; 4],
    ) -> [Lanes; 4] {
        let (mut left, mut right, mut sums) = ([[0f32; 16]; 16], [[0f32; 8]; 16], [[0f32; 8]; 16]);
        let tf32 = self == Self::Tf32;
        for lane in 0..32 {
            let (group, member) = (lane / 4, lane % 4);
            for (register, lanes) in a.iter().enumerate() {
                let [first, second] = self.values(lanes[lane]);
                let row = group + register % 2 * 8;
                if tf32 {
                    left[row][member + register / 2 * 4] = first;
                } else {
                    left[row][2 * member + register / 2 * 8] = first;
                    left[row][2 * member + register / 2 * 8 + 1] = second;
                }
            }
            for (register, lanes) in b.iter().enumerate() {
                let [first, second] = self.values(lanes[lane]);
                if tf32 {
                    right[member + register * 4][group] = first;
                } else {
                    right[2 * member + register * 8][group] = first;
                    right[2 * member + register * 8 + 1][group] = second;
                }
            }
            for (register, lanes) in c.iter().enumerate() {
                let value = f32::from_bits(lanes[lane] as u32);
                sums[group + register / 2 * 8][2 * member + register % 2] = value;
            }
        }
        let inner = if tf32 { 8 } else { 16 };
        for (sums, left) in sums.iter_mut().zip(&left) {
            for (left, right) in left[..inner].iter().zip(&right) {
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum += left * right;
                }
            }
        }
        let mut out = [[0; 32]; 4];
        for (register, lanes) in out.iter_mut().enumerate() {
            for (lane, value) in lanes.iter_mut().enumerate() {
                let sum = sums[lane / 4 + register / 2 * 8][2 * (lane % 4) + register % 2];
                *value = super::Value::bits(sum);
            }
        }
        out
    }
}

/// What `ldmatrix` gives each lane: two neighbours of one row of an 8 x 8 matrix of 16-bit values.
///
/// `rows` are the matrix's rows. Lane `l` gets row `l / 4`, columns `2 * (l % 4)` and the next; of
/// the transposed matrix when `transposed`.
pub(in super::super) fn fragments(rows: &[[u16; 8]; 8], transposed: bool) -> Lanes {
    std::array::from_fn(|lane| {
        let (row, column) = (lane / 4, lane % 4 * 2);
        let at = |row: usize, column: usize| {
            if transposed { rows[column][row] } else { rows[row][column] }
        };
        u64::from(at(row, column)) | u64::from(at(row, column + 1)) << 16
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_give_a_row_to_four_lanes() {
        let rows: [[u16; 8]; 8] =
            std::array::from_fn(|row| std::array::from_fn(|column| (row * 8 + column) as u16));
        assert_eq!(fragments(&rows, false)[5], 10 | 11 << 16);
        assert_eq!(fragments(&rows, true)[5], 17 | 25 << 16);
    }

    /// Small integers are exact in every format and order, so places alone decide.
    fn left(row: usize, k: usize) -> f32 {
        ((row * 5 + k * 3) % 7) as f32 - 3.0
    }

    fn right(k: usize, column: usize) -> f32 {
        ((k * 2 + column * 3) % 5) as f32 - 2.0
    }

    fn expected(row: usize, column: usize, inner: usize) -> f32 {
        (0..inner).map(|k| left(row, k) * right(k, column)).sum::<f32>() + 1.0
    }

    fn check(product: Product, inner: usize, pack: impl Fn(f32, f32) -> u32) {
        // The layout as the instruction set's manual states it, written out anew.
        let half = product != Product::Tf32;
        let a: [Lanes; 4] = std::array::from_fn(|i| {
            std::array::from_fn(|lane| {
                let row = lane / 4 + if i % 2 == 1 { 8 } else { 0 };
                let k = if half {
                    lane % 4 * 2 + if i >= 2 { 8 } else { 0 }
                } else {
                    lane % 4 + if i >= 2 { 4 } else { 0 }
                };
                u64::from(pack(left(row, k), left(row, k + 1)))
            })
        });
        let b: [Lanes; 2] = std::array::from_fn(|i| {
            std::array::from_fn(|lane| {
                let k = if half { lane % 4 * 2 + i * 8 } else { lane % 4 + i * 4 };
                u64::from(pack(right(k, lane / 4), right(k + 1, lane / 4)))
            })
        });
        let ones = [u64::from(1f32.to_bits()); 32];
        let out = product.apply([&a[0], &a[1], &a[2], &a[3]], [&b[0], &b[1]], [&ones; 4]);
        for lane in 0..32 {
            for i in 0..4 {
                let (row, column) = (lane / 4 + if i >= 2 { 8 } else { 0 }, lane % 4 * 2 + i % 2);
                let value = f32::from_bits(out[i][lane] as u32);
                assert_eq!(value, expected(row, column, inner), "{row} {column}");
            }
        }
    }

    #[test]
    fn products_of_every_format_put_elements_where_the_manual_says() {
        let bf16 = |value| u32::from(bf16::from_f32(value).to_bits());
        let f16 = |value| u32::from(f16::from_f32(value).to_bits());
        check(Product::Bf16, 16, |first, second| bf16(first) | bf16(second) << 16);
        check(Product::F16, 16, |first, second| f16(first) | f16(second) << 16);
        check(Product::Tf32, 8, |first, _| first.to_bits() | 0x1FFF & 0x7);
    }
}

//! Unsigned codes side by side in bytes. Eq. (Q10).

use plumbline_reference::spec::{Bits, PackedBits, QuantSpec};
use rayon::prelude::*;

use crate::backend::Storage;
use crate::cpu::Cpu;
use crate::error::{Error, Result};

/// Codes `[out, in]` of 2, 3, 4 or 8 bits each, a row in as few bytes as hold it, as they are kept
/// between steps. They are packed once, on the host, for every backend.
pub struct PackedCodes<B: Storage + ?Sized> {
    bits: PackedBits,
    rows: usize,
    width: usize,
    bytes: B::Codes,
}

/// The narrowest width that is packed and holds codes of so many bits.
pub fn packed_bits(bits: Bits) -> PackedBits {
    let widths = [bits.count(), 8].map(PackedBits::new);
    widths.into_iter().find_map(|width| width.ok()).expect("8 bits are packed")
}

/// Bytes of a row of packed codes of that grid.
pub fn packed_row_bytes(spec: QuantSpec) -> usize {
    packed_bits(spec.bits()).row_bytes(spec.in_features())
}

impl<B: Storage + ?Sized> PackedCodes<B> {
    /// Width of a code.
    pub(super) fn bits(&self) -> PackedBits {
        self.bits
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.bits.row_bytes(self.width)
    }

    /// All bytes that are kept.
    pub fn bytes(&self) -> usize {
        self.rows * self.row_bytes()
    }

    /// The buffer, when it holds the codes of so many rows on that grid.
    pub(super) fn of_grid(
        &self,
        operation: &'static str,
        rows: usize,
        spec: QuantSpec,
    ) -> Result<&B::Codes> {
        if self.rows < rows || self.width != spec.in_features() {
            let (expected, actual) = ([rows, spec.in_features()], [self.rows, self.width]);
            let reason = format!("{operation}: codes are {actual:?}, expected {expected:?}");
            return Err(Error::Invalid(reason));
        }
        Ok(&self.bytes)
    }
}

impl<B: Storage> PackedCodes<B> {
    /// Copies to the host.
    ///
    /// # Errors
    /// When the device failed.
    pub fn download(&self, backend: &B) -> Result<PackedCodes<Cpu>> {
        let Self { bits, rows, width, bytes } = self;
        let bytes = backend.download_codes(bytes)?;
        Ok(PackedCodes { bits: *bits, rows: *rows, width: *width, bytes })
    }
}

impl PackedCodes<Cpu> {
    /// Puts rows of `width` codes into bytes, the first code in the lowest bits. Eq. (Q10a).
    ///
    /// # Errors
    /// `Invalid` for a code that the width does not hold.
    ///
    /// # Panics
    /// When the codes are no whole rows.
    pub fn pack(codes: &[u8], width: usize, bits: PackedBits) -> Result<Self> {
        assert_eq!(codes.len() % width.max(1), 0, "rows of {width}");
        if let Some(index) = codes.iter().position(|code| *code > bits.largest()) {
            let (code, row, column) = (codes[index], index / width, index % width);
            let held = format!("which {} bits do not hold", bits.count());
            return Err(Error::Invalid(format!("pack: codes[{row}, {column}] is {code}, {held}")));
        }
        let (rows, row_bytes) = (codes.len() / width.max(1), bits.row_bytes(width));
        let mut bytes = vec![0; rows * row_bytes];
        let of_rows = bytes.par_chunks_mut(row_bytes.max(1)).zip(codes.par_chunks(width.max(1)));
        of_rows.for_each(|(bytes, codes): (&mut [i8], _)| {
            for (i, code) in codes.iter().enumerate() {
                let bit = i * bits.count();
                let [low, high] = (u16::from(*code) << (bit % 8)).to_le_bytes();
                bytes[bit / 8] |= low as i8;
                if high > 0 {
                    bytes[bit / 8 + 1] |= high as i8;
                }
            }
        });
        Ok(Self { bits, rows, width, bytes })
    }

    /// Takes bytes that were packed elsewhere.
    ///
    /// # Errors
    /// `Length`; `Invalid` for a bit behind the last code of a row.
    pub fn from_bytes(bytes: &[u8], rows: usize, width: usize, bits: PackedBits) -> Result<Self> {
        let row_bytes = bits.row_bytes(width);
        let (expected, actual) = (rows * row_bytes, bytes.len());
        if expected != actual {
            return Err(Error::Length { operation: "unpack", tensor: "packed", expected, actual });
        }
        let used = width % 8 * bits.count() % 8;
        let padded = |row: &[u8]| used > 0 && row.last().is_some_and(|byte| byte >> used > 0);
        if let Some(row) = bytes.chunks(row_bytes.max(1)).position(padded) {
            let reason = format!("unpack: packed row {row} has bits behind its last code");
            return Err(Error::Invalid(reason));
        }
        Ok(Self { bits, rows, width, bytes: bytes.iter().map(|byte| *byte as i8).collect() })
    }

    /// A byte for every code, `[out, in]`. Eq. (Q10b).
    pub fn unpack(&self) -> Vec<u8> {
        let mut codes = vec![0; self.rows * self.width];
        let rows = codes.par_chunks_mut(self.width.max(1)).enumerate();
        rows.for_each(|(row, codes)| self.read(row, 0, codes));
        codes
    }

    /// The bytes, `[out, row_bytes]`.
    pub fn packed(&self) -> &[u8] {
        bytemuck::cast_slice(&self.bytes)
    }

    /// Copies to a device.
    ///
    /// # Errors
    /// When the device has no room.
    pub fn upload<B: Storage>(&self, backend: &B) -> Result<PackedCodes<B>> {
        let Self { bits, rows, width, bytes } = self;
        let bytes = backend.upload_codes(bytes)?;
        Ok(PackedCodes { bits: *bits, rows: *rows, width: *width, bytes })
    }

    /// `len` codes of a row from `column` on; `room` is overwritten where they are not bytes already.
    #[inline(always)]
    pub(super) fn of_row<'a>(
        &'a self,
        row: usize,
        column: usize,
        len: usize,
        room: &'a mut Vec<u8>,
    ) -> &'a [u8] {
        if self.bits.count() == 8 {
            return &self.packed()[row * self.width + column..][..len];
        }
        room.resize(len, 0);
        self.read(row, column, room);
        room
    }

    #[inline(always)]
    fn read(&self, row: usize, column: usize, codes: &mut [u8]) {
        let bytes = &self.packed()[row * self.row_bytes()..][..self.row_bytes()];
        match self.bits.count() {
            2 => read::<2>(bytes, column, codes),
            3 => read::<3>(bytes, column, codes),
            4 => read::<4>(bytes, column, codes),
            _ => codes.copy_from_slice(&bytes[column..][..codes.len()]),
        }
    }
}

/// Codes of less than a byte, from `column` on.
#[inline(always)]
fn read<const BITS: usize>(bytes: &[u8], column: usize, codes: &mut [u8]) {
    let mask = (1 << BITS) - 1;
    let one = |i: usize| {
        let (at, shift) = (i * BITS / 8, i * BITS % 8);
        let next = if shift + BITS > 8 { bytes[at + 1] } else { 0 };
        (u16::from_le_bytes([bytes[at], next]) >> shift) as u8 & mask
    };
    // Eight codes begin and end with a byte.
    let head = (column.next_multiple_of(8) - column).min(codes.len());
    let (first, rest) = codes.split_at_mut(head);
    for (i, code) in (column..).zip(first) {
        *code = one(i);
    }
    let whole = &bytes[(column + head) / 8 * BITS..];
    let last = column + head + rest.len() / 8 * 8;
    let mut eights = rest.chunks_exact_mut(8);
    for (codes, bytes) in (&mut eights).zip(whole.chunks_exact(BITS)) {
        let word = bytes.iter().rev().fold(0_u32, |word, byte| word << 8 | u32::from(*byte));
        for (j, code) in codes.iter_mut().enumerate() {
            *code = (word >> (BITS * j)) as u8 & mask;
        }
    }
    for (i, code) in (last..).zip(eights.into_remainder()) {
        *code = one(i);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn width(bits: u32) -> PackedBits {
        PackedBits::new(bits).unwrap()
    }

    #[test]
    fn examples_of_q10() {
        let four = PackedCodes::pack(&[1, 8, 7], 3, width(4)).unwrap();
        assert_eq!(four.packed(), [0x81, 0x07]);
        let three = PackedCodes::pack(&[1, 2, 7], 3, width(3)).unwrap();
        assert_eq!(three.packed(), [0xd1, 0x01]);
        assert_eq!(three.unpack(), [1, 2, 7]);
    }

    #[test]
    fn every_part_of_a_row_comes_back() {
        for bits in [2, 3, 4, 8].map(width) {
            for length in 1..=27 {
                let largest = usize::from(bits.largest()) + 1;
                let codes: Vec<u8> = (0..2 * length).map(|n| (n * 7 % largest) as u8).collect();
                let packed = PackedCodes::pack(&codes, length, bits).unwrap();
                assert_eq!(packed.bytes(), 2 * bits.row_bytes(length));
                assert_eq!(packed.unpack(), codes);
                let again = PackedCodes::from_bytes(packed.packed(), 2, length, bits).unwrap();
                assert_eq!(again.unpack(), codes);
                let mut room = vec![9; 40];
                for column in 0..length {
                    for len in 0..=length - column {
                        let part = packed.of_row(1, column, len, &mut room);
                        assert_eq!(part, &codes[length + column..][..len]);
                    }
                }
            }
        }
    }

    #[test]
    fn codes_are_kept_in_the_narrowest_width_that_is_packed() {
        let widths = [2, 3, 4, 5, 6, 7, 8].map(|bits| packed_bits(Bits::new(bits).unwrap()));
        assert_eq!(widths.map(PackedBits::count), [2, 3, 4, 8, 8, 8, 8]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let text = |refused: Result<PackedCodes<Cpu>>| refused.map(|_| ()).unwrap_err().to_string();
        let wide = text(PackedCodes::pack(&[7, 8], 2, width(3)));
        assert_eq!(wide, "pack: codes[0, 1] is 8, which 3 bits do not hold");
        let padding = [0x21, 0x01, 0x21, 0x11];
        let behind = text(PackedCodes::from_bytes(&padding, 2, 3, width(4)));
        assert_eq!(behind, "unpack: packed row 1 has bits behind its last code");
        assert!(PackedCodes::from_bytes(&padding, 2, 4, width(4)).is_ok());
        assert!(text(PackedCodes::from_bytes(&padding, 2, 5, width(4))).contains("packed"));
    }
}

//! Properties of (Q9) and (Q10).

use ndarray::{Array1, Array2};
use plumbline_reference::cast::cast;
use plumbline_reference::pack::{pack, pack_signed, unpack, unpack_signed};
use plumbline_reference::spec::{PackedBits, StoredType};
use proptest::prelude::*;

/// Smallest and largest exponent, and fractional digits.
fn format(stored: StoredType) -> (i32, i32, i32) {
    match stored {
        StoredType::Bf16 => (-126, 127, 7),
        StoredType::F16 => (-14, 15, 10),
    }
}

/// (Q9) as it is printed, where its powers of two do not leave f64.
fn by_quantum(number: f64, stored: StoredType) -> f64 {
    let (emin, _, digits) = format(stored);
    // The exponent field: `log2` rounds up beside a power of two.
    let exponent = (number.to_bits() >> 52 & 0x7ff) as i32 - 1023;
    let quantum = 2.0_f64.powi(exponent.max(emin) - digits);
    quantum * (number / quantum).round_ties_even()
}

fn stored() -> impl Strategy<Value = StoredType> {
    prop_oneof![Just(StoredType::Bf16), Just(StoredType::F16)]
}

/// Numbers over the whole range of the type and below it, some with few bits.
fn number(stored: StoredType) -> impl Strategy<Value = f64> {
    let (emin, emax, digits) = format(stored);
    (1.0..2.0_f64, emin - digits - 3..emax, any::<bool>(), 0u32..53).prop_map(
        |(mantissa, exponent, negative, cut)| {
            let number = mantissa * 2.0_f64.powi(exponent);
            let short = f64::from_bits(number.to_bits() >> cut << cut);
            if negative { -short } else { short }
        },
    )
}

fn bits() -> impl Strategy<Value = PackedBits> {
    prop::sample::select(vec![2, 3, 4, 8]).prop_map(|bits| PackedBits::new(bits).unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    /// Property of (Q9): the conversion is the formula.
    #[test]
    fn cast_is_the_formula((stored, number) in stored().prop_flat_map(|s| (Just(s), number(s)))) {
        let output = cast(Array1::from_elem(1, number).view(), stored).unwrap()[0];
        prop_assert_eq!(output.to_bits(), by_quantum(number, stored).to_bits());
        let again = cast(Array1::from_elem(1, output).view(), stored).unwrap()[0];
        prop_assert_eq!(again.to_bits(), output.to_bits());
        // From f32 there is nothing left to lose before.
        let single = cast(Array1::from_elem(1, number as f32).view(), stored).unwrap()[0];
        prop_assert_eq!(f64::from(single), by_quantum(f64::from(number as f32), stored));
    }

    /// Property of (Q10): packing and unpacking are inverse, rows apart.
    #[test]
    fn packing_comes_back(
        bits in bits(), shape in (0usize..4, 0usize..20), bytes in prop::collection::vec(any::<u8>(), 80),
    ) {
        let codes = Array2::from_shape_fn(shape, |(o, i)| bytes[20 * o + i] & bits.largest());
        let packed = pack(codes.view(), bits).unwrap();
        prop_assert_eq!(&unpack(packed.view(), bits, shape.1).unwrap(), &codes);
        prop_assert_eq!(packed.ncols(), (shape.1 * bits.count()).div_ceil(8));
        let signed = unpack_signed(packed.view(), bits, shape.1).unwrap();
        prop_assert_eq!(pack_signed(signed.view(), bits).unwrap(), packed);
        for (signed, unsigned) in signed.iter().zip(&codes) {
            let modulus = i32::from(bits.largest()) + 1;
            prop_assert_eq!(i32::from(*signed).rem_euclid(modulus), i32::from(*unsigned));
        }
    }
}

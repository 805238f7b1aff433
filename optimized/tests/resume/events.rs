//! Event files read by the rules of their format, with nothing of the writer's code.

use std::fs;
use std::path::Path;

/// A scalar: step, tag, the value's bits.
pub type Scalar = (u64, String, u32);

/// Every scalar of a run's event file; its records must be whole and their checksums right.
pub fn scalars(run: &Path) -> Vec<Scalar> {
    let bytes = fs::read(run.join("events.out.tfevents.plumbline")).unwrap();
    let mut rest = &bytes[..];
    let mut all = Vec::new();
    let mut is_first = true;
    while !rest.is_empty() {
        let (length, after) = rest.split_at(8);
        assert_eq!(masked(checksum(length)), word(&after[..4]), "checksum of a length");
        let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
        let (message, after) = after[4..].split_at(length);
        assert_eq!(masked(checksum(message)), word(&after[..4]), "checksum of a message");
        rest = &after[4..];
        let fields = fields(message);
        let get = |number: u64| fields.iter().find(|(field, _)| *field == number);
        let Some((_, Field::Double(time))) = get(1) else { panic!("no wall_time") };
        assert!(*time > 1.7e9, "{time}");
        if is_first {
            let Some((_, Field::Bytes(version))) = get(3) else { panic!("no file_version") };
            assert_eq!(*version, b"brain.Event:2");
            is_first = false;
            continue;
        }
        let Some((_, Field::Varint(step))) = get(2) else { panic!("no step") };
        let Some((_, Field::Bytes(summary))) = get(5) else { panic!("no summary") };
        for (number, value) in self::fields(summary) {
            let Field::Bytes(value) = value else { panic!("field {number} of a summary") };
            let of_value = self::fields(value);
            let [(1, Field::Bytes(tag)), (2, Field::Float(bits))] = &of_value[..] else {
                panic!("{of_value:?}")
            };
            all.push((*step, String::from_utf8(tag.to_vec()).unwrap(), *bits));
        }
    }
    assert!(!is_first, "the file is empty");
    all
}

#[derive(Debug)]
enum Field<'a> {
    Varint(u64),
    Double(f64),
    Bytes(&'a [u8]),
    Float(u32),
}

fn fields(mut message: &[u8]) -> Vec<(u64, Field<'_>)> {
    let mut all = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message);
        let field = match key % 8 {
            0 => Field::Varint(varint(&mut message)),
            1 => Field::Double(f64::from_le_bytes(take(&mut message, 8).try_into().unwrap())),
            2 => {
                let length = varint(&mut message) as usize;
                Field::Bytes(take(&mut message, length))
            }
            5 => Field::Float(word(take(&mut message, 4))),
            other => panic!("wire type {other}"),
        };
        all.push((key / 8, field));
    }
    all
}

fn take<'a>(from: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (taken, rest) = from.split_at(count);
    *from = rest;
    taken
}

fn varint(from: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in 0..10 {
        let byte = take(from, 1)[0];
        value |= u64::from(byte & 0x7f) << (7 * shift);
        if byte < 0x80 {
            return value;
        }
    }
    panic!("a number of more than ten bytes");
}

fn word(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().unwrap())
}

/// CRC-32C as it is defined: the remainder of a long division, one bit after the other, highest
/// power first.
fn checksum(bytes: &[u8]) -> u32 {
    const DIVISOR: u64 = 0x1_1edc_6f41;
    let mut bits: Vec<bool> =
        bytes.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1)).collect();
    bits.extend([false; 32]);
    bits[..32].iter_mut().for_each(|bit| *bit = !*bit);
    let mut remainder: u64 = 0;
    for bit in bits {
        remainder = remainder << 1 | u64::from(bit);
        if remainder >> 32 & 1 == 1 {
            remainder ^= DIVISOR;
        }
    }
    !(remainder as u32).reverse_bits()
}

fn masked(crc: u32) -> u32 {
    crc.rotate_left(17).wrapping_add(0xa282_ead8)
}

#[test]
fn this_reader_has_the_checksum_of_the_standard() {
    assert_eq!(checksum(b"123456789"), 0xe306_9283);
}

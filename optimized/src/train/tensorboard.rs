//! Event files of TensorBoard: records with checksums, each a protobuf message of scalars.
//!
//! A record is its length in eight bytes, the length's checksum, the message, the message's
//! checksum. Of `Event` the fields `wall_time = 1` (double), `step = 2` (int64),
//! `file_version = 3` (string) and `summary = 5` are written; a `Summary` repeats `value = 1` with
//! `tag = 1` (string) and `simple_value = 2` (float).

/// The record that every event file begins with.
pub fn header(wall_time: f64) -> Vec<u8> {
    let mut event = double(1, wall_time);
    event.extend(bytes(3, b"brain.Event:2"));
    record(&event)
}

/// The record of some scalars at a step.
pub fn scalars(wall_time: f64, step: u64, values: &[(String, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in values {
        let mut of_value = bytes(1, tag.as_bytes());
        of_value.extend(key(2, FIXED_32));
        of_value.extend((*value as f32).to_le_bytes());
        summary.extend(bytes(1, &of_value));
    }
    let mut event = double(1, wall_time);
    event.extend(key(2, VARINT));
    event.extend(varint(step));
    event.extend(bytes(5, &summary));
    record(&event)
}

fn record(message: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let mut record = length.to_vec();
    record.extend(masked(crc32c(&length)).to_le_bytes());
    record.extend(message);
    record.extend(masked(crc32c(message)).to_le_bytes());
    record
}

/// Wire types of protobuf.
const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const LENGTH_DELIMITED: u64 = 2;
const FIXED_32: u64 = 5;

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

fn key(field: u64, wire_type: u64) -> Vec<u8> {
    varint(field << 3 | wire_type)
}

fn double(field: u64, value: f64) -> Vec<u8> {
    [key(field, FIXED_64), value.to_le_bytes().to_vec()].concat()
}

fn bytes(field: u64, content: &[u8]) -> Vec<u8> {
    [&key(field, LENGTH_DELIMITED)[..], &varint(content.len() as u64), content].concat()
}

/// The Castagnoli polynomial, bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The remainder of every byte.
const REMAINDERS: [u32; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut remainder = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            let carry = remainder & 1;
            remainder = (remainder >> 1) ^ (carry * POLYNOMIAL);
            bit += 1;
        }
        table[byte] = remainder;
        byte += 1;
    }
    table
};

fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| REMAINDERS[(crc as u8 ^ byte) as usize] ^ (crc >> 8);
    !bytes.iter().fold(!0, step)
}

/// A checksum of data that holds checksums itself is rotated and moved, so that it is no fixed
/// point.
fn masked(crc: u32) -> u32 {
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of CRC-32C, and vectors of RFC 3720, B.4.
    #[test]
    fn the_checksum_is_the_published_one() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc32c(&ascending), 0x46dd_794e);
    }

    #[test]
    fn a_record_is_what_the_format_says_byte_for_byte() {
        let record = scalars(0.5, 300, &[("loss".to_owned(), 1.5)]);
        let message = [
            &[0x09][..], // wall_time
            &0.5f64.to_le_bytes(),
            &[0x10, 0xac, 0x02],   // step: 300 in seven bits a byte
            &[0x2a, 13, 0x0a, 11], // summary, value
            &[0x0a, 4, b'l', b'o', b's', b's'],
            &[0x15], // simple_value
            &1.5f32.to_le_bytes(),
        ]
        .concat();
        assert_eq!(record[..8], (message.len() as u64).to_le_bytes());
        assert_eq!(record[12..record.len() - 4], message);
        assert_eq!(record.len(), message.len() + 16);
    }
}

//! Random numbers that depend on a key and a place alone: every backend, a resumed run and a block
//! that is computed again draw the same ones, in any order.

/// What stands for a number is moved by this from one place to the next.
pub(crate) const STRIDE: u64 = 0x9e37_79b9_7f4a_7c15;

/// The finalizer of SplitMix64: every bit of the word that comes depends on all of the one that
/// goes in.
pub(crate) const fn mix(mut word: u64) -> u64 {
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

/// The 64 random bits of a place.
pub(crate) const fn random_word(key: u64, place: u64) -> u64 {
    mix(key.wrapping_add(place.wrapping_add(1).wrapping_mul(STRIDE)))
}

/// The key of a stream that belongs to `number` of those that `key` stands for.
pub(crate) const fn subkey(key: u64, number: u64) -> u64 {
    mix(key ^ mix(number))
}

/// A key for a name.
pub(crate) fn key_of_name(name: &str) -> u64 {
    name.bytes().fold(0, |key, byte| subkey(key, u64::from(byte) + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_have_keys_of_their_own() {
        let names = ["", "a", "b", "ab", "ba", "model.layers.0.mlp.up_proj.lora_a"];
        let mut keys: Vec<u64> = names.iter().map(|name| key_of_name(name)).collect();
        let last = keys[5];
        keys.extend((0..100).map(|number| subkey(last, number)));
        keys.extend((0..100).map(|place| random_word(last, place)));
        let distinct: std::collections::BTreeSet<_> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len());
    }
}

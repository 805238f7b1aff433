//! What each format holds of a trained grid, as one table: recipes are checked by it before they
//! train for a format.

use plumbline_reference::spec::Bits;
use serde::{Deserialize, Deserializer, de};

use super::Format;

/// What the codes of a layer count from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grid {
    /// Zero: codes with a sign.
    Symmetric,
    /// A zero point among the codes.
    ZeroPoint,
}

/// What one format holds.
struct Held {
    format: Format,
    /// Widths of codes with a sign.
    symmetric: &'static [u32],
    /// Widths of codes with a zero point. Where the file has no zero points, a code less its zero
    /// point is a code with a sign of one bit more.
    zero_point: &'static [u32],
    /// What the size of a group is a multiple of: a group of several blocks repeats its scale.
    group: usize,
}

const EVERY: &[u32] = &[2, 3, 4, 5, 6, 7, 8];
const PACKED: &[u32] = &[2, 3, 4, 8];
const TO_3: &[u32] = &[2, 3];
const TO_4: &[u32] = &[2, 3, 4];
const TO_5: &[u32] = &[2, 3, 4, 5];
const TO_7: &[u32] = &[2, 3, 4, 5, 6, 7];
const OF_MLX: &[u32] = &[2, 3, 4, 5, 6, 8];

#[rustfmt::skip]
const HELD: [Held; Format::ALL.len()] = [
    Held { format: Format::CompressedTensors, symmetric: EVERY, zero_point: EVERY, group: 1 },
    // Its zero points begin at 1, those of a grid at 0.
    Held { format: Format::Gptq, symmetric: PACKED, zero_point: &[], group: 1 },
    Held { format: Format::GptqV2, symmetric: PACKED, zero_point: PACKED, group: 1 },
    Held { format: Format::Awq, symmetric: TO_4, zero_point: TO_4, group: 1 },
    Held { format: Format::GgufQ4_0, symmetric: TO_4, zero_point: TO_3, group: 32 },
    Held { format: Format::GgufQ4_1, symmetric: TO_4, zero_point: TO_3, group: 32 },
    Held { format: Format::GgufQ5_0, symmetric: TO_5, zero_point: TO_4, group: 32 },
    Held { format: Format::GgufQ8_0, symmetric: EVERY, zero_point: TO_7, group: 32 },
    Held { format: Format::Mlx, symmetric: OF_MLX, zero_point: OF_MLX, group: 32 },
    Held { format: Format::HuggingFace, symmetric: EVERY, zero_point: EVERY, group: 1 },
    Held { format: Format::Plumbline, symmetric: EVERY, zero_point: EVERY, group: 1 },
];

impl Held {
    fn of(format: Format) -> &'static Self {
        let held = HELD.iter().find(|held| held.format == format);
        held.expect("every format has its row")
    }
}

impl Format {
    /// That the format holds codes of that width.
    ///
    /// # Errors
    /// The widths that it holds, in words that follow a field and its value.
    pub fn check_bits(self, grid: Grid, bits: Bits) -> Result<(), String> {
        let held = Held::of(self);
        let (widths, codes) = match grid {
            Grid::Symmetric => (held.symmetric, "symmetric codes"),
            Grid::ZeroPoint => (held.zero_point, "codes with a zero point"),
        };
        if widths.contains(&bits.count()) {
            return Ok(());
        }
        let widths: Vec<String> = widths.iter().map(u32::to_string).collect();
        if widths.is_empty() {
            return Err(format!(
                "is {}, {self} holds no zero point of 0, which {codes} may have; gptq-v2 does",
                bits.count()
            ));
        }
        Err(format!("is {}, {self} holds {codes} of {} bits", bits.count(), widths.join(", ")))
    }

    /// That the format holds groups of so many inputs.
    ///
    /// # Errors
    /// What they are expected to be, in words that follow a field and its value.
    pub fn check_group(self, inputs: usize) -> Result<(), String> {
        match Held::of(self).group {
            group if inputs.is_multiple_of(group) => Ok(()),
            group => Err(format!("is {inputs}, {self} holds groups of a multiple of {group}")),
        }
    }
}

/// Reads the field `target`, or says what it is and what it may be.
///
/// # Errors
/// For what is no name, or that of no format.
pub(crate) fn read_target<'de, D>(deserializer: D) -> Result<Option<Format>, D::Error>
where
    D: Deserializer<'de>,
{
    let refused = |reason: String| de::Error::custom(format!("target: {reason}"));
    let name: Option<String> =
        Option::deserialize(deserializer).map_err(|error| refused(error.to_string()))?;
    name.map(|name| name.parse::<Format>()).transpose().map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn widths(format: Format, grid: Grid) -> Vec<u32> {
        let holds = |bits: &u32| format.check_bits(grid, Bits::new(*bits).unwrap()).is_ok();
        (2..=8).filter(holds).collect()
    }

    #[test]
    fn every_format_has_one_row_and_the_rows_are_in_its_order() {
        assert_eq!(HELD.map(|held| held.format), Format::ALL);
    }

    /// A code from 0 to 2^bits - 1 less a zero point from there lies between -(2^bits - 1) and
    /// 2^bits - 1.
    #[test]
    fn where_a_file_has_no_zero_points_they_cost_one_bit() {
        for format in [Format::GgufQ4_0, Format::GgufQ4_1, Format::GgufQ5_0, Format::GgufQ8_0] {
            let symmetric = widths(format, Grid::Symmetric);
            let of_one_less: Vec<u32> = symmetric[1..].iter().map(|bits| bits - 1).collect();
            assert_eq!(widths(format, Grid::ZeroPoint), of_one_less, "{format}");
        }
    }

    #[test]
    fn the_widths_of_a_format_are_those_that_its_files_have_room_for() {
        let largest = |format, grid| *widths(format, grid).last().unwrap();
        assert_eq!(largest(Format::GgufQ4_0, Grid::Symmetric), 4);
        assert_eq!(largest(Format::GgufQ4_0, Grid::ZeroPoint), 3);
        assert_eq!(largest(Format::GgufQ5_0, Grid::Symmetric), 5);
        assert_eq!(largest(Format::GgufQ8_0, Grid::ZeroPoint), 7);
        assert_eq!(largest(Format::Awq, Grid::ZeroPoint), 4);
        assert_eq!(widths(Format::Gptq, Grid::Symmetric), [2, 3, 4, 8]);
        assert_eq!(widths(Format::Mlx, Grid::ZeroPoint), [2, 3, 4, 5, 6, 8]);
        assert_eq!(widths(Format::CompressedTensors, Grid::ZeroPoint), EVERY);
        assert_eq!(widths(Format::Plumbline, Grid::Symmetric), EVERY);
    }

    #[test]
    fn a_refusal_says_what_would_do() {
        let five = Bits::new(5).unwrap();
        let refused = Format::GgufQ4_0.check_bits(Grid::Symmetric, five).unwrap_err();
        assert_eq!(refused, "is 5, gguf-q4_0 holds symmetric codes of 2, 3, 4 bits");
        let refused = Format::Mlx.check_group(48).unwrap_err();
        assert_eq!(refused, "is 48, mlx holds groups of a multiple of 32");
        assert_eq!(Format::GgufQ8_0.check_group(96), Ok(()));
        assert_eq!(Format::Gptq.check_group(48), Ok(()));
    }
}

//! The comparators. They are code under test: `tests/comparators` shows what they reject.

use super::bound::Allowance;
use super::report::{Failure, Mismatch};
use crate::ops::quantizer::{Choice, Grid};
use crate::tensor::{Data, Tensor};

/// Mismatches that are kept in full; all are counted.
const SHOWN: usize = 8;

/// Bins of [`Verdict::histogram`]: equal, ten powers of two up to 1, and beyond.
const BINS: usize = 12;

/// What was found out about one output.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// The output's name.
    pub tensor: String,
    /// Elements compared.
    pub elements: usize,
    /// Largest difference over its allowance; at most 1 in a tensor that passes.
    pub worst_ratio: f64,
    /// Codes that the subject's rounding errors leave open.
    pub open: usize,
    /// Codes that are the other neighbour.
    pub flips: usize,
    /// Those of them that are the upper one.
    pub upwards: usize,
    /// Sum of signed differences over their allowances.
    pub signed: f64,
    /// The same, positive where the magnitude is too large.
    pub outward: f64,
    /// Sum of their squares.
    pub squares: f64,
    /// Whether the answer is of a type narrower than the arithmetic.
    pub narrow: bool,
    /// Whether nothing but zeros was expected.
    pub empty: bool,
    /// Elements by difference over allowance: equal, then up to 2^-9, 2^-8, ..., 1, and beyond.
    pub histogram: [usize; BINS],
    /// Why the tensor is rejected.
    pub failure: Option<Failure>,
}

impl Verdict {
    pub(super) fn new(tensor: &str, elements: usize) -> Self {
        Self {
            tensor: tensor.to_owned(),
            elements,
            worst_ratio: 0.0,
            open: 0,
            flips: 0,
            upwards: 0,
            signed: 0.0,
            outward: 0.0,
            squares: 0.0,
            narrow: false,
            empty: false,
            histogram: [0; BINS],
            failure: None,
        }
    }

    /// What can be said before anything is compared.
    fn of(tensor: &str, expected: &Tensor, actual: &Tensor) -> Self {
        Self {
            narrow: matches!(actual.data(), Data::F16(_) | Data::Bf16(_)),
            empty: expected.values().all(|value| value == 0.0),
            ..Self::new(tensor, actual.len())
        }
    }

    /// Counts a legal decision for the other side.
    fn flip(&mut self, is: f64, should: f64) {
        self.flips += 1;
        self.upwards += usize::from(is > should);
    }

    /// A tensor that cannot be compared at all.
    pub fn rejected(tensor: &str, what: String) -> Self {
        let failure = Failure::Tensor { tensor: tensor.to_owned(), what };
        Self { worst_ratio: f64::INFINITY, failure: Some(failure), ..Self::new(tensor, 0) }
    }

    fn reject(mut self, mismatches: Vec<Mismatch>, count: usize) -> Self {
        if count > 0 {
            let tensor = self.tensor.clone();
            let elements = self.elements;
            self.failure = Some(Failure::Elements { tensor, elements, count, mismatches });
        }
        self
    }
}

/// What rounding to the stored types adds: the expected value where it is stored narrowly, the
/// actual one where the subject answers in a narrow type.
fn stored_rounding(expected: &Tensor, actual: &Tensor, value: f64) -> f64 {
    let narrow = |tensor: &Tensor| match tensor.data() {
        Data::F16(_) => 2_f64.powi(-11) * value.abs() + 2_f64.powi(-25),
        Data::Bf16(_) => 2_f64.powi(-8) * value.abs() + 2_f64.powi(-134),
        _ => 0.0,
    };
    let in_file = match expected.data() {
        Data::F32(_) => 2_f64.powi(-24) * value.abs() + 2_f64.powi(-150),
        _ => narrow(expected),
    };
    // An actual F32 or F64 is the type of the arithmetic, whose roundings the allowance counts.
    in_file + narrow(actual)
}

/// Floats: every element finite and within its allowance of the expected value, or of one of the
/// alternatives. Shapes must have been compared.
///
/// # Panics
/// Where the allowance has another number of elements than the tensors.
pub fn floats(name: &str, allowance: &Allowance, expected: &Tensor, actual: &Tensor) -> Verdict {
    assert_eq!(allowance.bound.len(), actual.len(), "allowances of {name}");
    assert_eq!(expected.len(), actual.len(), "elements of {name}");
    let mut verdict = Verdict { open: allowance.open, ..Verdict::of(name, expected, actual) };
    let mut values: Vec<f64> = expected.values().collect();
    for (index, value) in &allowance.replaced {
        values[*index] = *value;
    }
    let mut alternatives = allowance.alternatives.clone();
    alternatives.sort_by_key(|(index, _)| *index);
    let (mut mismatches, mut count) = (Vec::new(), 0);
    for (index, value) in values.into_iter().enumerate() {
        let is = actual.value(index);
        let start = alternatives.partition_point(|(at, _)| *at < index);
        let others = alternatives[start..].iter().take_while(|(at, _)| *at == index);
        let bound = allowance.bound[index];
        let signed = std::iter::once(value)
            .chain(others.map(|(_, value)| *value))
            .map(|value| excess(is, value, bound + stored_rounding(expected, actual, value)))
            .fold(f64::INFINITY, |least, one| if one.abs() < least.abs() { one } else { least });
        let ratio = signed.abs();
        verdict.worst_ratio = verdict.worst_ratio.max(ratio);
        verdict.histogram[bin(ratio)] += 1;
        if ratio <= 1.0 {
            verdict.signed += signed;
            verdict.outward += if value < 0.0 { -signed } else { signed };
            verdict.squares += ratio * ratio;
            continue;
        }
        count += 1;
        if mismatches.len() < SHOWN {
            mismatches.push(Mismatch {
                index: actual.position(index),
                expected: describe(value, index, expected),
                actual: actual.describe(index),
                bound: bound + stored_rounding(expected, actual, value),
                detail: None,
            });
        }
    }
    verdict.reject(mismatches, count)
}

/// The bin of a ratio.
fn bin(ratio: f64) -> usize {
    if ratio == 0.0 {
        return 0;
    }
    let above = (-9..=0).position(|power| ratio <= 2_f64.powi(power));
    above.map_or(BINS - 1, |position| position + 1)
}

/// Signed difference over allowance; infinite for a NaN, an infinity, or any difference without
/// allowance.
fn excess(actual: f64, expected: f64, bound: f64) -> f64 {
    let difference = actual - expected;
    if !difference.is_finite() {
        f64::INFINITY
    } else if difference == 0.0 {
        0.0
    } else {
        difference / bound
    }
}

fn describe(value: f64, index: usize, expected: &Tensor) -> String {
    if expected.value(index) == value {
        return expected.describe(index);
    }
    format!("{value:?} (0x{:016x}, from the subject's codes)", value.to_bits())
}

/// Equal, or both values among the alternatives of the element; the type that a number is stored in
/// excuses nothing.
pub fn chosen(name: &str, allowance: &Allowance, expected: &Tensor, actual: &Tensor) -> Verdict {
    assert_eq!(expected.len(), actual.len(), "elements of {name}");
    let mut verdict = Verdict { open: allowance.open, ..Verdict::of(name, expected, actual) };
    let (mut mismatches, mut count) = (Vec::new(), 0);
    let mut listed = allowance.alternatives.iter().peekable();
    for index in 0..actual.len() {
        let mut choices = Vec::new();
        while let Some((_, value)) = listed.next_if(|(at, _)| *at == index) {
            choices.push(*value);
        }
        let (is, should) = (actual.value(index), expected.value(index));
        if is == should {
            continue;
        }
        if choices.contains(&is) && choices.contains(&should) {
            verdict.flip(is, should);
            continue;
        }
        verdict.worst_ratio = f64::INFINITY;
        count += 1;
        if mismatches.len() < SHOWN {
            mismatches.push(Mismatch {
                index: actual.position(index),
                expected: expected.describe(index),
                actual: actual.describe(index),
                bound: 0.0,
                detail: (!choices.is_empty()).then(|| format!("open are {choices:?}")),
            });
        }
    }
    assert_eq!(listed.next(), None, "alternatives of {name} in ascending order");
    verdict.reject(mismatches, count)
}

/// Codes: equal, or the neighbour across a tie that the argument may lie on either side of.
pub fn codes(name: &str, grid: &Grid, expected: &Tensor, actual: &Tensor) -> Verdict {
    assert_eq!(grid.elements.len(), actual.len(), "elements of {name}");
    assert_eq!(expected.len(), actual.len(), "elements of {name}");
    let mut verdict = Verdict::of(name, expected, actual);
    let (mut mismatches, mut count) = (Vec::new(), 0);
    for (index, element) in grid.elements.iter().enumerate() {
        let (is, golden) = (actual.value(index), expected.value(index));
        let should = grid.expected_code(index).unwrap_or(golden);
        let (distance, _) = element.nearest_tie(grid.ends);
        let open = element.at_tie(grid.ends);
        verdict.open += usize::from(open);
        verdict.histogram[if is == should { 0 } else { BINS - 1 }] += 1;
        if is == should {
            if is != golden {
                verdict.flip(is, golden);
            }
            continue;
        }
        if element.may_have(is, grid.ends) && element.may_have(should, grid.ends) {
            verdict.flip(is, should);
            continue;
        }
        verdict.worst_ratio = f64::INFINITY;
        count += 1;
        if mismatches.len() < SHOWN {
            mismatches.push(Mismatch {
                index: actual.position(index),
                expected: expected.describe(index),
                actual: actual.describe(index),
                bound: 0.0,
                detail: Some(format!(
                    "argument {:?} lies {distance:e} from its nearest tie, and is known to {:e}",
                    element.argument, element.error
                )),
            });
        }
    }
    verdict.reject(mismatches, count)
}

/// Integers: equal, or the other one across a tie that the argument may lie on either side of.
///
/// # Panics
/// Where there is another number of choices than of elements.
pub fn choices(name: &str, choices: &[Choice], expected: &Tensor, actual: &Tensor) -> Verdict {
    assert_eq!(choices.len(), actual.len(), "elements of {name}");
    assert_eq!(expected.len(), actual.len(), "elements of {name}");
    let mut verdict = Verdict::of(name, expected, actual);
    let (mut mismatches, mut count) = (Vec::new(), 0);
    for (index, choice) in choices.iter().enumerate() {
        let is = actual.value(index);
        let should = if choice.diverged { choice.code } else { expected.value(index) };
        verdict.open += usize::from(choice.is_open());
        if is == should {
            continue;
        }
        if choice.is_open() && choice.allows(is) && choice.allows(should) {
            verdict.flip(is, should);
            continue;
        }
        verdict.worst_ratio = f64::INFINITY;
        count += 1;
        if mismatches.len() < SHOWN {
            mismatches.push(Mismatch {
                index: actual.position(index),
                expected: describe(should, index, expected),
                actual: actual.describe(index),
                bound: 0.0,
                detail: Some(format!(
                    "argument {:?} lies {:e} from its nearest tie, and is known to {:e}",
                    choice.argument, choice.distance, choice.error
                )),
            });
        }
    }
    verdict.reject(mismatches, count)
}

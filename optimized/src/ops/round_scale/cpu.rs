use plumbline_reference::spec::{SCALE_FLOOR, ScaleRule};

use super::{Numbers, RoundScale};
use crate::cpu::{Cpu, simd::vectorized};
use crate::error::Result;
use crate::ops::{prefix, prefix_mut, refuse_non_finite};

impl RoundScale for Cpu {
    fn round_scale(
        &self,
        rule: ScaleRule,
        len: usize,
        scale: &Vec<f32>,
        rounded_scale: &mut Vec<f32>,
    ) -> Result<()> {
        let scale = prefix("round_scale", "scale", scale, len)?;
        let rounded_scale = prefix_mut("round_scale", "rounded_scale", rounded_scale, len)?;
        refuse_non_finite("round_scale", "scale", scale)?;
        let numbers = Numbers::from(rule);
        vectorized(
            #[inline(always)]
            || {
                for (rounded, scale) in rounded_scale.iter_mut().zip(scale) {
                    *rounded = nearest(*scale, numbers);
                }
            },
        );
        Ok(())
    }

    fn round_scale_backward(
        &self,
        rule: ScaleRule,
        len: usize,
        scale: &Vec<f32>,
        d_scale: &mut Vec<f32>,
    ) -> Result<()> {
        let scale = prefix("round_scale_backward", "scale", scale, len)?;
        let d_scale = prefix_mut("round_scale_backward", "d_scale", d_scale, len)?;
        let Numbers { smallest, largest, .. } = Numbers::from(rule);
        for (d_scale, scale) in d_scale.iter_mut().zip(scale) {
            if !(smallest..=largest).contains(scale) {
                *d_scale = 0.0;
            }
        }
        Ok(())
    }
}

/// One scale of a rule, by the exponent field of the scale held between the ends.
#[inline(always)]
fn nearest(scale: f32, numbers: Numbers) -> f32 {
    let Numbers { smallest, largest, digits, least_exponent } = numbers;
    let held = scale.max(SCALE_FLOOR as f32).max(smallest).min(largest);
    let exponent = (held.to_bits() >> 23).max(least_exponent);
    // 2^(exponent - digits) and what it is multiplied with to be 1: powers of two, so exact.
    let quantum = f32::from_bits((exponent - digits) << 23);
    let inverse = f32::from_bits((254 + digits - exponent) << 23);
    (held * inverse).round_ties_even() * quantum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounded(scale: f32, rule: ScaleRule) -> f32 {
        let mut rounded = vec![0.0];
        Cpu.round_scale(rule, 1, &vec![scale], &mut rounded).unwrap();
        rounded[0]
    }

    #[test]
    fn ties_go_to_even_and_what_is_beyond_an_end_to_the_end() {
        let power = |exponent| 2_f32.powi(exponent);
        for (scale, expected) in [
            (2049.0, 2048.0),
            (2051.0, 2052.0),
            (4095.0, 4096.0),
            (3.0 * power(-25), power(-23)),
            (1e-9, power(-24)),
            (-1.0, power(-24)),
            (70000.0, 65504.0),
        ] {
            assert_eq!(rounded(scale, ScaleRule::F16), expected, "{scale:e}");
        }
        for (scale, expected) in [
            (1.0 + power(-8), 1.0),
            (1.0 + 3.0 * power(-8), 1.0 + power(-6)),
            (power(-18), power(-17)),
            (65504.0, 65280.0),
        ] {
            assert_eq!(rounded(scale, ScaleRule::Bf16InF16), expected, "{scale:e}");
        }
    }

    #[test]
    fn a_scale_that_is_not_finite_is_refused_and_a_short_buffer_named() {
        let mut rounded = vec![0.0; 2];
        let scale = vec![1.0, f32::NAN];
        let refused = Cpu.round_scale(ScaleRule::F16, 2, &scale, &mut rounded).unwrap_err();
        assert_eq!(refused.to_string(), "round_scale: scale is not finite: NaN at flat index 1");
        let refused = Cpu.round_scale(ScaleRule::F16, 3, &scale, &mut rounded).unwrap_err();
        assert!(refused.to_string().contains("scale"), "{refused}");
        let mut d_scale = vec![1.0];
        let refused = Cpu.round_scale_backward(ScaleRule::F16, 2, &scale, &mut d_scale);
        assert!(refused.unwrap_err().to_string().contains("d_scale"));
    }
}

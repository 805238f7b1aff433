use super::{Clip, StepSlots};
use crate::cpu::Cpu;
use crate::error::Result;
use crate::ops::prefix_mut;

impl Clip for Cpu {
    fn clip(&self, slots: StepSlots, max_norm: f64, sums: &mut Vec<f64>) -> Result<()> {
        let sums = prefix_mut("clip", "sums", sums, slots.count())?;
        let in_order = |values: &[f64]| values.iter().fold(0.0, |sum, value| sum + value);
        let loss = in_order(&sums[..slots.losses]);
        let norm = in_order(&sums[slots.squares()]).sqrt();
        let is_clipped = max_norm > 0.0 && norm > max_norm;
        let factor = if is_clipped { max_norm / norm } else { 1.0 };
        sums[slots.norm()] = norm;
        let is_sound = loss.is_finite() && norm.is_finite();
        sums[slots.factor()] = if is_sound { factor } else { f64::NAN };
        Ok(())
    }
}

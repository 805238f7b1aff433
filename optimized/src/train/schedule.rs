//! The learning rate over the steps of a run.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What happens after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// Half a cosine from 1 down to `final_ratio`.
    #[default]
    Cosine,
    /// A straight line from 1 down to `final_ratio`.
    Linear,
    /// 1 to the end.
    Constant,
}

/// Linear warm-up, then a decay.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// What happens after the warm-up.
    pub kind: ScheduleKind,
    /// Steps over which the rate rises linearly; the first step has 1 / warmup_steps of it.
    pub warmup_steps: u64,
    /// Factor at the last step of a cosine or linear decay.
    pub final_ratio: f64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { kind: ScheduleKind::Cosine, warmup_steps: 0, final_ratio: 0.0 }
    }
}

impl Schedule {
    /// # Errors
    /// `Invalid` for a final ratio outside 0 to 1.
    pub fn check(&self) -> Result<()> {
        if (0.0..=1.0).contains(&self.final_ratio) {
            return Ok(());
        }
        let ratio = self.final_ratio;
        Err(Error::Invalid(format!("schedule.final_ratio is {ratio}, expected 0 to 1")))
    }

    /// Factor on the learning rate at `step`, which runs from 1 to `steps`.
    pub fn factor(&self, step: u64, steps: u64) -> f64 {
        if step <= self.warmup_steps {
            return step as f64 / self.warmup_steps as f64;
        }
        let left = steps.saturating_sub(self.warmup_steps);
        let done = (step - self.warmup_steps) as f64 / left.max(1) as f64;
        let height = match self.kind {
            ScheduleKind::Cosine => 0.5 + 0.5 * (std::f64::consts::PI * done.min(1.0)).cos(),
            ScheduleKind::Linear => 1.0 - done.min(1.0),
            ScheduleKind::Constant => 1.0,
        };
        self.final_ratio + (1.0 - self.final_ratio) * height
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_linearly_and_ends_where_it_should() {
        let of = |kind, step| Schedule { kind, warmup_steps: 4, final_ratio: 0.1 }.factor(step, 10);
        for kind in [ScheduleKind::Cosine, ScheduleKind::Linear, ScheduleKind::Constant] {
            assert_eq!(of(kind, 1), 0.25);
            assert_eq!(of(kind, 4), 1.0);
        }
        assert!((of(ScheduleKind::Cosine, 7) - 0.55).abs() < 1e-12);
        assert!((of(ScheduleKind::Cosine, 10) - 0.1).abs() < 1e-12);
        assert!((of(ScheduleKind::Linear, 7) - 0.55).abs() < 1e-12);
        assert!((of(ScheduleKind::Linear, 10) - 0.1).abs() < 1e-12);
        assert_eq!(of(ScheduleKind::Constant, 10), 1.0);
        assert_eq!(Schedule::default().factor(1, 1), 0.0);
    }
}

//! Training: one loop for fine-tuning and for pretraining, whatever the method and the device.

mod data;
mod metrics;
mod optimizer;
mod pretrain;
mod run;
pub mod samples;
mod schedule;
mod sequences;

pub use data::TokenWindows;
pub use metrics::{Metrics, StepRecord};
pub use optimizer::{HostMoments, KindSettings, Optimizer, OptimizerSettings};
pub use pretrain::new_model;
pub use run::{Observer, Trainer, TrainingSettings};
pub use schedule::{Schedule, ScheduleKind};
pub use sequences::{Sequences, TrainingData};

//! Training: one loop for fine-tuning and for pretraining, whatever the method and the device.

mod data;
mod log;
mod metrics;
mod optimizer;
pub mod parquet;
mod position;
mod pretrain;
mod run;
mod run_folder;
pub mod samples;
mod schedule;
mod sequences;
mod session;
mod statistics;
mod tensorboard;

pub use data::TokenWindows;
pub use log::Log;
pub use metrics::StepRecord;
pub(crate) use optimizer::{FIRST_MOMENT, SECOND_MOMENT};
pub use optimizer::{HostMoments, KindSettings, OnNonfinite, Optimizer, OptimizerSettings};
pub use position::{Best, Evaluations, Position};
pub use pretrain::new_model;
pub use run::{Observer, Trainer, TrainingSettings};
pub use run_folder::{Checkpoints, EVENTS, METRICS, Newest, RECIPE, RunFolder, SESSIONS};
pub use schedule::{Schedule, ScheduleKind};
pub use sequences::{Sequences, TrainingData};
pub use session::{Session, add_session, read_sessions};
pub use statistics::{LayerStatistics, ScaleStatistics, layer_statistics};
pub use tensorboard::{header, scalars};

//! Judges implementations of the operations against the reference and golden vectors.
//!
//! A [`case`] is one operation on concrete tensors. The registry [`ops`] knows, for each operation,
//! its tensors, how to compute it with the reference and how far a result may be off. A
//! [`subject`] answers cases; [`judge`] compares the answers, element by element, with allowances
//! that are derived from the data and the precision. No tolerance is chosen by hand.
//!
//! How to read a failure: the case (file and id), what mistake it would catch or the seed it was
//! generated from, then per output the first elements that differ, expected and actual in decimal
//! and in bits, and the allowance. A code also shows its argument before rounding and how far that
//! lies from the nearest tie. `conform eval CASE --subject S --out FILE` runs the case alone.
#![forbid(unsafe_code)]

pub mod case;
pub mod checkpoint;
pub mod cli;
pub mod collect;
pub mod error;
pub mod families;
pub mod generate;
pub mod hunt;
pub mod judge;
pub mod metamorphic;
mod number;
pub mod ops;
pub mod params;
pub mod precision;
pub mod report;
pub mod sampler;
pub mod strategy;
pub mod subject;
pub mod subjects;
pub mod teeth;
pub mod tensor;
pub mod witness;

pub use error::Error;

//! The exact maths, on the CPU, to be read next to the papers.
#![forbid(unsafe_code)]
pub mod spec;

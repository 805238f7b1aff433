use super::WeightGradient;
use crate::cpu::Cpu;

impl WeightGradient for Cpu {}

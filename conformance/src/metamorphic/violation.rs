//! How a property fails.

use serde_json::{Value, json};
use std::fmt;

/// How a property fails.
#[derive(Debug, Clone)]
pub enum Violation {
    /// There is no answer that could be compared.
    Answer {
        /// The operation.
        op: &'static str,
        /// What is wrong.
        what: String,
    },
    /// Two results differ.
    Differs(Box<Difference>),
}

/// The first element that differs.
#[derive(Debug, Clone)]
pub struct Difference {
    /// The operation.
    pub op: &'static str,
    /// The output.
    pub tensor: String,
    /// Where.
    pub index: Vec<usize>,
    /// What the property says must come out, in decimal and in bits.
    pub should: String,
    /// What came out.
    pub is: String,
    /// Largest difference that the precision explains; 0 where bits are compared.
    pub allowed: f64,
    /// Elements of the tensor that differ.
    pub count: usize,
    /// Elements of the tensor.
    pub elements: usize,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer { op, what } => write!(f, "{op}: {what}"),
            Self::Differs(difference) => {
                let Difference { op, tensor, index, should, is, allowed, count, elements } =
                    &**difference;
                write!(f, "{op}: {tensor}{index:?} is {is}, the property says {should}")?;
                if *allowed > 0.0 {
                    write!(f, " up to {allowed:e}")?;
                }
                write!(f, "; {count} of {elements} elements differ")
            }
        }
    }
}

impl Violation {
    /// One object.
    pub fn to_json(&self) -> Value {
        match self {
            Self::Answer { op, what } => json!({ "op": op, "what": what }),
            Self::Differs(difference) => {
                let Difference { op, tensor, index, should, is, allowed, count, elements } =
                    &**difference;
                json!({
                    "op": op, "tensor": tensor, "index": index, "should": should, "is": is,
                    "allowed": allowed, "count": count, "elements": elements,
                })
            }
        }
    }
}

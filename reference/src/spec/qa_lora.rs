//! How QA-LoRA pools the inputs of a group.

use serde::{Deserialize, Serialize};

use super::{SpecError, out_of_range};

/// What the adapter sees of a group of inputs. Eq. (M8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pool {
    /// Their sum, as Algorithm 1 of the paper.
    #[default]
    Sum,
    /// Their mean: `1 / group_size` of that.
    Mean,
}

/// Whose pooling is meant, where a public code differs from the paper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QaLoraDialect {
    /// The paper's formulas, with either pool.
    #[default]
    Paper,
    /// The authors' code: the mean.
    QaLoraCode,
    /// The QALoRA variant of Hugging Face PEFT: the mean, times the number of groups. It does not
    /// merge.
    HfPeftQalora,
}

/// A pool and a dialect that go together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GroupPool {
    pool: Pool,
    dialect: QaLoraDialect,
}

impl GroupPool {
    /// Both codes pool the mean and nothing else.
    ///
    /// # Errors
    /// `OutOfRange` for a dialect of a code with the sum.
    pub fn new(pool: Pool, dialect: QaLoraDialect) -> Result<Self, SpecError> {
        if (pool, dialect) == (Pool::Sum, QaLoraDialect::QaLoraCode) {
            out_of_range("pool", "sum", "mean with dialect qa_lora_code")?;
        }
        if (pool, dialect) == (Pool::Sum, QaLoraDialect::HfPeftQalora) {
            out_of_range("pool", "sum", "mean with dialect hf_peft_qalora")?;
        }
        Ok(Self { pool, dialect })
    }

    /// Sum or mean.
    pub fn pool(self) -> Pool {
        self.pool
    }

    /// Whose.
    pub fn dialect(self) -> QaLoraDialect {
        self.dialect
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_pool_the_mean() {
        for pool in [Pool::Sum, Pool::Mean] {
            assert!(GroupPool::new(pool, QaLoraDialect::Paper).is_ok());
        }
        for dialect in [QaLoraDialect::QaLoraCode, QaLoraDialect::HfPeftQalora] {
            assert_eq!(GroupPool::new(Pool::Mean, dialect).unwrap().dialect(), dialect);
            assert!(GroupPool::new(Pool::Sum, dialect).is_err());
        }
        let refused = GroupPool::new(Pool::Sum, QaLoraDialect::QaLoraCode).unwrap_err();
        assert_eq!(refused.to_string(), "pool is sum, expected mean with dialect qa_lora_code");
    }
}

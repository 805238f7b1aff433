//! What a method keeps of a linear layer, and what of it trains.

use std::collections::BTreeMap;

use ndarray::{Array2, ArrayD, ArrayView2, Ix2};

use crate::methods::l4q::L4q;
use crate::methods::lr_qat::LrQat;
use crate::methods::peqa::Peqa;
use crate::methods::qa_lora::QaLora;
use crate::methods::qat::Qat;
use crate::methods::qat_lora::QatLora;
use crate::model::layer::{Layer, Lora};
use crate::spec::{
    Bits, GroupPool, InnerScale, LrQatDialect, LrQatMask, LrQatSpec, QatQuantizer, QuantSpec,
    SpecError, StraightThrough,
};
use crate::{Error, Real};

/// Codes and groups of every quantized layer of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Width of a code.
    pub bits: Bits,
    /// Consecutive inputs that share a scale; none: the whole row.
    pub group_size: Option<usize>,
}

impl Grid {
    fn spec(self, in_features: usize) -> Result<QuantSpec, SpecError> {
        QuantSpec::new(self.bits, self.group_size, in_features)
    }
}

/// How the linear layers of a model are fine-tuned; everything else of it is frozen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// A frozen weight and an update beside it: (A2).
    Lora {
        /// Multiplier on `lora_b @ lora_a`.
        lora_scaling: f64,
    },
    /// The update inside the quantizer: (M1).
    L4q {
        /// Codes and groups.
        grid: Grid,
        /// Multiplier on `lora_b @ lora_a`.
        lora_scaling: f64,
        /// Gradients through the rounding.
        rules: StraightThrough,
    },
    /// The update in units of the grid, inside the rounding: (M5).
    LrQat {
        /// Codes and groups.
        grid: Grid,
        /// Multiplier on `lora_b @ lora_a`.
        lora_scaling: f64,
        /// Which scale divides the frozen weight, and how the quotient is held.
        inner_scale: InnerScale,
        /// Which elements pass their gradient.
        mask: LrQatMask,
        /// What is rounded.
        dialect: LrQatDialect,
    },
    /// Frozen codes and an adapter that sees groups of inputs: (M8).
    QaLora {
        /// Codes and groups.
        grid: Grid,
        /// Multiplier on `lora_b @ lora_a`.
        lora_scaling: f64,
        /// What the adapter sees of a group.
        pool: GroupPool,
    },
    /// Every weight, through its quantizer: (M11).
    Qat {
        /// Codes and groups.
        grid: Grid,
        /// Whether there is an offset.
        quantizer: QatQuantizer,
        /// Gradients through the rounding.
        rules: StraightThrough,
    },
    /// A quantized frozen weight with the update beside it: (M13).
    QatLora {
        /// Codes and groups.
        grid: Grid,
        /// Multiplier on `lora_b @ lora_a`.
        lora_scaling: f64,
        /// Gradients through the rounding.
        rules: StraightThrough,
    },
    /// Frozen codes, trained scales: (M15).
    Peqa {
        /// Codes and groups.
        grid: Grid,
    },
}

/// A tensor that a method keeps for each linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerTensor {
    /// Its name behind that of the layer.
    pub name: &'static str,
    /// Its sizes.
    pub shape: LayerShape,
    /// Whether it is trained.
    pub trained: bool,
    /// Whether a layer may be without it.
    pub optional: bool,
}

/// The sizes of a tensor of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerShape {
    /// `[out, in]`
    Weight,
    /// `[out, in]`, unsigned bytes.
    Codes,
    /// `[out, groups]`
    Groups,
    /// `[rank, in]`
    LoraA,
    /// `[rank, groups]`
    PooledLoraA,
    /// `[out, rank]`
    LoraB,
}

impl LayerShape {
    /// In a layer of `[out, in]`.
    pub fn sizes(self, [out, inputs]: [usize; 2], groups: usize, rank: usize) -> [usize; 2] {
        match self {
            Self::Weight | Self::Codes => [out, inputs],
            Self::Groups => [out, groups],
            Self::LoraA => [rank, inputs],
            Self::PooledLoraA => [rank, groups],
            Self::LoraB => [out, rank],
        }
    }
}

const fn frozen(name: &'static str, shape: LayerShape) -> LayerTensor {
    LayerTensor { name, shape, trained: false, optional: false }
}

const fn trained(name: &'static str, shape: LayerShape) -> LayerTensor {
    LayerTensor { name, shape, trained: true, optional: false }
}

const WEIGHT: LayerTensor = frozen("weight", LayerShape::Weight);
const CODES: LayerTensor = frozen("codes", LayerShape::Codes);
const LORA_A: LayerTensor = trained("lora_a", LayerShape::LoraA);
const LORA_B: LayerTensor = trained("lora_b", LayerShape::LoraB);
const SCALE: LayerTensor = trained("scale", LayerShape::Groups);
const OFFSET: LayerTensor = trained("offset", LayerShape::Groups);
const ZERO_POINT: LayerTensor = frozen("zero_point", LayerShape::Groups);

impl Method {
    /// Every tensor of a layer.
    pub fn layer_tensors(&self) -> Vec<LayerTensor> {
        match self {
            Self::Lora { .. } => vec![WEIGHT, LORA_A, LORA_B],
            Self::L4q { .. } | Self::QatLora { .. } => vec![WEIGHT, LORA_A, LORA_B, SCALE, OFFSET],
            Self::LrQat { inner_scale, .. } => {
                let mut tensors = vec![WEIGHT, LORA_A, LORA_B, SCALE];
                if let InnerScale::Frozen(_) = inner_scale {
                    tensors.push(frozen("initial_scale", LayerShape::Groups));
                }
                tensors.push(LayerTensor { optional: true, ..ZERO_POINT });
                tensors
            }
            Self::QaLora { .. } => {
                let lora_a = trained("lora_a", LayerShape::PooledLoraA);
                vec![CODES, frozen("scale", LayerShape::Groups), ZERO_POINT, lora_a, LORA_B]
            }
            Self::Qat { quantizer, .. } => {
                let mut tensors = vec![trained("weight", LayerShape::Weight), SCALE];
                if *quantizer == QatQuantizer::LsqPlus {
                    tensors.push(OFFSET);
                }
                tensors
            }
            Self::Peqa { .. } => vec![CODES, SCALE, ZERO_POINT],
        }
    }

    /// Groups of a row of so many inputs; a row of LoRA has none.
    ///
    /// # Errors
    /// Where a group would cross the end of a row.
    pub fn groups(&self, in_features: usize) -> Result<usize, SpecError> {
        match self {
            Self::Lora { .. } => Ok(0),
            Self::L4q { grid, .. }
            | Self::LrQat { grid, .. }
            | Self::QaLora { grid, .. }
            | Self::Qat { grid, .. }
            | Self::QatLora { grid, .. }
            | Self::Peqa { grid } => Ok(grid.spec(in_features)?.groups()),
        }
    }

    /// The layer of that name, on tensors whose names and shapes were checked.
    pub(super) fn layer<'a, T: Real>(
        &self,
        tensors: &'a BTreeMap<String, ArrayD<T>>,
        codes: &'a BTreeMap<String, Array2<u8>>,
        layer: &str,
        in_features: usize,
    ) -> Result<Layer<'a, T>, Error> {
        let optional = |name: &str| -> Option<ArrayView2<'a, T>> {
            let tensor = tensors.get(&format!("{layer}.{name}"))?.view();
            Some(tensor.into_dimensionality::<Ix2>().expect("every shape was checked"))
        };
        let tensor = |name: &str| optional(name).expect("every name was checked");
        let codes = || codes[&format!("{layer}.codes")].view();
        let [weight, lora_a, lora_b] = ["weight", "lora_a", "lora_b"];
        Ok(match *self {
            Self::Lora { lora_scaling } => Layer::Lora(Lora {
                weight: tensor(weight),
                lora_a: tensor(lora_a),
                lora_b: tensor(lora_b),
                lora_scaling,
            }),
            Self::L4q { grid, lora_scaling, rules } => {
                let layer = L4q {
                    weight: tensor(weight),
                    lora_a: tensor(lora_a),
                    lora_b: tensor(lora_b),
                    scale: tensor("scale"),
                    offset: tensor("offset"),
                    lora_scaling,
                    spec: grid.spec(in_features)?,
                };
                Layer::L4q(layer, rules)
            }
            Self::LrQat { grid, lora_scaling, inner_scale, mask, dialect } => Layer::LrQat(LrQat {
                weight: tensor(weight),
                initial_scale: optional("initial_scale"),
                zero_point: optional("zero_point"),
                lora_a: tensor(lora_a),
                lora_b: tensor(lora_b),
                scale: tensor("scale"),
                lora_scaling,
                spec: LrQatSpec::new(grid.spec(in_features)?, inner_scale, mask, dialect)?,
            }),
            Self::QaLora { grid, lora_scaling, pool } => Layer::QaLora(QaLora {
                codes: codes(),
                scale: tensor("scale"),
                zero_point: tensor("zero_point"),
                lora_a: tensor(lora_a),
                lora_b: tensor(lora_b),
                lora_scaling,
                pool,
                spec: grid.spec(in_features)?,
            }),
            Self::Qat { grid, rules, .. } => {
                let layer = Qat {
                    weight: tensor(weight),
                    scale: tensor("scale"),
                    offset: optional("offset"),
                    spec: grid.spec(in_features)?,
                };
                Layer::Qat(layer, rules)
            }
            Self::QatLora { grid, lora_scaling, rules } => {
                let layer = QatLora {
                    weight: tensor(weight),
                    lora_a: tensor(lora_a),
                    lora_b: tensor(lora_b),
                    scale: tensor("scale"),
                    offset: tensor("offset"),
                    lora_scaling,
                    spec: grid.spec(in_features)?,
                };
                Layer::QatLora(layer, rules)
            }
            Self::Peqa { grid } => Layer::Peqa(Peqa {
                codes: codes(),
                scale: tensor("scale"),
                zero_point: tensor("zero_point"),
                spec: grid.spec(in_features)?,
            }),
        })
    }
}

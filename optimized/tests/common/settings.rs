//! A model to train, and recipes' settings of the methods for it.
#![allow(dead_code)] // each test takes some of them

use plumbline::checkpoint::ModelFolder;
use plumbline::recipe::{
    FrozenBase, L4qSettings, LrQatSettings, PeqaSettings, QaLoraSettings, QatSettings,
    QloraSettings,
};
use plumbline_reference::spec::{
    Bits, Downcast, GradScale, LrQatDialect, LrQatMask, Pool, QaLoraDialect, QatQuantizer,
    SymmetricScale,
};

use super::write_model;

/// The small model in a folder that goes with the first value.
pub fn base() -> (tempfile::TempDir, ModelFolder) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("model");
    write_model(&path);
    let folder = ModelFolder::open(&path).unwrap();
    (root, folder)
}

pub fn l4q(bits: u32) -> L4qSettings {
    L4qSettings {
        bits: Bits::new(bits).unwrap(),
        group_size: Some(16),
        rank: 3,
        lora_scaling: 2.0,
        init: "l4q".into(),
        init_p: None,
        init_steps: None,
        grad_scale: GradScale::None,
        train_scale: true,
        lora_warmup_steps: 0,
        dropout: 0.0,
        target: None,
    }
}

/// A factor on the update that moves codes within eight steps: it is in units of the grid.
const IN_STEPS: f32 = 8.0;

pub fn lr_qat(bits: u32, downcast: Downcast, inner_scale: &str) -> LrQatSettings {
    LrQatSettings {
        bits: Bits::new(bits).unwrap(),
        group_size: Some(16),
        rank: 3,
        lora_scaling: IN_STEPS,
        downcast,
        inner_scale: inner_scale.into(),
        mask: LrQatMask::Rounded,
        dialect: LrQatDialect::Paper,
        init: "min_max".into(),
        init_p: None,
        init_steps: None,
        train_scale: true,
        dropout: 0.0,
        activations: None,
        target: None,
    }
}

pub fn peqa(bits: u32) -> PeqaSettings {
    PeqaSettings {
        bits: Bits::new(bits).unwrap(),
        group_size: Some(16),
        symmetric: false,
        range: "min_max".into(),
        range_p: None,
        range_steps: None,
        convention: SymmetricScale::Paper,
        base: FrozenBase::Rtn,
        gptq: None,
        target: None,
    }
}

pub fn qat(bits: u32, quantizer: QatQuantizer) -> QatSettings {
    QatSettings {
        bits: Bits::new(bits).unwrap(),
        group_size: Some(16),
        quantizer,
        init: "l4q".into(),
        init_p: None,
        init_steps: None,
        grad_scale: GradScale::None,
        train_scale: true,
        target: None,
    }
}

pub fn qa_lora(bits: u32, pool: Pool) -> QaLoraSettings {
    QaLoraSettings {
        bits: Bits::new(bits).unwrap(),
        group_size: Some(16),
        rank: 3,
        lora_scaling: 2.0,
        pool,
        dialect: QaLoraDialect::Paper,
        symmetric: false,
        range: "min_max".into(),
        range_p: None,
        range_steps: None,
        convention: SymmetricScale::Paper,
        base: FrozenBase::Rtn,
        gptq: None,
        dropout: 0.0,
        target: None,
    }
}

pub fn qlora(bits: u32) -> QloraSettings {
    QloraSettings {
        rank: 3,
        lora_scaling: 2.0,
        block_size: 64,
        double_quantize: true,
        bits: Bits::new(bits).unwrap(),
        group_size: Some(16),
        symmetric: false,
        range: "min_max".into(),
        range_p: None,
        range_steps: None,
        convention: SymmetricScale::Paper,
        dropout: 0.0,
        target: None,
    }
}

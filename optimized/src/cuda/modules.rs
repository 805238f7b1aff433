//! The compiled kernels, embedded in the program.

use super::launch::Module;

macro_rules! modules {
    ($($(#[$doc:meta])* $constant:ident = $name:literal;)*) => {
        $($(#[$doc])* pub(crate) static $constant: Module = Module {
            name: $name,
            source: include_str!(concat!("../ops/", $name, "/", $name, ".cu")),
            ptx: include_str!(concat!("../ops/", $name, "/", $name, ".ptx")),
        };)*
        /// Every module, by name.
        pub static MODULES: &[&Module] = &[$(&$constant),*];
    };
}

modules! {
    ADAMW = "adamw";
    ADD = "add";
    AFFINE = "affine";
    ATTENTION = "attention";
    ATTENTION_BF16 = "attention_bf16";
    CROSS_ENTROPY = "cross_entropy";
    DROPOUT = "dropout";
    DYNAMIC_QUANTIZE = "dynamic_quantize";
    EMBEDDING = "embedding";
    FAKE_QUANTIZE = "fake_quantize";
    FAKE_QUANTIZE_BACKWARD = "fake_quantize_backward";
    GROUP_POOL = "group_pool";
    INIT_SCALE = "init_scale";
    LINEAR = "linear";
    LR_QAT_QUANTIZE = "lr_qat_quantize";
    NF4 = "nf4";
    RANDOM_WEIGHTS = "random_weights";
    RMS_NORM = "rms_norm";
    ROPE = "rope";
    ROUND_SCALE = "round_scale";
    RTN = "rtn";
    SQUARED_NORM = "squared_norm";
    SUMS = "sums";
    SWIGLU = "swiglu";
    WEIGHT_GRADIENT = "weight_gradient";
    WIDEN = "widen";
}

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
    ATTENTION = "attention";
    CROSS_ENTROPY = "cross_entropy";
    RMS_NORM = "rms_norm";
    ROPE = "rope";
    SWIGLU = "swiglu";
}

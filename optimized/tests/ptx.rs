//! The compiled kernels are what their sources say, and keep the rules that numbers depend on.

use std::path::Path;

use plumbline::cuda::{MODULES, compile::stamp};

/// The file's first line holds a digest of source, headers, flags and compiler.
#[test]
fn every_compiled_module_is_that_of_its_source() {
    let stale: Vec<_> = MODULES
        .iter()
        .filter(|module| module.ptx.lines().next() != Some(&stamp(module)))
        .map(|module| module.name)
        .collect();
    assert!(stale.is_empty(), "make ptx was not run after a change of {stale:?}");
}

/// Every `.cu` file is in the list, so that none is left uncompiled and unjudged.
#[test]
fn every_source_is_a_module() {
    let ops = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ops");
    for folder in std::fs::read_dir(ops).unwrap().map(|entry| entry.unwrap().path()) {
        let Some(name) = folder.file_name().and_then(|name| name.to_str()) else { continue };
        let has_source = folder.join(format!("{name}.cu")).exists();
        let is_listed = MODULES.iter().any(|module| module.name == name);
        assert_eq!(has_source, is_listed, "{name}");
    }
}

/// A product and a sum with one rounding give another argument of the quantizer than the reference's.
#[test]
fn no_quantizer_fuses_a_product_and_a_sum() {
    for name in ["fake_quantize", "fake_quantize_backward", "lr_qat_quantize", "affine", "nf4"] {
        let module = MODULES.iter().find(|module| module.name == name).unwrap();
        let fused = module.ptx.lines().position(|line| line.contains("fma.rn"));
        assert_eq!(fused.map(|line| line + 1), None, "{name}.ptx");
        assert!(module.ptx.contains("mul.rn.f32") && module.ptx.contains("add.rn.f32"), "{name}");
    }
}

/// What no kernel may hold, and why.
const FORBIDDEN: &[(&str, &str)] = &[
    ("div.approx", "a quotient that is not the nearest"),
    ("div.full", "a quotient that is not the nearest"),
    ("sqrt.approx", "a root that is not the nearest"),
    ("cvt.rna", "rounding half away from zero"),
    ("atom.global.add.f", "a sum whose order differs from run to run"),
    ("red.global.add.f", "a sum whose order differs from run to run"),
    ("atom.add.f", "a sum whose order differs from run to run"),
];

#[test]
fn no_kernel_rounds_or_adds_in_a_way_of_its_own() {
    for module in MODULES {
        for (number, line) in module.ptx.lines().enumerate() {
            for (instruction, why) in FORBIDDEN {
                let found = line.trim_start().starts_with(instruction);
                assert!(!found, "{}.ptx:{}: {instruction}: {why}", module.name, number + 1);
            }
        }
        for call in ["roundf(", "round(", "__fdividef", "__frcp", "__expf", "__powf"] {
            let found = module.source.split(|c: char| c.is_whitespace() || c == '(' || c == '=');
            let name = call.trim_end_matches('(');
            assert!(!found.clone().any(|word| word == name), "{}.cu: {call}", module.name);
        }
    }
}

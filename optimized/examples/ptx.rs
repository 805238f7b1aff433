//! Writes the compiled kernels beside their sources: `make ptx`. With `--check`, compares them
//! with what the compiler makes now.

use std::path::Path;
use std::process::ExitCode;

use plumbline::cuda::{MODULES, compile::compile};

fn main() -> ExitCode {
    let check = std::env::args().any(|argument| argument == "--check");
    let mut wrong = 0;
    for module in MODULES {
        let name = module.name;
        let file = format!("{}/src/ops/{name}/{name}.ptx", env!("CARGO_MANIFEST_DIR"));
        match compile(module) {
            Err(reason) => {
                eprintln!("{name}.cu: {reason}");
                wrong += 1;
            }
            Ok(ptx) if check && ptx != module.ptx => {
                eprintln!("{file} differs from what the compiler makes of {name}.cu");
                wrong += 1;
            }
            Ok(ptx) if !check => {
                if let Err(reason) = std::fs::write(Path::new(&file), ptx) {
                    eprintln!("{file}: {reason}");
                    wrong += 1;
                }
            }
            Ok(_) => {}
        }
    }
    let verb = if check { "compared" } else { "compiled" };
    println!("{verb} {} modules, {wrong} wrong", MODULES.len());
    ExitCode::from(u8::from(wrong > 0))
}

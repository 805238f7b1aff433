//! Writes the compiled kernels beside their sources: `make ptx`. With `--check`, compares them
//! with what the compiler makes now. The tests' own kernels are among them.

use std::path::Path;
use std::process::ExitCode;

use plumbline::cuda::{MODULES, Module, compile::compile};

fn main() -> ExitCode {
    let check = std::env::args().any(|argument| argument == "--check");
    let mut wrong = 0;
    let fixtures = fixtures();
    let ops = MODULES.iter().map(|module| (*module, format!("src/ops/{}", module.name)));
    let all = ops.chain(fixtures.iter().map(|module| (module, "tests/kernels".to_owned())));
    for (module, folder) in all {
        let name = module.name;
        let file = format!("{}/{folder}/{name}.ptx", env!("CARGO_MANIFEST_DIR"));
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
    println!("{verb} {} modules, {wrong} wrong", MODULES.len() + fixtures.len());
    ExitCode::from(u8::from(wrong > 0))
}

/// The kernels of the tests.
fn fixtures() -> Vec<Module> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernels");
    let leak = |text: String| -> &'static str { text.leak() };
    let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
    let mut modules: Vec<Module> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|file| Some(file.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .filter_map(|path| {
            let name = leak(path.file_stem()?.to_str()?.to_owned());
            let (source, ptx) = (read(&path), read(&path.with_extension("ptx")));
            Some(Module { name, source: leak(source), ptx: leak(ptx) })
        })
        .collect();
    modules.sort_by_key(|module| module.name);
    modules
}

//! Writes the compiled kernels beside their sources: `make ptx`. With `--check`, compares them
//! with what the compiler makes now. With `--registers FILE`, has ptxas assemble them for several
//! devices and writes the table of what they use; a kernel that spills registers is an error.
//! The tests' own kernels are compiled and compared too.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, ExitCode};

use plumbline::cuda::{MODULES, Module, compile::compile};

/// The devices that kernels are assembled for: A100, H100 and H200, RTX 50.
const DEVICES: [&str; 3] = ["sm_80", "sm_90", "sm_120"];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => each("compiled", write),
        ["--check"] => each("compared", compare),
        ["--registers", file] => registers(Path::new(file)),
        _ => Err("usage: ptx [--check | --registers FILE]".to_owned()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

fn each(verb: &str, done: impl Fn(&Module, &str) -> Result<(), String>) -> Result<(), String> {
    let fixtures = fixtures();
    let ops = MODULES.iter().map(|module| (*module, file(module)));
    let all: Vec<_> =
        ops.chain(fixtures.iter().map(|fixture| (fixture, fixture_file(fixture)))).collect();
    let problems: Vec<String> = all
        .iter()
        .filter_map(|(module, file)| {
            done(module, file).err().map(|problem| format!("{}: {problem}", module.name))
        })
        .collect();
    println!("{verb} {} modules, {} wrong", all.len(), problems.len());
    if problems.is_empty() { Ok(()) } else { Err(problems.join("\n")) }
}

fn file(module: &Module) -> String {
    let name = module.name;
    format!("{}/src/ops/{name}/{name}.ptx", env!("CARGO_MANIFEST_DIR"))
}

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/kernels");

fn fixture_file(module: &Module) -> String {
    format!("{FIXTURES}/{}.ptx", module.name)
}

/// The kernels of the tests.
fn fixtures() -> Vec<Module> {
    let leak = |text: String| -> &'static str { text.leak() };
    let read = |path: &Path| leak(std::fs::read_to_string(path).unwrap_or_default());
    let mut modules: Vec<Module> = std::fs::read_dir(FIXTURES)
        .into_iter()
        .flatten()
        .filter_map(|file| Some(file.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .filter_map(|path| {
            let name = leak(path.file_stem()?.to_str()?.to_owned());
            Some(Module { name, source: read(&path), ptx: read(&path.with_extension("ptx")) })
        })
        .collect();
    modules.sort_by_key(|module| module.name);
    modules
}

fn write(module: &Module, file: &str) -> Result<(), String> {
    std::fs::write(file, compile(module)?).map_err(|problem| format!("{file}: {problem}"))
}

fn compare(module: &Module, file: &str) -> Result<(), String> {
    let same = compile(module)? == module.ptx;
    if same { Ok(()) } else { Err(format!("{file} is not what the compiler makes of the source")) }
}

/// What ptxas says of one kernel on one device.
struct Usage {
    registers: u32,
    shared_bytes: u32,
    spilled_bytes: u32,
}

fn registers(table: &Path) -> Result<(), String> {
    let mut rows: BTreeMap<(String, String), Vec<Usage>> = BTreeMap::new();
    for module in MODULES {
        for device in DEVICES {
            for (kernel, usage) in assemble(module, device)? {
                rows.entry((module.name.to_owned(), kernel)).or_default().push(usage);
            }
        }
    }
    let mut text = format!(
        "# Registers and shared memory of the kernels\n\nWritten by `make registers` from what \
         ptxas says. Per device: registers of a thread, bytes of static shared memory of a block. \
         No kernel spills registers.\n\n| module | kernel | {} |\n|---|---|{}\n",
        DEVICES.join(" | "),
        "---|".repeat(DEVICES.len())
    );
    let mut spilling = Vec::new();
    for ((module, kernel), usages) in &rows {
        let cells = usages.iter().map(|usage| {
            if usage.spilled_bytes > 0 {
                spilling.push(format!("{kernel} spills {} bytes", usage.spilled_bytes));
            }
            format!("{}, {} B", usage.registers, usage.shared_bytes)
        });
        let cells: Vec<_> = cells.collect();
        text.push_str(&format!("| {module} | {kernel} | {} |\n", cells.join(" | ")));
    }
    if !spilling.is_empty() {
        return Err(spilling.join("\n"));
    }
    std::fs::write(table, text).map_err(|problem| format!("{}: {problem}", table.display()))?;
    println!("{} kernels, none spills: {}", rows.len(), table.display());
    Ok(())
}

/// Kernels and what they use, from the lines that `ptxas -v` prints.
fn assemble(module: &Module, device: &str) -> Result<Vec<(String, Usage)>, String> {
    let output = Command::new("ptxas")
        .args(["-v", "-arch", device, "-o", "/dev/null", &file(module)])
        .output()
        .map_err(|problem| format!("ptxas: {problem}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() {
        return Err(format!("ptxas -arch {device} {}.ptx: {said}", module.name));
    }
    let before = |line: &str, unit: &str| -> u32 {
        let number = line.split(unit).next().and_then(|head| head.split_whitespace().last());
        if line.contains(unit) { number.and_then(|n| n.parse().ok()).unwrap_or(0) } else { 0 }
    };
    let (mut kernels, mut kernel, mut spilled) = (Vec::new(), String::new(), 0);
    for line in said.lines() {
        if let Some(name) = line.split("Compiling entry function '").nth(1) {
            kernel = name.split('\'').next().unwrap_or_default().to_owned();
        } else if line.contains("bytes spill stores") {
            spilled = before(line, " bytes spill stores") + before(line, " bytes spill loads");
        } else if line.contains(" registers") {
            let usage = Usage {
                registers: before(line, " registers"),
                shared_bytes: before(line, " bytes smem"),
                spilled_bytes: spilled,
            };
            kernels.push((std::mem::take(&mut kernel), usage));
        }
    }
    if kernels.is_empty() {
        Err(format!("ptxas says nothing of {}", module.name))
    } else {
        Ok(kernels)
    }
}

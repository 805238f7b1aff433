//! `conform`: see [`plumbline_conformance::cli`].
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    plumbline_conformance::cli::main()
}

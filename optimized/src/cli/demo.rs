use anyhow::Result;
#[derive(clap::Args)]
pub struct Demo {}
pub fn demo(_: &Demo) -> Result<std::process::ExitCode> { unimplemented!() }

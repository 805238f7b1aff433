//! The families on the command line.

use clap::Args;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use super::say;
use crate::error::Error;
use crate::families::{self, Family, Scope};

#[derive(Args)]
pub(super) struct FamilyArgs {
    /// An adversarial family in place of random draws (list --families).
    #[arg(long, value_name = "NAME")]
    pub(super) family: Vec<String>,
    /// Every adversarial family.
    #[arg(long, conflicts_with = "family")]
    pub(super) families: bool,
    /// All of a family whose default is a choice: millions of elements.
    #[arg(long)]
    exhaustive: bool,
}

impl FamilyArgs {
    /// The families that were asked for; none without an option that asks.
    pub(super) fn chosen(&self) -> Result<Vec<&'static Family>, Error> {
        if self.families {
            return Ok(families::all().collect());
        }
        if self.exhaustive && self.family.is_empty() {
            return Err(Error::Usage("--exhaustive is for --family and --families".to_owned()));
        }
        let found = self.family.iter().map(|name| families::find(name));
        found.collect::<Result<_, _>>().map_err(Error::Usage)
    }

    pub(super) fn scope(&self) -> Scope {
        Scope { exhaustive: self.exhaustive }
    }
}

pub(super) fn generate(chosen: &[&Family], scope: Scope, folder: &Path) -> Result<ExitCode, Error> {
    for family in chosen {
        let files = family.write(folder, scope)?;
        say(format!("wrote {} files of {} to {}", files.len(), family.name, folder.display()));
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn list(as_json: bool) -> Result<ExitCode, Error> {
    let mut rows = Vec::new();
    for family in families::all() {
        let mut ops: BTreeMap<&str, usize> = BTreeMap::new();
        for case in family.cases(Scope::default())? {
            *ops.entry(case.case.request.op.name).or_default() += 1;
        }
        rows.push((family, ops));
    }
    if as_json {
        let rows = rows.iter().map(|(family, ops)| {
            json!({
                "family": family.name,
                "what": family.what,
                "catches": family.catches,
                "cases": ops,
            })
        });
        say(json!({ "families": rows.collect::<Vec<Value>>() }));
        return Ok(ExitCode::SUCCESS);
    }
    for (family, ops) in rows {
        let count: usize = ops.values().sum();
        say(format!("{:<20}{count:>5} cases of {} operations", family.name, ops.len()));
        say(format!("    {}", family.what));
        say(format!("    catches {}", family.catches));
    }
    Ok(ExitCode::SUCCESS)
}

//! `conform properties`.

use clap::Args;
use serde_json::json;
use std::process::ExitCode;

use super::{SubjectArgs, say, select};
use crate::error::Error;
use crate::metamorphic::{self, Options, PROPERTIES, Property};
use crate::precision::{Precision, Products};

#[derive(Args)]
pub(super) struct Properties {
    /// reference, cpu, cuda-host, cuda, mutant:NAME, or exec:COMMAND LINE for anything outside.
    #[arg(long, required_unless_present = "list")]
    subject: Option<String>,
    /// Precision of the arithmetic; without it, the subject's first (see list).
    #[arg(long)]
    precision: Option<Precision>,
    /// Seconds that an outside subject has for one request.
    #[arg(long, default_value_t = 60.0, value_parser = super::seconds)]
    timeout: f64,
    /// Shows the properties and how strictly each is held, and runs nothing.
    #[arg(long)]
    list: bool,
    /// Trials of each property on each of its operations.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// The same seed gives the same requests.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Properties; all of them without it.
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Rows, tokens and inputs are drawn up to about this number.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u64).range(2..=4096))]
    size: u64,
    /// How often the property `deterministic` runs each request.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(2..))]
    repeats: u64,
    /// Holds the subject to sums whose order depends neither on the place in a tensor nor on what
    /// else is in the batch: bit for bit where others are held to the derived bounds.
    #[arg(long)]
    one_order: bool,
    /// Prints one JSON object instead of text.
    #[arg(long)]
    json: bool,
}

impl Properties {
    /// The arguments beside the subject that run a trial again, as the last of `count`.
    fn again(&self, name: &str, count: u64) -> String {
        let Self { seed, size, repeats, .. } = self;
        let one_order = if self.one_order { " --one-order" } else { "" };
        let trial = format!("--seed {seed} --only {name} --count {count}");
        format!("{trial} --size {size} --repeats {repeats}{one_order}")
    }
}

pub(super) fn properties(args: &Properties) -> Result<ExitCode, Error> {
    let chosen: Vec<&'static Property> = if args.only.is_empty() {
        PROPERTIES.iter().collect()
    } else {
        args.only.iter().map(|name| metamorphic::find(name)).collect::<Result<_, _>>()?
    };
    if args.list {
        list(&chosen, args.json);
        return Ok(ExitCode::SUCCESS);
    }
    let subject =
        args.subject.clone().ok_or_else(|| Error::Usage("--subject is missing".into()))?;
    let (precision, timeout) = (args.precision, args.timeout);
    let (mut subject, precision) = select(&SubjectArgs { subject, precision, timeout })?;
    if subject.products() != Products::AsStored {
        let name = subject.name();
        return Err(Error::Usage(format!(
            "subject is {name}, and properties allow no rounded factors; expected one without -bf16"
        )));
    }
    let options = Options {
        seed: args.seed,
        count: args.count,
        repeats: args.repeats as usize,
        size: args.size as usize,
        one_order: args.one_order,
    };
    let mut outcomes = Vec::new();
    for property in chosen {
        let outcome = property.run(subject.as_mut(), precision, options)?;
        if !args.json {
            say(&outcome);
            if let Some((_, number, _)) = &outcome.first {
                say(format!("     again: {}", args.again(property.name, number + 1)));
            }
        }
        outcomes.push(outcome);
    }
    let sum = |count: fn(&metamorphic::Outcome) -> u64| outcomes.iter().map(count).sum::<u64>();
    let (passed, failed) = (sum(|outcome| outcome.passed), sum(|outcome| outcome.failed));
    let skipped = sum(|outcome| outcome.skipped);
    if args.json {
        say(json!({
            "subject": subject.name(),
            "precision": precision.to_string(),
            "seed": args.seed,
            "counts": { "pass": passed, "fail": failed, "skip": skipped },
            "properties": outcomes.iter().map(|outcome| outcome.to_json()).collect::<Vec<_>>(),
        }));
    } else {
        let name = subject.name();
        say(format!("{name} {precision}: {passed} passed, {failed} failed, {skipped} skipped"));
    }
    Ok(ExitCode::from(u8::from(failed > 0)))
}

fn list(chosen: &[&'static Property], as_json: bool) {
    let strictness = |property: &Property| {
        property.equal.iter().map(|equal| equal.name()).collect::<Vec<_>>().join(", ")
    };
    if as_json {
        let rows = chosen.iter().map(|property| {
            json!({
                "name": property.name,
                "what": property.what,
                "equal": property.equal.iter().map(|equal| equal.name()).collect::<Vec<_>>(),
                "operations": property.on,
            })
        });
        say(json!({ "properties": rows.collect::<Vec<_>>() }));
        return;
    }
    for property in chosen {
        say(format!("{:<20}{:<20}{}", property.name, strictness(property), property.what));
    }
}

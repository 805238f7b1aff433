//! `conform hunt`.

use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

use super::{FamilyArgs, SubjectArgs, operations, say, select};
use crate::error::Error;
use crate::hunt::{Found, Hunt};
use crate::judge::report::{Counts, Status};
use crate::precision::Precision;
use crate::subject::Subject;

#[derive(Args)]
pub(super) struct HuntArgs {
    #[command(flatten)]
    subject: SubjectArgs,
    #[command(flatten)]
    families: FamilyArgs,
    /// Operations; all that the subject does without it.
    #[arg(long = "op", value_name = "NAME", conflicts_with_all = ["family", "families"])]
    ops: Vec<String>,
    /// Draws per operation, until one fails.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// The same seed draws the same cases.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number of the first draw.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// Most candidates to try while shrinking one failure.
    #[arg(long, default_value_t = 2000)]
    tries: usize,
    /// Folder for the shrunk cases.
    #[arg(long, default_value = "hunt")]
    out: PathBuf,
}

pub(super) fn hunt(args: &HuntArgs) -> Result<ExitCode, Error> {
    let (mut subject, precision) = select(&args.subject)?;
    let subject = subject.as_mut();
    let families = args.families.chosen()?;
    let counts = if families.is_empty() {
        draws(args, subject, precision)?
    } else {
        let mut counts = Counts::default();
        for family in families {
            for case in family.cases(args.families.scope())? {
                let report = case.judge(subject, precision);
                counts.add(&report);
                if matches!(report.status, Status::Fail { .. }) {
                    say(&report);
                }
            }
        }
        counts
    };
    say(format!("{} {precision}: {counts}", subject.name()));
    if counts.pass + counts.fail == 0 {
        return Err(Error::Usage(format!("{} does none of these operations", subject.name())));
    }
    Ok(ExitCode::from(u8::from(counts.fail > 0)))
}

fn draws(
    args: &HuntArgs,
    subject: &mut dyn Subject,
    precision: Precision,
) -> Result<Counts, Error> {
    let HuntArgs { seed, first, count, tries, .. } = *args;
    let settings = Hunt { seed, first, count, tries };
    let mut counts = Counts::default();
    for op in operations(&args.ops)? {
        let found = settings.operation(op, subject, precision, &args.out, &mut counts)?;
        if let Some(found) = found {
            say(&found);
            say(replay(args, &found, precision));
        }
    }
    Ok(counts)
}

/// The two commands that show the failure again: of the small case, and of the draw.
fn replay(args: &HuntArgs, found: &Found, precision: Precision) -> String {
    let quoted = |text: &str| match text.contains(|c: char| c.is_whitespace() || "'\"$".contains(c))
    {
        true => format!("'{}'", text.replace('\'', r"'\''")),
        false => text.to_owned(),
    };
    let subject = format!("--subject {} --precision {precision}", quoted(&args.subject.subject));
    let (file, out) = (found.smallest.file.display().to_string(), args.out.display().to_string());
    let (op, seed, number) = (found.smallest.request.op.name, args.seed, found.number);
    format!(
        "  again: conform check {} {subject}\n  \
         drawn: conform hunt {subject} --op {op} --seed {seed} --first {number} --count 1 --out {}",
        quoted(&file),
        quoted(&out),
    )
}

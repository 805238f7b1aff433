//! The text form: a TOML file with several small cases of one operation, checkable by hand.
//!
//! ```toml
//! format = "plumbline-case-1"
//! op = "fake_quantize.forward"
//! origin = "exact-rational 1"
//!
//! [notes.tie]
//! catches = "round half away from zero"
//!
//! [[case]]
//! id = "tie_at_2_5_goes_to_2"
//! flags = ["tie"]
//! params = { bits = 4, group_size = 2 }
//! in.weight = [[1.25, -1.25]]
//! in.scale = [[0.5]]
//! in.offset = [[0.0]]
//! out.codes = [[2, -2]]
//! out.output = [[1.0, -1.0]]
//! ```
//!
//! Nested arrays are tensors, a bare number is a tensor of shape `[]`. `expect_error = "text"`
//! takes the place of `out`: the subject must refuse with a message that contains the text. Every
//! flag of a case has its entry in `notes`; a key that is not shown here is an error.

use serde::Deserialize;
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use toml::Value;

use super::{Case, Expected, FORMAT, Request};
use crate::ops::{self, Operation};
use crate::params::Params;
use crate::tensor::{Data, Kind, Tensor, Tensors};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    op: String,
    origin: Option<String>,
    #[serde(default)]
    notes: BTreeMap<String, Note>,
    #[serde(default)]
    case: Vec<RawCase>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    catches: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCase {
    id: String,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    params: toml::Table,
    #[serde(rename = "in", default)]
    inputs: toml::Table,
    #[serde(rename = "out", default)]
    outputs: Option<toml::Table>,
    expect_error: Option<String>,
}

/// Parses every case of the file, without judging them against the registry's shapes.
pub(super) fn parse(path: &Path, text: &str) -> Result<Vec<Case>, String> {
    let file: File = toml::from_str(text).map_err(|e| {
        let line = e.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
        format!("line {line}: {}", e.message())
    })?;
    if file.format != FORMAT {
        return Err(format!("format is {:?}, expected {FORMAT:?}", file.format));
    }
    let op = ops::find(&file.op)?;
    if file.case.is_empty() {
        return Err("there is no [[case]]".to_owned());
    }
    let mut seen = BTreeSet::new();
    let cases = file.case.iter().map(|raw| {
        if raw.id.is_empty() || !seen.insert(&raw.id) {
            return Err(format!("case id {:?} is empty or used twice", raw.id));
        }
        one_case(path, &file, op, raw).map_err(|problem| format!("case {}: {problem}", raw.id))
    });
    cases.collect()
}

fn one_case(
    path: &Path,
    file: &File,
    op: &'static Operation,
    raw: &RawCase,
) -> Result<Case, String> {
    let mut notes = Vec::new();
    for flag in &raw.flags {
        let note = file.notes.get(flag);
        let note = note.ok_or_else(|| format!("flag {flag:?} has no entry in notes"))?;
        notes.push(format!("{flag}: catches {}", note.catches));
    }
    let params = match json("params", &Value::Table(raw.params.clone()))? {
        Json::Object(map) => Params(map),
        _ => unreachable!("a table becomes an object"),
    };
    let expected = match (&raw.outputs, &raw.expect_error) {
        (Some(_), Some(_)) => return Err("has both out and expect_error".to_owned()),
        (_, Some(message)) if message.is_empty() => {
            return Err("expect_error is empty, which every message contains".to_owned());
        }
        (_, Some(message)) => Expected::Refusal(message.clone()),
        (Some(table), None) => Expected::Outputs(tensors("out.", op, &params, table)?),
        (None, None) => Expected::Outputs(Tensors::new()),
    };
    let inputs = tensors("in.", op, &params, &raw.inputs)?;
    Ok(Case {
        file: path.to_owned(),
        id: raw.id.clone(),
        request: Request { op, params, inputs },
        expected,
        origin: file.origin.clone(),
        flags: raw.flags.clone(),
        note: (!notes.is_empty()).then(|| notes.join("; ")),
    })
}

/// A TOML value as JSON; JSON has no dates, NaN or infinity.
fn json(name: &str, value: &Value) -> Result<Json, String> {
    Ok(match value {
        Value::String(text) => Json::from(text.as_str()),
        Value::Integer(number) => Json::from(*number),
        Value::Boolean(truth) => Json::from(*truth),
        Value::Float(number) => match serde_json::Number::from_f64(*number) {
            Some(number) => Json::Number(number),
            None => return Err(format!("{name} is {number}, expected a finite number")),
        },
        Value::Datetime(date) => return Err(format!("{name} is {date}, expected no date")),
        Value::Array(items) => {
            items.iter().map(|item| json(name, item)).collect::<Result<Vec<_>, _>>()?.into()
        }
        Value::Table(table) => {
            let pairs = table.iter().map(|(key, value)| {
                json(&format!("{name}.{key}"), value).map(|value| (key.clone(), value))
            });
            Json::Object(pairs.collect::<Result<_, _>>()?)
        }
    })
}

fn tensors(
    prefix: &str,
    op: &Operation,
    params: &Params,
    table: &toml::Table,
) -> Result<Tensors, String> {
    let pairs = table.iter().map(|(name, value)| {
        let kind = op.kind_of(name, params);
        tensor(kind, value)
            .map(|tensor| (name.clone(), tensor))
            .map_err(|problem| format!("{prefix}{name} {problem}"))
    });
    pairs.collect()
}

/// Nested arrays of numbers, all of the same depth and length per level.
fn tensor(kind: Kind, value: &Value) -> Result<Tensor, String> {
    let mut shape = Vec::new();
    let mut level = value;
    while let Value::Array(items) = level {
        shape.push(items.len());
        let Some(first) = items.first() else { break };
        level = first;
    }
    let mut data = match kind {
        Kind::Float => Data::F64(Vec::new()),
        Kind::SignedCodes => Data::I8(Vec::new()),
        Kind::UnsignedCodes => Data::U8(Vec::new()),
        Kind::TokenIds => Data::I32(Vec::new()),
    };
    flatten(value, &shape, kind, &mut data)?;
    Tensor::new(shape, data)
}

fn flatten(value: &Value, shape: &[usize], kind: Kind, data: &mut Data) -> Result<(), String> {
    match (value, shape) {
        (Value::Array(items), [length, rest @ ..]) if items.len() == *length => {
            items.iter().try_for_each(|item| flatten(item, rest, kind, data))
        }
        (Value::Array(items), [length, ..]) => {
            Err(format!("is ragged: a row of {} beside a row of {length}", items.len()))
        }
        (Value::Array(_), []) | (_, [_, ..]) => {
            Err("is ragged: a number stands beside an array".to_owned())
        }
        (number, []) => push(number, kind, data),
    }
}

fn push(value: &Value, kind: Kind, data: &mut Data) -> Result<(), String> {
    let wrong = || format!("holds {value}, expected a {}", kind.word());
    match (data, value) {
        (Data::F64(floats), Value::Float(number)) => floats.push(*number),
        (Data::F64(floats), Value::Integer(number)) => {
            // Every integer up to here is a binary64.
            if number.unsigned_abs() > 1 << 53 {
                return Err(wrong());
            }
            floats.push(*number as f64);
        }
        (Data::I8(codes), Value::Integer(number)) => {
            codes.push(i8::try_from(*number).map_err(|_| wrong())?);
        }
        (Data::U8(codes), Value::Integer(number)) => {
            codes.push(u8::try_from(*number).map_err(|_| wrong())?);
        }
        (Data::I32(ids), Value::Integer(number)) => {
            ids.push(i32::try_from(*number).map_err(|_| wrong())?);
        }
        _ => return Err(wrong()),
    }
    Ok(())
}

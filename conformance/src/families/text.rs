//! Refused cases in the text form, which alone can hold a NaN and expect an error.

use serde_json::Value as Json;
use std::collections::BTreeMap;
use toml::{Table, Value};

use super::Family;
use crate::case::{Case, Expected, FORMAT};
use crate::generate::ORIGIN;
use crate::params::Params;
use crate::tensor::{Data, Tensor};

/// One file per operation, by its name.
pub(super) fn files(family: &Family, cases: &[Case]) -> BTreeMap<&'static str, String> {
    let mut by_op: BTreeMap<&'static str, Vec<Value>> = BTreeMap::new();
    for case in cases {
        if let Expected::Refusal(text) = &case.expected {
            by_op.entry(case.request.op.name).or_default().push(one_case(family, case, text));
        }
    }
    by_op.into_iter().map(|(op, cases)| (op, file(family, op, cases))).collect()
}

fn file(family: &Family, op: &str, cases: Vec<Value>) -> String {
    let text = |text: &str| Value::String(text.to_owned());
    let note = Table::from_iter([("catches".to_owned(), text(family.catches))]);
    let notes = Table::from_iter([(family.name.to_owned(), Value::Table(note))]);
    let file = Table::from_iter([
        ("format".to_owned(), text(FORMAT)),
        ("op".to_owned(), text(op)),
        ("origin".to_owned(), text(ORIGIN)),
        ("notes".to_owned(), Value::Table(notes)),
        ("case".to_owned(), Value::Array(cases)),
    ]);
    file.to_string()
}

fn one_case(family: &Family, case: &Case, refusal: &str) -> Value {
    let inputs = case.request.inputs.iter().map(|(name, tensor)| (name.clone(), nested(tensor)));
    Value::Table(Table::from_iter([
        ("id".to_owned(), Value::String(case.id.clone())),
        ("flags".to_owned(), Value::Array(vec![Value::String(family.name.to_owned())])),
        ("params".to_owned(), params(&case.request.params)),
        ("in".to_owned(), Value::Table(inputs.collect())),
        ("expect_error".to_owned(), Value::String(refusal.to_owned())),
    ]))
}

/// TOML has no null; a parameter that is null may be left out.
fn params(params: &Params) -> Value {
    Value::Table(
        params.0.iter().filter_map(|(name, v)| Some((name.clone(), toml_of(v)?))).collect(),
    )
}

fn toml_of(value: &Json) -> Option<Value> {
    Some(match value {
        Json::Null => return None,
        Json::Bool(truth) => Value::Boolean(*truth),
        Json::Number(number) => match number.as_i64() {
            Some(whole) => Value::Integer(whole),
            None => Value::Float(number.as_f64()?),
        },
        Json::String(text) => Value::String(text.clone()),
        Json::Array(items) => Value::Array(items.iter().filter_map(toml_of).collect()),
        Json::Object(map) => {
            let pairs = map.iter().filter_map(|(name, v)| Some((name.clone(), toml_of(v)?)));
            Value::Table(pairs.collect())
        }
    })
}

fn nested(tensor: &Tensor) -> Value {
    let is_float = !matches!(tensor.data(), Data::I8(_) | Data::U8(_) | Data::I32(_));
    let number = |index: usize| {
        let value = tensor.value(index);
        if is_float { Value::Float(value) } else { Value::Integer(value as i64) }
    };
    let mut values: Vec<Value> = (0..tensor.len()).map(number).collect();
    for size in tensor.shape().iter().skip(1).rev() {
        values = values.chunks((*size).max(1)).map(|row| Value::Array(row.to_vec())).collect();
    }
    match tensor.shape() {
        [] => values.remove(0),
        _ => Value::Array(values),
    }
}

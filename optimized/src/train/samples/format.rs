//! What a record says, as text of which some is learnt. docs/data.md has the templates.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A piece of a sample's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// As the model reads it.
    pub text: String,
    /// Whether it is an answer, which is learnt.
    pub is_answer: bool,
}

/// How the turns of a chat are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChatTemplate {
    /// `### User:` and so on, as in instructions.
    #[default]
    Plain,
    /// `<|im_start|>role`, for tokenizers that have these tokens.
    Chatml,
}

/// What a file holds, with what ends an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SampleFormat {
    /// `instruction`, `input`, `output`.
    Alpaca {
        /// Written after an answer.
        end: String,
    },
    /// `messages` of `role` and `content`.
    Messages {
        /// How turns are written.
        template: ChatTemplate,
        /// Written after an answer; ChatML has its own.
        end: String,
    },
}

/// Opens a turn of ChatML.
pub const CHATML_START: &str = "<|im_start|>";
/// Closes a turn of ChatML.
pub const CHATML_END: &str = "<|im_end|>";

const ALPACA: &str = "Below is an instruction that describes a task. \
    Write a response that appropriately completes the request.";
const ALPACA_WITH_INPUT: &str = "Below is an instruction that describes a task, \
    paired with an input that provides further context. \
    Write a response that appropriately completes the request.";

impl SampleFormat {
    /// The text of a record; what is wrong with it otherwise.
    ///
    /// # Errors
    /// The field, and what was expected there.
    pub fn spans(&self, record: &Value) -> Result<Vec<Span>, String> {
        let Value::Object(record) = record else {
            return Err(format!("expected an object, found {}", kind(record)));
        };
        match self {
            Self::Alpaca { end } => alpaca(record, end),
            Self::Messages { template, end } => messages(record, *template, end),
        }
    }
}

fn context(text: String) -> Span {
    Span { text, is_answer: false }
}

fn answer(text: String) -> Span {
    Span { text, is_answer: true }
}

fn alpaca(record: &Map<String, Value>, end: &str) -> Result<Vec<Span>, String> {
    let instruction = string(record, "instruction")?;
    let output = string(record, "output")?;
    let input = match record.get("input") {
        None | Some(Value::Null) => "",
        Some(_) => string(record, "input")?,
    };
    let prompt = if input.trim().is_empty() {
        format!("{ALPACA}\n\n### Instruction:\n{instruction}\n\n### Response:\n")
    } else {
        format!(
            "{ALPACA_WITH_INPUT}\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n\
             ### Response:\n"
        )
    };
    Ok(vec![context(prompt), learnt(output, end)])
}

/// An answer and its end; nothing where there is no answer.
fn learnt(text: &str, end: &str) -> Span {
    answer(if text.trim().is_empty() { String::new() } else { format!("{text}{end}") })
}

fn messages(
    record: &Map<String, Value>,
    template: ChatTemplate,
    end: &str,
) -> Result<Vec<Span>, String> {
    let turns = match record.get("messages") {
        Some(Value::Array(turns)) => turns,
        Some(other) => return Err(format!("messages is {}, expected an array", kind(other))),
        None => return Err("has no messages".into()),
    };
    let mut spans = Vec::with_capacity(3 * turns.len());
    for (index, turn) in turns.iter().enumerate() {
        let in_turn = |reason| format!("messages[{index}]: {reason}");
        let Value::Object(turn) = turn else {
            return Err(in_turn(format!("expected an object, found {}", kind(turn))));
        };
        let role = string(turn, "role").map_err(in_turn)?;
        let content = string(turn, "content").map_err(in_turn)?;
        let heading = match role {
            "system" => "### System:\n",
            "user" => "### User:\n",
            "assistant" => "### Assistant:\n",
            _ => {
                let reason = format!("role is {role:?}, expected system, user or assistant");
                return Err(in_turn(reason));
            }
        };
        let is_answer = role == "assistant";
        let (before, body, after) = match template {
            ChatTemplate::Plain if is_answer => (heading.into(), learnt(content, end), "\n\n"),
            ChatTemplate::Plain => (heading.into(), context(content.into()), "\n\n"),
            ChatTemplate::Chatml => {
                let before = format!("{CHATML_START}{role}\n");
                let turn = format!("{content}{CHATML_END}");
                let body = if is_answer { learnt(content, CHATML_END) } else { context(turn) };
                (before, body, "\n")
            }
        };
        spans.extend([context(before), body, context(after.into())]);
    }
    Ok(spans)
}

fn string<'a>(record: &'a Map<String, Value>, field: &str) -> Result<&'a str, String> {
    match record.get(field) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("{field} is {}, expected a string", kind(other))),
        None => Err(format!("has no {field}")),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn text(format: &SampleFormat, record: Value) -> String {
        let mark = |span: Span| if span.is_answer { format!("[{}]", span.text) } else { span.text };
        format.spans(&record).unwrap().into_iter().map(mark).collect()
    }

    #[test]
    fn an_instruction_is_written_in_its_template_and_its_answer_ends() {
        let alpaca = SampleFormat::Alpaca { end: "</s>".into() };
        let without = json!({ "instruction": "Add.", "input": " ", "output": "4", "id": 7 });
        assert_eq!(
            text(&alpaca, without),
            "Below is an instruction that describes a task. Write a response that appropriately \
             completes the request.\n\n### Instruction:\nAdd.\n\n### Response:\n[4</s>]"
        );
        let with = json!({ "instruction": "Add.", "input": "2 2", "output": "4" });
        assert_eq!(
            text(&alpaca, with),
            "Below is an instruction that describes a task, paired with an input that provides \
             further context. Write a response that appropriately completes the request.\n\n\
             ### Instruction:\nAdd.\n\n### Input:\n2 2\n\n### Response:\n[4</s>]"
        );
        let null = json!({ "instruction": "Add.", "input": null, "output": " " });
        assert!(text(&alpaca, null).ends_with("### Response:\n[]"), "no answer has no end");
    }

    #[test]
    fn a_chat_is_written_in_either_template_and_every_answer_is_learnt() {
        let chat = || {
            let turn = |role: &str, content: &str| json!({ "role": role, "content": content });
            let turns = [turn("system", "Be brief."), turn("user", "Hi"), turn("assistant", "Yes")];
            json!({ "messages": turns })
        };
        let of = |template, end: &str| SampleFormat::Messages { template, end: end.into() };
        assert_eq!(
            text(&of(ChatTemplate::Plain, "</s>"), chat()),
            "### System:\nBe brief.\n\n### User:\nHi\n\n### Assistant:\n[Yes</s>]\n\n"
        );
        assert_eq!(
            text(&of(ChatTemplate::Chatml, ""), chat()),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
             <|im_start|>assistant\n[Yes<|im_end|>]\n"
        );
    }

    #[test]
    fn a_record_of_another_shape_names_its_field() {
        let alpaca = SampleFormat::Alpaca { end: String::new() };
        let plain = SampleFormat::Messages { template: ChatTemplate::Plain, end: String::new() };
        for (format, record, expected) in [
            (&alpaca, json!([]), "expected an object, found an array"),
            (&alpaca, json!({ "instruction": "a" }), "has no output"),
            (&alpaca, json!({ "output": "a", "instruction": 3 }), "instruction is a number"),
            (
                &alpaca,
                json!({ "instruction": "", "output": "", "input": {} }),
                "input is an object, expected a string",
            ),
            (&plain, json!({ "conversations": [] }), "has no messages"),
            (&plain, json!({ "messages": "a" }), "messages is a string, expected an array"),
            (&plain, json!({ "messages": [1] }), "messages[0]: expected an object"),
            (
                &plain,
                json!({ "messages": [{ "role": "tool", "content": "" }] }),
                "messages[0]: role is \"tool\", expected system, user or assistant",
            ),
            (
                &plain,
                json!({ "messages": [{ "role": "user", "content": null }] }),
                "messages[0]: content is null, expected a string",
            ),
        ] {
            let error = format.spans(&record).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}

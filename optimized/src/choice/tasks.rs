//! The files that questions come in, each as its authors publish it, and the words they are asked in.
//!
//! Wording: the tasks of lm-evaluation-harness 0.4, so that figures can be compared.

use std::path::Path;

use serde_json::Value;

use super::{Choice, Item};
use crate::error::{Error, Result};

/// Something read from a file, or what is wrong with it.
type Parsed<T> = std::result::Result<T, String>;

/// A set of questions by its file format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// ARC and OpenBookQA, JSON lines: `question.stem`, `question.choices[].text` and `.label`,
    /// `answerKey`.
    Arc,
    /// The same without the words `Question:` and `Answer:`.
    OpenBookQa,
    /// JSON lines: `goal`, `sol1`, `sol2`, `label` 0 or 1.
    Piqa,
    /// JSON lines: `activity_label`, `ctx_a`, `ctx_b`, `endings`, `label`.
    HellaSwag,
    /// JSON lines: `sentence` with `_`, `option1`, `option2`, `answer` "1" or "2".
    WinoGrande,
    /// JSON lines: `passage`, `question`, `answer` true or false.
    BoolQ,
    /// Comma-separated without a header: question, four choices, letter.
    Mmlu,
    /// A JSON array with `instruction`, which ends with `Answer format: a/b/...`, and `answer`.
    Instruction,
}

impl Task {
    /// Every format with its name.
    pub const ALL: [(&'static str, Self); 8] = [
        ("arc", Self::Arc),
        ("openbookqa", Self::OpenBookQa),
        ("piqa", Self::Piqa),
        ("hellaswag", Self::HellaSwag),
        ("winogrande", Self::WinoGrande),
        ("boolq", Self::BoolQ),
        ("mmlu", Self::Mmlu),
        ("instruction", Self::Instruction),
    ];

    /// Reads the questions of a file.
    ///
    /// # Errors
    /// `Io`; `File` with the question's number, field and value.
    pub fn read(self, path: &Path) -> Result<Vec<Item>> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
        self.parse(path, &text).map_err(|reason| Error::file(path, reason))
    }

    fn parse(self, path: &Path, text: &str) -> Parsed<Vec<Item>> {
        let subject = || {
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let name = ["_test", "_val", "_dev"].iter().find_map(|end| stem.strip_suffix(end));
            name.unwrap_or(&stem).replace('_', " ")
        };
        if self == Self::Mmlu {
            let mut rows =
                csv::ReaderBuilder::new().has_headers(false).from_reader(text.as_bytes());
            let subject = subject();
            return rows
                .records()
                .enumerate()
                .map(|(i, row)| {
                    let row = row.map_err(|error| error.to_string())?;
                    mmlu(&subject, &row).map_err(|reason| format!("row {}: {reason}", i + 1))
                })
                .collect();
        }
        let values: Vec<(String, Value)> = if self == Self::Instruction {
            let list: Vec<Value> = serde_json::from_str(text).map_err(|error| error.to_string())?;
            list.into_iter().enumerate().map(|(i, value)| (format!("item {i}"), value)).collect()
        } else {
            let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
            let value = |(i, line)| {
                let place = format!("line {}", i + 1);
                let value = serde_json::from_str(line).map_err(|e| format!("{place}: {e}"))?;
                Ok::<_, String>((place, value))
            };
            lines.map(value).collect::<Parsed<_>>()?
        };
        let item = |(place, value): (String, Value)| {
            self.item(&Fields(&value)).map_err(|reason| format!("{place}: {reason}"))
        };
        values.into_iter().map(item).collect()
    }

    fn item(self, fields: &Fields<'_>) -> Parsed<Item> {
        match self {
            Self::Arc => lettered(fields, |stem| format!("Question: {stem}\nAnswer:")),
            Self::OpenBookQa => lettered(fields, str::to_owned),
            Self::Piqa => {
                let context = format!("Question: {}\nAnswer:", fields.text("goal")?);
                let texts = [fields.text("sol1")?, fields.text("sol2")?];
                of_texts(&context, &texts, fields.place("label", 2)?)
            }
            Self::HellaSwag => {
                let second = fields.text("ctx_b")?;
                let mut letters = second.chars();
                let second: String = letters
                    .next()
                    .into_iter()
                    .flat_map(char::to_uppercase)
                    .chain(letters.flat_map(char::to_lowercase))
                    .collect();
                let context = format!(
                    "{}: {} {second}",
                    fields.text("activity_label")?,
                    fields.text("ctx_a")?
                );
                let endings: Vec<String> =
                    fields.texts("endings")?.into_iter().map(plain_text).collect();
                let endings: Vec<&str> = endings.iter().map(String::as_str).collect();
                of_texts(&plain_text(&context), &endings, fields.place("label", endings.len())?)
            }
            Self::WinoGrande => winogrande(fields),
            Self::BoolQ => {
                let (passage, question) = (fields.text("passage")?, fields.text("question")?);
                let context = format!("{passage}\nQuestion: {question}?\nAnswer:");
                let answer = fields.get("answer")?;
                let answer = answer.as_bool().ok_or(format!("answer is {answer}, not a bool"))?;
                of_texts(&context, &["no", "yes"], usize::from(answer))
            }
            Self::Instruction => {
                let (instruction, answer) = (fields.text("instruction")?, fields.text("answer")?);
                let (_, format) = instruction
                    .rsplit_once("Answer format:")
                    .ok_or("instruction has no \"Answer format:\"")?;
                let labels: Vec<&str> = format.trim().split('/').collect();
                let place = labels.iter().position(|label| *label == answer);
                let place = place.ok_or(format!("answer is {answer:?}, none of {labels:?}"))?;
                let texts: Vec<String> =
                    labels.iter().map(|label| format!("the correct answer is {label}")).collect();
                let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                of_texts(&format!("{instruction}\n"), &texts, place)
            }
            Self::Mmlu => unreachable!("rows are not objects"),
        }
    }
}

fn of_texts(context: &str, texts: &[&str], answer: usize) -> Parsed<Item> {
    if texts.iter().any(|text| text.trim().is_empty()) {
        return Err("a choice is empty".into());
    }
    let choices = texts.iter().map(|text| Choice::new(context, text)).collect();
    Ok(Item { choices, answer })
}

/// A question whose choices have letters.
fn lettered(fields: &Fields<'_>, context: impl Fn(&str) -> String) -> Parsed<Item> {
    let question = Fields(fields.get("question")?);
    let choices = question.get("choices")?;
    let choices = choices.as_array().ok_or("question.choices is not a list")?;
    let texts: Vec<&str> =
        choices.iter().map(|choice| Fields(choice).text("text")).collect::<Parsed<_>>()?;
    let labels: Vec<&str> =
        choices.iter().map(|choice| Fields(choice).text("label")).collect::<Parsed<_>>()?;
    let key = fields.text("answerKey")?;
    let answer = labels.iter().position(|label| *label == key);
    let answer = answer.ok_or(format!("answerKey is {key:?}, none of {labels:?}"))?;
    of_texts(&context(question.text("stem")?), &texts, answer)
}

/// Each option is filled in, and the rest of the sentence is judged.
fn winogrande(fields: &Fields<'_>) -> Parsed<Item> {
    let sentence = fields.text("sentence")?;
    let (before, after) = sentence
        .split_once('_')
        .ok_or(format!("sentence is {sentence:?}, expected one with a _"))?;
    let answer = match fields.text("answer")? {
        "1" => 0,
        "2" => 1,
        other => return Err(format!("answer is {other:?}, expected \"1\" or \"2\"")),
    };
    let rest = after.trim();
    if rest.is_empty() {
        return Err("nothing follows the _ of sentence".into());
    }
    let options = [fields.text("option1")?, fields.text("option2")?];
    let choices = options.map(|option| Choice::new(format!("{before}{option}"), rest)).to_vec();
    Ok(Item { choices, answer })
}

fn mmlu(subject: &str, row: &csv::StringRecord) -> Parsed<Item> {
    const LETTERS: [&str; 4] = ["A", "B", "C", "D"];
    if row.len() != 6 {
        return Err(format!("{} columns, expected 6", row.len()));
    }
    let answer = LETTERS.iter().position(|letter| *letter == &row[5]);
    let answer = answer.ok_or(format!("the answer is {:?}, expected A to D", &row[5]))?;
    let lines: String =
        LETTERS.iter().zip(1..5).map(|(letter, i)| format!("{letter}. {}\n", &row[i])).collect();
    let head =
        format!("The following are multiple choice questions (with answers) about {subject}.");
    of_texts(&format!("{head}\n\n{}\n{lines}Answer:", row[0].trim()), &LETTERS, answer)
}

/// HellaSwag's texts without the marks of their source.
fn plain_text(text: impl AsRef<str>) -> String {
    let text = text.as_ref().trim().replace(" [title]", ". ");
    let mut plain = String::new();
    let mut rest = text.as_str();
    while let Some((before, mark)) = rest.split_once('[') {
        let Some((_, after)) = mark.split_once(']') else { break };
        plain += before;
        rest = after;
    }
    plain += rest;
    plain.replace("  ", " ")
}

/// The fields of an object.
struct Fields<'a>(&'a Value);

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Parsed<&'a Value> {
        self.0.get(name).ok_or(format!("has no field {name}"))
    }

    fn text(&self, name: &str) -> Parsed<&'a str> {
        let value = self.get(name)?;
        value.as_str().ok_or(format!("{name} is {value}, expected a text"))
    }

    fn texts(&self, name: &str) -> Parsed<Vec<&'a str>> {
        let value = self.get(name)?;
        let list: Option<Vec<&str>> =
            value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        list.filter(|list| !list.is_empty()).ok_or(format!("{name} is {value}, expected texts"))
    }

    /// A place among `count` choices, as a number or as text.
    fn place(&self, name: &str, count: usize) -> Parsed<usize> {
        let value = self.get(name)?;
        let place = match value {
            Value::String(text) => text.parse().ok(),
            value => value.as_u64().map(|place| place as usize),
        };
        place
            .filter(|place| *place < count)
            .ok_or(format!("{name} is {value}, expected 0 to {}", count - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(task: Task, text: &str) -> Item {
        let items = task.parse(Path::new("high_school_physics_test.csv"), text).unwrap();
        assert_eq!(items.len(), 1);
        items.into_iter().next().unwrap()
    }

    #[test]
    fn each_format_as_it_is_published() {
        let arc = one(
            Task::Arc,
            r#"{"id":"x","question":{"stem":"Why?","choices":[{"text":"so","label":"A"},{"text":"not","label":"B"}]},"answerKey":"B"}"#,
        );
        assert_eq!(arc.choices[1], Choice::new("Question: Why?\nAnswer:", "not"));
        assert_eq!((arc.answer, arc.choices[1].characters), (1, 3));
        let piqa = one(Task::Piqa, r#"{"goal":"open","sol1":"pull","sol2":"push","label":0}"#);
        assert_eq!(piqa.choices[0], Choice::new("Question: open\nAnswer:", "pull"));
        let swag = one(
            Task::HellaSwag,
            r#"{"activity_label":"Run","ctx_a":"He [header] ran [title] fast.","ctx_b":"he","endings":["a [step] b","c"],"label":"1"}"#,
        );
        assert_eq!(swag.choices[0], Choice::new("Run: He ran. fast. He", "a b"));
        assert_eq!(swag.answer, 1);
        let grande = one(
            Task::WinoGrande,
            r#"{"sentence":"Ann met Eve, _ was late.","option1":"Ann","option2":"Eve","answer":"2"}"#,
        );
        assert_eq!(grande.choices[1], Choice::new("Ann met Eve, Eve", "was late."));
        let boolq = one(Task::BoolQ, r#"{"passage":"P.","question":"is it","answer":true}"#);
        assert_eq!(
            boolq.choices[boolq.answer],
            Choice::new("P.\nQuestion: is it?\nAnswer:", "yes")
        );
        let mmlu = one(Task::Mmlu, "\"What, then?\",w,x,y,z,C\n");
        let head =
            "The following are multiple choice questions (with answers) about high school physics.";
        let context = format!("{head}\n\nWhat, then?\nA. w\nB. x\nC. y\nD. z\nAnswer:");
        assert_eq!((mmlu.answer, &mmlu.choices[2]), (2, &Choice::new(context, "C")));
        let instruction = one(
            Task::Instruction,
            r#"[{"instruction":"Q: s1 s2\n\nAnswer format: s1/s2","answer":"s2"}]"#,
        );
        assert_eq!(instruction.choices[1].continuation, " the correct answer is s2");
        assert_eq!(instruction.answer, 1);
    }

    #[test]
    fn a_bad_question_is_named() {
        for (task, text, message) in [
            (Task::Piqa, "\n{\"goal\":\"g\"}", "line 2: has no field sol1"),
            (Task::Piqa, r#"{"goal":"g","sol1":"a","sol2":"b","label":2}"#, "label is 2"),
            (Task::Piqa, r#"{"goal":"g","sol1":"","sol2":"b","label":1}"#, "a choice is empty"),
            (Task::WinoGrande, r#"{"sentence":"no gap","answer":"1"}"#, "no gap"),
            (Task::Mmlu, "a,b,c\n", "row 1: 3 columns"),
            (Task::Mmlu, "q,a,b,c,d,E\n", "expected A to D"),
            (Task::BoolQ, r#"{"passage":"p","question":"q","answer":"yes"}"#, "not a bool"),
            (Task::Instruction, "{}", "expected a sequence"),
        ] {
            let error = task.parse(Path::new("x"), text).unwrap_err();
            assert!(error.contains(message), "{error}");
        }
    }
}

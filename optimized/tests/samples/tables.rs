//! Parquet files hold the samples that JSON lines hold, and what is wrong with one is said with its
//! column and row.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parquet::basic::{Compression, Encoding, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, Int64Type};
use parquet::file::properties::{WriterProperties, WriterVersion};
use parquet::file::writer::{SerializedColumnWriter, SerializedFileWriter};
use parquet::schema::parser::parse_message_type;
use plumbline::train::parquet::{is_parquet, texts, token_ids};
use plumbline::train::samples::{Encoder, LossOn, SampleFormat, Samples, TooLong};
use serde_json::{Value, json};

use super::{CONTEXT, END, Place, chat, chats, encoder, windows, write_lines};

/// A leaf with its levels: repetition, definition, value.
type Entry<'a> = (i16, i16, Option<&'a str>);

/// How the pages of a file are written.
#[derive(Debug, Clone, Copy)]
struct Written {
    compression: Compression,
    version: WriterVersion,
    /// Absent for a dictionary.
    encoding: Option<Encoding>,
}

const PLAIN: Written = Written {
    compression: Compression::UNCOMPRESSED,
    version: WriterVersion::PARQUET_1_0,
    encoding: None,
};

/// Every way that matters to how a page is read.
fn ways() -> Vec<Written> {
    let compressions =
        [Compression::UNCOMPRESSED, Compression::SNAPPY, Compression::ZSTD(ZstdLevel::default())];
    let versions = [WriterVersion::PARQUET_1_0, WriterVersion::PARQUET_2_0];
    let delta = [Encoding::DELTA_BYTE_ARRAY, Encoding::DELTA_LENGTH_BYTE_ARRAY, Encoding::PLAIN];
    let of = |compression| {
        let of = move |version| Written { compression, version, encoding: None };
        versions.map(of)
    };
    let deltas = delta.map(|encoding| Written { encoding: Some(encoding), ..PLAIN });
    compressions.into_iter().flat_map(of).chain(deltas).collect()
}

/// Writes a file of leaves of strings, row group after row group.
fn write(path: &Path, schema: &str, groups: &[Vec<Vec<Entry<'_>>>], written: Written) {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = WriterProperties::builder().set_compression(written.compression);
    let properties = properties.set_writer_version(written.version);
    let properties = match written.encoding {
        Some(encoding) => properties.set_dictionary_enabled(false).set_encoding(encoding).build(),
        None => properties.build(),
    };
    let file = File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::new(properties)).unwrap();
    for leaves in groups {
        let mut group = writer.next_row_group().unwrap();
        for leaf in leaves {
            let mut column = group.next_column().unwrap().unwrap();
            write_leaf(&mut column, leaf);
            column.close().unwrap();
        }
        group.close().unwrap();
    }
    writer.close().unwrap();
}

fn write_leaf(column: &mut SerializedColumnWriter<'_>, leaf: &[Entry<'_>]) {
    let values: Vec<ByteArray> =
        leaf.iter().filter_map(|(_, _, value)| value.map(ByteArray::from)).collect();
    let definitions: Vec<i16> = leaf.iter().map(|(_, definition, _)| *definition).collect();
    let repetitions: Vec<i16> = leaf.iter().map(|(repetition, _, _)| *repetition).collect();
    let column = column.typed::<ByteArrayType>();
    column.write_batch(&values, Some(&definitions), Some(&repetitions)).unwrap();
}

/// Lists as the Parquet documents have them, and as older programs write them.
const MESSAGES: &str = "message schema { optional group messages (LIST) { repeated group list {
    optional group element { optional binary content (UTF8); optional binary role (UTF8); } } } }";
const OLD_MESSAGES: &str = "message schema { required binary id; required group messages (LIST) {
    repeated group array { required binary role (UTF8); required binary content (UTF8); } } }";

/// Chats as leaves of content and role, with the definition level of a value.
fn leaves(chats: &[Value], value: i16) -> [Vec<Entry<'_>>; 2] {
    ["content", "role"].map(|field| {
        let mut leaf = Vec::new();
        for chat in chats {
            for (index, turn) in chat["messages"].as_array().unwrap().iter().enumerate() {
                leaf.push((i16::from(index > 0), value, turn[field].as_str()));
            }
        }
        leaf
    })
}

impl Place {
    fn at(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn open_parquet(&self, name: &str) -> plumbline::error::Result<Samples> {
        Samples::open(&[self.at(name)], encoder(&self.tokenizer, CONTEXT), windows(true))
    }

    fn alpaca(&self, name: &str) -> plumbline::error::Result<Samples> {
        let encoder = Encoder {
            format: SampleFormat::Alpaca { end: END.into() },
            loss: LossOn::Response,
            too_long: TooLong::Cut,
            context: 512,
            vocab_size: 280,
            tokenizer: self.tokenizer.clone(),
        };
        Samples::open(&[self.at(name)], encoder, windows(true))
    }
}

/// More rows than are read together, in row groups of unequal sizes, one of them empty.
#[test]
fn nested_messages_are_the_samples_that_json_lines_are() {
    let place = Place::new();
    let all: Vec<Value> = (0..40).flat_map(|_| chats()).collect();
    write_lines(&place.at("chats.jsonl"), &all);
    let mut lines = place.open_parquet("chats.jsonl").unwrap();
    for written in ways() {
        let parts = [&all[..600], &[], &all[600..601], &all[601..]];
        let groups = parts.map(|part| leaves(part, 4).to_vec());
        // What a file is called does not matter.
        write(&place.at("chats.jsonl.bak"), MESSAGES, &groups, written);
        let mut table = place.open_parquet("chats.jsonl.bak").unwrap();
        assert_eq!(table.report(), lines.report(), "{written:?}");
        assert_eq!(table.fingerprint(), lines.fingerprint());
        // The table itself is not read again.
        fs::remove_file(place.at("chats.jsonl.bak")).unwrap();
        for number in 0..table.windows_per_epoch() as u64 {
            assert_eq!(table.batch(number, 1).unwrap(), lines.batch(number, 1).unwrap());
        }
    }
    let [content, role] = leaves(&all, 1);
    let id: Vec<Entry<'_>> = all.iter().map(|_| (0, 0, Some("x"))).collect();
    write(&place.at("old"), OLD_MESSAGES, &[vec![id, role, content]], PLAIN);
    assert_eq!(place.open_parquet("old").unwrap().fingerprint(), lines.fingerprint());
}

const ALPACA: &str = "message schema { optional binary output (UTF8); required int64 n;
    optional binary instruction (UTF8); optional binary input (UTF8); }";

/// A file of instructions; absent values are null.
fn write_alpaca(path: &Path, rows: &[[Option<&str>; 3]]) {
    let schema = Arc::new(parse_message_type(ALPACA).unwrap());
    let file = File::create(path).unwrap();
    let mut writer = SerializedFileWriter::new(file, schema, Arc::default()).unwrap();
    let mut group = writer.next_row_group().unwrap();
    for field in [Some(2), None, Some(0), Some(1)] {
        let mut column = group.next_column().unwrap().unwrap();
        match field {
            Some(field) => {
                let leaf: Vec<Entry<'_>> = rows
                    .iter()
                    .map(|row| (0, i16::from(row[field].is_some()), row[field]))
                    .collect();
                write_leaf(&mut column, &leaf);
            }
            None => {
                let numbers: Vec<i64> = (0..rows.len() as i64).collect();
                column.typed::<Int64Type>().write_batch(&numbers, None, None).unwrap();
            }
        }
        column.close().unwrap();
    }
    group.close().unwrap();
    writer.close().unwrap();
}

#[test]
fn instructions_have_the_input_that_is_not_null() {
    let place = Place::new();
    let rows = [
        [Some("Add."), None, Some("4")],
        [Some("Add."), Some("2 2"), Some("4")],
        [Some("Sing."), Some(""), Some("chaos")],
    ];
    write_alpaca(&place.at("table"), &rows);
    let object =
        |[a, b, c]: &[Option<&str>; 3]| json!({ "instruction": a, "input": b, "output": c });
    let records: Vec<Value> = rows.iter().map(object).collect();
    write_lines(&place.at("lines"), &records);
    let (table, lines) = (place.alpaca("table").unwrap(), place.alpaca("lines").unwrap());
    assert_eq!(table.fingerprint(), lines.fingerprint());
    assert_eq!(table.report(), lines.report());
}

#[test]
fn what_is_wrong_is_said_with_its_column_and_row() {
    let place = Place::new();
    let refused = |opened: plumbline::error::Result<Samples>, parts: &[&str]| {
        let error = opened.err().expect("it was read").to_string();
        parts.iter().for_each(|part| assert!(error.contains(part), "no {part:?} in: {error}"));
    };
    let good = [Some("a"), None, Some("seed")];
    write_alpaca(&place.at("table"), &[good, [None, None, Some("seed")]]);
    refused(place.alpaca("table"), &["table: row 2: instruction is null, expected a string"]);
    write_alpaca(&place.at("table"), &[good, good, [Some("a"), None, Some(" ")]]);
    refused(place.alpaca("table"), &["of 3 samples 2 fit", "table: row 3"]);
    let parts = ["table: has no column messages; its columns are output, n, instruction, input"];
    refused(place.open_parquet("table"), &parts);

    let wrong = "message schema { required int64 output; required binary instruction (UTF8); }";
    write(&place.at("wrong"), wrong, &[], PLAIN);
    refused(place.alpaca("wrong"), &["wrong: column output: holds INT64", "expected strings"]);
    let flat = "message schema { required binary messages (UTF8); }";
    write(&place.at("flat"), flat, &[], PLAIN);
    refused(place.open_parquet("flat"), &["column messages: expected lists of structs", "role"]);
    write(&place.at("empty"), MESSAGES, &[], PLAIN);
    refused(place.open_parquet("empty"), &["empty: holds no sample"]);

    // The third row has: no list, a struct that is null, no content, content without a role.
    let (user, end) = ((0, 4, Some("user")), (1, 4, Some("assistant")));
    let (ask, say) = ((0, 4, Some("a")), (1, 4, Some("seed")));
    for (content, role, expected) in [
        (vec![(0, 0, None)], vec![(0, 0, None)], "row 3: messages is null, expected an array"),
        (vec![(0, 2, None)], vec![(0, 2, None)], "row 3: messages[0]: expected an object"),
        (vec![(0, 3, None)], vec![user], "row 3: messages[0]: content is null"),
        (vec![ask, say], vec![user], "row 3: the fields of column messages have other lengths"),
        (vec![(0, 1, None)], vec![user], "row 3: the fields of column messages have other"),
    ] {
        let with = |good: &[Entry<'static>], third: Vec<Entry<'static>>| {
            [&good.repeat(2)[..], &third[..]].concat()
        };
        let table = vec![with(&[ask, say], content), with(&[user, end], role)];
        write(&place.at("nested"), MESSAGES, &[table], PLAIN);
        refused(place.open_parquet("nested"), &["nested: ", expected]);
    }
    // An empty list has no answer, as in JSON.
    let table = vec![vec![(0, 1, None)], vec![(0, 1, None)]];
    write(&place.at("nested"), MESSAGES, &[table], PLAIN);
    refused(place.open_parquet("nested"), &["1 dropped without an answer"]);
}

/// Whatever byte is wrong, the file is refused or read, and the program goes on.
#[test]
fn damaged_files_are_errors() {
    let place = Place::new();
    let two = [chat("a", "seed"), chat("b", "the secret top")];
    for written in ways() {
        let path = place.at("table");
        write(&path, MESSAGES, &[leaves(&two, 4).to_vec()], written);
        let whole = fs::read(&path).unwrap();
        let (mut refused, mut other) = (0, 0);
        let sound = place.open_parquet("table").unwrap().fingerprint().to_owned();
        for at in (4..whole.len()).step_by(11) {
            let mut damaged = whole.clone();
            damaged[at] ^= [0x01, 0x80, 0xff][at % 3];
            fs::write(&path, damaged).unwrap();
            match place.open_parquet("table") {
                Ok(samples) => other += usize::from(samples.fingerprint() != sound),
                Err(error) => {
                    refused += 1;
                    assert!(error.to_string().contains("table"), "{error}");
                }
            }
        }
        assert!(refused > 0, "none refused, {other} are other samples");
        for length in [5, 12, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..length]).unwrap();
            let error = place.open_parquet("table").err().unwrap().to_string();
            assert!(error.contains("table: damaged Parquet file"), "{error}");
        }
    }
}

const TEXT: &str = "message schema { optional binary text (UTF8); }";

#[test]
fn texts_are_the_rows_of_their_column() {
    let place = Place::new();
    let path = place.at("texts");
    let group = |rows: &[Option<&'static str>]| {
        vec![rows.iter().map(|row| (0, i16::from(row.is_some()), *row)).collect()]
    };
    let groups = [group(&[Some("chaos"), Some("")]), group(&[Some("the secret top")])];
    write(&path, TEXT, &groups, PLAIN);
    assert!(is_parquet(&path));
    let read: Vec<String> = texts(&path).unwrap().map(Result::unwrap).collect();
    assert_eq!(read, ["chaos", "", "the secret top"]);
    let alone = |text| place.tokenizer.encode(text).unwrap();
    let joined = [alone("chaos"), alone("the secret top")].concat();
    assert_eq!(token_ids(&path, &place.tokenizer).unwrap(), joined);
    write(&path, TEXT, &[group(&[Some("chaos"), None])], PLAIN);
    let error = texts(&path).unwrap().find_map(Result::err).unwrap().to_string();
    assert!(error.contains("texts: row 2: text is null"), "{error}");
    write(&path, TEXT, &[group(&[Some("")])], PLAIN);
    let error = token_ids(&path, &place.tokenizer).unwrap_err().to_string();
    assert!(error.contains("texts: the text is empty"), "{error}");
    write_alpaca(&path, &[]);
    let error = texts(&path).err().unwrap().to_string();
    assert!(error.contains("texts: has no column text; its columns are output"), "{error}");
    fs::write(&path, "PAR").unwrap();
    assert!(!is_parquet(&path) && !is_parquet(&place.at("nothing")));
}

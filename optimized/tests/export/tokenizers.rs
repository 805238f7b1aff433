//! Tokenizers and chat templates in what is exported.

use std::fs;

use plumbline::checkpoint::ModelFolder;
use plumbline::export::{FloatType, Format};
use serde_json::{Value, json};

use crate::Place;
use crate::common::merged::{Kind, Trained, config, sentence_pieces};

/// Texts that tell tokenizers apart: runs of blanks, characters that only bytes are for, special tokens.
const TEXTS: [&str; 9] = [
    "",
    "the other in there",
    " the",
    "a  the   in    the      er                 .",
    "na\u{ef}ve \u{3a9} \u{1f600}\n\nthe\tin",
    "</s>the <s> in",
    "\u{2581}the\u{2581}\u{2581} in",
    "thethethe  ",
    "<0x41> er<unk>",
];

/// A model with such a tokenizer.
fn with_tokenizer(tokenizer: &Value) -> Place {
    let mut config = config();
    config["vocab_size"] = 288.into();
    let place = Place::with(Trained::new(Kind::Symmetric, 4, Some(32)), config);
    fs::write(place.path("merged/tokenizer.json"), tokenizer.to_string()).unwrap();
    place
}

/// The pieces of a file have scores, those of `tokenizer.json` an order: texts become the same tokens.
#[test]
fn a_tokenizer_of_pieces_with_scores_is_the_same_in_a_file() {
    let prefixed = sentence_pieces();
    let metaspace = |scheme: &str| {
        let mut changed = sentence_pieces();
        changed["normalizer"] = Value::Null;
        changed["pre_tokenizer"] = json!({
            "type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": false,
        });
        changed["model"]["unk_token"] = Value::Null;
        if scheme == "never" {
            // No blank to take away again.
            changed["decoder"]["decoders"].as_array_mut().unwrap().pop();
        }
        changed
    };
    // A Metaspace puts no blank before one, and the scheme "first" none behind a special token.
    let plain = |text: &&str| !text.starts_with([' ', '\u{2581}']) && !text.contains("s>");
    for (tokenizer, every_text) in [
        (prefixed, true),
        (metaspace("never"), true),
        (metaspace("always"), false),
        (metaspace("first"), false),
    ] {
        let place = with_tokenizer(&tokenizer);
        let exported = place.export(Format::GgufQ4_0, FloatType::F32).unwrap();
        assert_eq!(exported.notes.is_empty(), every_text, "{:?}", exported.notes);
        let ours = ModelFolder::open(&place.path("merged")).unwrap().tokenizer().unwrap();
        let theirs = ModelFolder::open(&place.path("gguf-q4_0-f32")).unwrap().tokenizer().unwrap();
        for text in TEXTS.into_iter().filter(|text| every_text || plain(text)) {
            let tokens = ours.encode(text).unwrap();
            assert_eq!(theirs.token(tokens[0] as u32).as_deref(), Some("<s>"));
            assert_eq!(theirs.encode(text).unwrap(), tokens, "{text:?}");
            assert_eq!(theirs.decode(&tokens).unwrap(), ours.decode(&tokens).unwrap());
        }
        // Pieces are there at all.
        assert!(ours.encode(TEXTS[1]).unwrap().len() < TEXTS[1].len());
    }
}

#[test]
fn a_tokenizer_that_pieces_with_scores_are_not_is_refused() {
    type Change = fn(&mut Value);
    let changes: [(Change, &str); 5] = [
        (
            |json| json["model"]["merges"].as_array_mut().unwrap().swap(0, 4),
            "take turns in model.merges",
        ),
        (
            |json| drop(json["model"]["merges"].as_array_mut().unwrap().pop()),
            "model.merges has 0 of the 1 pairs that are",
        ),
        (|json| json["model"]["unk_token"] = "<x>".into(), "model.unk_token is \"<x>\""),
        (
            |json| {
                let vocab = json["model"]["vocab"].as_object_mut().unwrap();
                let id = vocab.remove("<0x41>").unwrap();
                vocab.insert("<byte>".into(), id);
            },
            "has byte_fallback and no token <0x41>",
        ),
        (
            |json| json["normalizer"] = json!({"type": "Lowercase"}),
            "normalizer \"Lowercase\" and pre_tokenizer null",
        ),
    ];
    for (change, message) in changes {
        let mut tokenizer = sentence_pieces();
        change(&mut tokenizer);
        let error =
            with_tokenizer(&tokenizer).export(Format::GgufQ4_0, FloatType::F32).unwrap_err();
        assert!(error.contains("gguf-q4_0 cannot hold the model: tokenizer: "), "{error}");
        assert!(error.contains(message), "{error}");
    }
}

/// What makes a text of a chat goes where the model goes.
#[test]
fn a_chat_template_is_handed_on() {
    let place = with_tokenizer(&sentence_pieces());
    let template = "{% for m in messages %}{{ m['content'] }}{% endfor %}";
    let config = json!({"chat_template": template}).to_string();
    fs::write(place.path("merged/tokenizer_config.json"), config).unwrap();
    for format in Format::ALL {
        place.export(format, FloatType::F32).unwrap();
        let written = ModelFolder::open(&place.path(&format!("{format}-f32"))).unwrap();
        assert_eq!(written.chat_template(), Some(template), "{format}");
    }
}

//! What a run says of itself: metrics, events, the page.

use std::fs;

use super::common::program::{Place, plumbline, refused};
use super::compare::lines;
use super::events::scalars;
use super::{eventful, trained};

#[test]
fn the_event_file_holds_what_the_metrics_hold() {
    let place = Place::new();
    place.recipe(|recipe| eventful(&recipe));
    trained(&place, &[]);
    let run = place.path().join("run");
    let events = scalars(&run);
    let value = |step: u64, tag: &str| {
        let mut found = events.iter().filter(|(at, name, _)| *at == step && name == tag);
        let bits = found.next().unwrap_or_else(|| panic!("no {tag} at {step}")).2;
        assert!(found.next().is_none(), "{tag} at {step} twice");
        f32::from_bits(bits)
    };
    let mut seen = 0;
    for line in lines(&run) {
        let step = line["step"].as_u64().unwrap();
        let mut same = |tag: &str, field: &serde_json::Value| {
            assert_eq!(value(step, tag), field.as_f64().unwrap() as f32, "{tag} at {step}");
            seen += 1;
        };
        if let Some(layer) = line["layer"].as_str() {
            same(&format!("scale_mean/{layer}"), &line["scale_mean"]);
            assert!(line["codes_lowest"].as_f64().unwrap() > 0.0, "{line}");
        } else if let Some(text) = line["text"].as_str() {
            same(&format!("perplexity/{text}"), &line["perplexity"]);
        } else {
            same("train/loss", &line["loss"]);
            same("train/grad_norm", &line["grad_norm"]);
            same("train/learning_rate", &line["learning_rate"]);
        }
    }
    // Six steps; evaluations at 0, 3 and 6, of one text and fourteen layers.
    assert_eq!(seen, 6 * 3 + 3 * (1 + 14));
}

#[test]
fn the_page_stands_alone_and_shows_everything() {
    let place = Place::new();
    let at = place.path();
    place.recipe(|recipe| eventful(&recipe));
    trained(&place, &[]);
    // A line that is still being written is no damage.
    let metrics = at.join("run/metrics.jsonl");
    let text = fs::read_to_string(&metrics).unwrap();
    fs::write(&metrics, format!("{text}{{\"step\": 7, \"lo")).unwrap();
    assert!(plumbline(at, &["report", "run"]).status.success());
    let page = fs::read_to_string(at.join("run/report.html")).unwrap();
    for part in [
        "Loss",
        "Perplexity of text.txt",
        "Learning rate",
        "Gradient norm",
        "model.layers.1.mlp.down_proj",
        "group_size = 16",
        env!("CARGO_PKG_VERSION"),
        "<polyline",
    ] {
        assert!(page.contains(part), "no {part:?}");
    }
    for outside in ["http:", "https:", "<script", "<link", "<img", "url(", "NaN", ">inf"] {
        assert!(!page.contains(outside), "{outside:?} is in the page");
    }
    let other = plumbline(at, &["report", "run", "--out", "other.html"]);
    assert!(other.status.success() && at.join("other.html").exists());
    fs::write(&metrics, format!("{text}x\n")).unwrap();
    let number = text.lines().count() + 1;
    refused(&plumbline(at, &["report", "run"]), &["metrics.jsonl", &format!("line {number}")]);
    refused(&plumbline(at, &["report", "nowhere"]), &["nowhere/metrics.jsonl"]);
}

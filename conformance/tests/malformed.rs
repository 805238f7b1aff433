//! Every malformed file gives one clear line that names the file, the field and the value.

use std::path::Path;

use plumbline_conformance::case::container::{self, Container};
use plumbline_conformance::case::load;
use plumbline_conformance::generate::generated_case;
use plumbline_conformance::ops;
use plumbline_conformance::tensor::{Data, Tensor};

const GOOD: &str = r#"
format = "plumbline-case-1"
op = "fake_quantize.forward"
origin = "by hand"
[notes.tie]
catches = "round half away from zero"
[[case]]
id = "tie"
flags = ["tie"]
params = { bits = 4, group_size = 2 }
in.weight = [[1.25, -1.25]]
in.scale = [[0.5]]
in.offset = [[0.0]]
out.codes = [[2, -2]]
out.output = [[1.0, -1.0]]
"#;

fn load_text(text: &str) -> Result<usize, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("case.toml");
    std::fs::write(&file, text).unwrap();
    load(&file).map(|cases| cases.len()).map_err(|e| e.to_string())
}

fn refused(text: &str, expected: &[&str]) {
    let message = load_text(text).expect_err(text);
    assert_eq!(message.lines().count(), 1, "{message}");
    for part in expected.iter().chain(&["case.toml"]) {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

fn replaced(from: &str, to: &str) -> String {
    assert_eq!(GOOD.matches(from).count(), 1, "{from}");
    GOOD.replace(from, to)
}

#[test]
fn the_example_itself_is_well_formed() {
    assert_eq!(load_text(GOOD), Ok(1));
    assert_eq!(load_text(&replaced(", group_size = 2", "")), Ok(1));
}

#[test]
fn keys_that_do_not_belong_are_named() {
    refused(&replaced("origin =", "oracle ="), &["line 4", "oracle"]);
    refused(&replaced("catches =", "caches ="), &["line 6", "caches"]);
    refused(&replaced("flags =", "flag ="), &["flag"]);
    refused(&replaced("bits = 4,", "bits = 4, rank = 2,"), &["case tie", "params.rank"]);
    refused(&replaced("in.offset", "in.zero_point"), &["case tie", "in.zero_point"]);
    refused(&replaced("out.output", "out.y"), &["case tie", "out.y"]);
    refused(&replaced(r#"flags = ["tie"]"#, r#"flags = ["edge"]"#), &["case tie", "\"edge\""]);
    let both = format!("{GOOD}expect_error = \"scale\"\n");
    refused(&both, &["case tie", "both out and expect_error"]);
}

#[test]
fn headers_are_checked() {
    refused(&replaced("format = \"plumbline-case-1\"\n", ""), &["format"]);
    refused(&replaced("case-1", "case-2"), &["format is \"plumbline-case-2\""]);
    refused(&replaced("fake_quantize.forward", "fake_quantise"), &["\"fake_quantise\""]);
    refused("format = ", &["line 1"]);
    refused("format = \"plumbline-case-1\"\nop = \"swiglu.forward\"\n", &["[[case]]"]);
    let twice = format!("{GOOD}[[case]]{}", GOOD.split_once("[[case]]").unwrap().1);
    refused(&twice, &["\"tie\"", "twice"]);
}

#[test]
fn tensors_are_checked_by_shape_type_and_value() {
    refused(&replaced("[[1.25, -1.25]]", "[[1.25], [1.0, 2.0]]"), &["in.weight", "ragged"]);
    refused(&replaced("[[1.25, -1.25]]", "[[1.25, [2.0]]]"), &["in.weight", "ragged"]);
    refused(&replaced("[[1.25, -1.25]]", "[1.25, [2.0]]"), &["in.weight", "ragged"]);
    refused(&replaced("[[1.25, -1.25]]", "\"1.25\""), &["in.weight", "\"1.25\""]);
    refused(&replaced("[[2, -2]]", "[[2.0, -2.0]]"), &["out.codes", "2.0", "code"]);
    refused(&replaced("[[2, -2]]", "[[2, -200]]"), &["out.codes", "-200"]);
    refused(&replaced("[[2, -2]]", "[[2], [-2]]"), &["codes has shape [2, 1]", "out 1, in 2"]);
    refused(&replaced("in.scale = [[0.5]]", "in.scale = [[0.5, 0.5]]"), &["scale", "groups 1"]);
    refused(&replaced("in.scale = [[0.5]]", "in.scale = [0.5]"), &["scale has shape [1]"]);
    refused(&replaced("in.scale = [[0.5]]", "in.scale = 0.5"), &["scale has shape []"]);
    refused(&replaced("in.scale = [[0.5]]\n", ""), &["in.scale is missing"]);
    refused(&replaced("in.scale = [[0.5]]", "in.scale = [[nan]]"), &["in.scale[0, 0] is NaN"]);
    refused(&replaced("[[1.0, -1.0]]", "[[1.0, -inf]]"), &["out.output[0, 1] is -inf"]);
    refused(&replaced("group_size = 2", "group_size = 3"), &["group_size 3", "in_features 2"]);
    refused(&replaced("bits = 4", "bits = 9"), &["bits is 9"]);
    refused(&replaced("bits = 4, ", ""), &["params.bits is missing"]);
    refused(&replaced("bits = 4", "bits = nan"), &["params.bits is NaN"]);
}

#[test]
fn a_case_that_expects_a_refusal_may_hold_what_must_be_refused() {
    let refusal = |from: &str, to: &str| {
        let text = GOOD.replace(from, to);
        let (head, _) = text.split_once("out.codes").unwrap();
        load_text(&format!("{head}expect_error = \"scale\"\n"))
    };
    assert_eq!(refusal("in.scale = [[0.5]]", "in.scale = [[nan]]"), Ok(1));
    assert_eq!(refusal("in.scale = [[0.5]]", "in.scale = [0.5, 0.5, 0.5]"), Ok(1));
    assert_eq!(refusal("bits = 4", "bits = 9"), Ok(1));
    let missing = refusal("in.scale = [[0.5]]\n", "").unwrap_err();
    assert!(missing.contains("in.scale is missing"), "{missing}");
}

fn good_container() -> Container {
    let op = ops::find("l4q.forward").unwrap();
    generated_case(Path::new(""), op, 1, 0).unwrap().container()
}

fn load_bytes(bytes: &[u8]) -> Result<usize, String> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("case.safetensors");
    std::fs::write(&file, bytes).unwrap();
    load(&file).map(|cases| cases.len()).map_err(|e| e.to_string())
}

fn refused_container(change: impl Fn(&mut Container), expected: &[&str]) {
    let mut container = good_container();
    change(&mut container);
    let message = load_bytes(&container::bytes(&container)).expect_err("a refusal");
    assert_eq!(message.lines().count(), 1, "{message}");
    for part in expected.iter().chain(&["case.safetensors"]) {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
}

#[test]
fn a_truncated_or_overwritten_file_is_an_error() {
    let bytes = container::bytes(&good_container());
    assert_eq!(load_bytes(&bytes), Ok(1));
    for length in (0..bytes.len()).step_by(37) {
        let message = load_bytes(&bytes[..length]).expect_err("a truncated file");
        assert!(message.contains("case.safetensors"), "{message}");
    }
    for at in (0..bytes.len().min(600)).step_by(11) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x55;
        // Most damage is an error; what is left must be a different but readable case.
        _ = load_bytes(&damaged);
    }
    assert!(load_bytes(&[0xff; 64]).is_err());
}

#[test]
fn metadata_is_checked() {
    let remove = |key: &'static str| move |c: &mut Container| _ = c.metadata.remove(key);
    let set = |key: &'static str, value: &'static str| {
        move |c: &mut Container| _ = c.metadata.insert(key.to_owned(), value.to_owned())
    };
    refused_container(remove("format"), &["format is missing"]);
    refused_container(remove("op"), &["op is missing"]);
    refused_container(remove("params"), &["params is missing"]);
    refused_container(set("format", "pt"), &["\"pt\""]);
    refused_container(set("op", "l4q"), &["\"l4q\""]);
    refused_container(set("params", "{"), &["params is not JSON"]);
    refused_container(set("params", "3"), &["params is 3"]);
    refused_container(set("params", r#"{"bits": 4, "x": 1}"#), &["params.x"]);
    refused_container(set("author", "me"), &["author"]);
}

#[test]
fn binary_tensors_are_checked() {
    let put = |name: &'static str, shape: &[usize], data: Data| {
        let tensor = Tensor::new(shape.to_vec(), data).unwrap();
        move |c: &mut Container| _ = c.tensors.insert(name.to_owned(), tensor.clone())
    };
    refused_container(|c| _ = c.tensors.remove("in.x"), &["in.x is missing"]);
    refused_container(put("in.y", &[1], Data::F32(vec![0.0])), &["in.y is no tensor"]);
    refused_container(put("weight", &[1], Data::F32(vec![0.0])), &["weight", "neither in. nor"]);
    refused_container(put("in.x", &[1], Data::I32(vec![0])), &["in.x has dtype I32"]);
    refused_container(put("in.x", &[1], Data::F32(vec![0.0])), &["in.x has shape [1]"]);
    refused_container(put("in.x", &[1, 1], Data::F32(vec![0.0])), &["in.x has shape"]);
    refused_container(put("out.codes", &[1, 1], Data::U8(vec![0])), &["out.codes has dtype U8"]);
    refused_container(put("out.y", &[0], Data::F64(vec![])), &["out.y has shape [0]"]);
    refused_container(
        |c| {
            let x = c.tensors.get_mut("in.x").unwrap();
            if let Data::F32(values) = x.data_mut() {
                values[0] = f32::NAN;
            }
        },
        &["in.x[0, 0] is NaN"],
    );
}

#[test]
fn other_files_are_no_cases() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("case.json");
    std::fs::write(&file, "{}").unwrap();
    assert!(load(&file).unwrap_err().to_string().contains(".toml or .safetensors"));
    let gone = load(&folder.path().join("gone.toml")).unwrap_err().to_string();
    assert!(gone.contains("gone.toml"), "{gone}");
    let binary = folder.path().join("binary.toml");
    std::fs::write(&binary, [0xff, 0xfe]).unwrap();
    assert!(load(&binary).unwrap_err().to_string().contains("UTF-8"));
}

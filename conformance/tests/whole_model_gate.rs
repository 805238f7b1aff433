//! The gate that a trained model has to pass, for every subject of this program and every method it
//! has: ten steps along the golden trajectory; the same bits when they are run again, and when five
//! of them are left to a later run; and a merged model that is the trained one.
//!
//! Everything here goes through the operations of the case protocol, so the same can be asked of
//! any implementation.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use ndarray::Array2;
use plumbline_conformance::case::{self, Expected, Request, container, request_container};
use plumbline_conformance::judge::judge_outputs;
use plumbline_conformance::ops;
use plumbline_conformance::params::{Params, Quantizer};
use plumbline_conformance::precision::{Precision, Scalar};
use plumbline_conformance::subject::{BUILT_IN, Subject, SubjectError, select};
use plumbline_conformance::tensor::{Data, Tensor, Tensors};
use plumbline_reference::model::linear_shapes;
use plumbline_reference::quantize::dequantize;
use serde_json::json;

/// Every method of `llama.train`.
const METHODS: [&str; 7] = ["lora", "l4q", "lr_qat", "qa_lora", "qat", "qat_lora", "peqa"];

fn subject(name: &str) -> Box<dyn Subject> {
    select(name, Duration::from_secs(60)).unwrap()
}

fn golden(method: &str) -> case::Case {
    let file = format!("../golden/llama/llama.train.{method}.safetensors");
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(file);
    case::load(&file).unwrap().remove(0)
}

fn request(op: &str, params: Params, inputs: Tensors) -> Request {
    Request { op: ops::find(op).unwrap(), params, inputs }
}

fn run(name: &str, request: &Request, precision: Precision) -> Tensors {
    subject(name).run(request, precision).unwrap_or_else(|e| panic!("{}: {e}", request.op.name))
}

/// What a subject leaves of a golden run.
type Answer = Result<Tensors, String>;

/// A run costs seconds, and several tests ask for the same one: the first of them runs it. `Err`
/// where the subject does not have the method.
fn answer(name: &str, method: &str, precision: Precision) -> Arc<Answer> {
    type Once = Arc<OnceLock<Arc<Answer>>>;
    static RUNS: Mutex<BTreeMap<String, Once>> = Mutex::new(BTreeMap::new());
    let key = format!("{name} {precision} {method}");
    let once = Arc::clone(RUNS.lock().unwrap().entry(key).or_default());
    let run = || match subject(name).run(&golden_request(method, precision), precision) {
        Ok(outputs) => Arc::new(Ok(outputs)),
        Err(SubjectError::Skip(why)) => Arc::new(Err(why)),
        Err(other) => panic!("{name} {precision} {method}: {other:?}"),
    };
    Arc::clone(once.get_or_init(run))
}

fn golden_request(method: &str, precision: Precision) -> Request {
    golden(method).request.to_precision(precision)
}

/// The golden run on a subject.
fn trained(name: &str, method: &str, precision: Precision) -> (Request, Tensors) {
    let outputs = answer(name, method, precision).as_ref().clone().unwrap();
    (golden_request(method, precision), outputs)
}

/// Every element as its bits, so that zeros of either sign differ.
fn bits(tensor: &Tensor) -> Vec<u64> {
    tensor.values().map(f64::to_bits).collect()
}

fn assert_same_bits(actual: &Tensors, expected: &Tensors) {
    assert!(actual.keys().eq(expected.keys()));
    for (name, tensor) in expected {
        assert_eq!(actual[name].shape(), tensor.shape(), "{name}");
        assert_eq!(bits(&actual[name]), bits(tensor), "{name}");
    }
}

fn follows_the_golden_trajectory(name: &str, method: &str, precision: Precision) {
    let (request, outputs) = trained(name, method, precision);
    let Expected::Outputs(expected) = golden(method).expected else { panic!("{method}: outputs") };
    let verdicts =
        judge_outputs(&request, &expected, &outputs, Some(precision), precision).unwrap();
    assert!(!verdicts.is_empty());
    let failures: Vec<_> = verdicts.iter().filter_map(|verdict| verdict.failure.as_ref()).collect();
    assert!(failures.is_empty(), "{failures:?}");
}

fn runs_again_bit_for_bit(name: &str, method: &str, precision: Precision) {
    let (request, first) = trained(name, method, precision);
    assert_same_bits(&run(name, &request, precision), &first);
}

/// Steps `from..to` of a tensor whose first size is that of the steps.
fn steps(tensor: &Tensor, from: usize, to: usize) -> Tensor {
    let mut shape = tensor.shape().to_vec();
    let each: usize = shape[1..].iter().product();
    shape[0] = to - from;
    let range = from * each..to * each;
    let data = match tensor.data() {
        Data::I32(x) => Data::I32(x[range].to_vec()),
        Data::F32(x) => Data::F32(x[range].to_vec()),
        Data::F64(x) => Data::F64(x[range].to_vec()),
        other => panic!("{other:?} has no steps"),
    };
    Tensor::new(shape, data).unwrap()
}

/// A run of the first half of the steps, and the request of the second half, which begins with what
/// the first one left.
fn in_halves(name: &str, whole: &Request, precision: Precision) -> (Tensors, Request) {
    let tokens = &whole.inputs["tokens"];
    let (count, half) = (tokens.shape()[0], tokens.shape()[0] / 2);
    let mut first = whole.clone();
    first.inputs.insert("tokens".to_owned(), steps(tokens, 0, half));
    let left = run(name, &first, precision);
    let mut second = whole.clone();
    second.params.0.insert("first_step".to_owned(), json!(half + 1));
    second.inputs.insert("tokens".to_owned(), steps(tokens, half, count));
    for (tensor, state) in left.iter().filter(|(tensor, _)| tensor.contains("_proj.")) {
        if !tensor.starts_with("d_") {
            second.inputs.insert(tensor.clone(), state.clone());
        }
    }
    (left, second)
}

/// The second half goes through a file.
fn resumes_bit_for_bit(name: &str, method: &str, precision: Precision) {
    let (whole, uninterrupted) = trained(name, method, precision);
    let (left, second) = in_halves(name, &whole, precision);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("second_half.safetensors");
    container::write(&file, &request_container(&second)).unwrap();
    let resumed = case::load(&file).unwrap().remove(0).request;
    let mut resumed = run(name, &resumed, precision);
    let count = whole.inputs["tokens"].shape()[0];
    for (tensor, later) in &mut resumed {
        if tensor.starts_with("d_") || tensor == "loss" {
            let expected = &uninterrupted[tensor];
            assert_eq!(bits(&left[tensor]), bits(&steps(expected, 0, count / 2)), "{tensor}");
            assert_eq!(bits(later), bits(&steps(expected, count / 2, count)), "{tensor}");
            *later = expected.clone();
        }
    }
    assert_same_bits(&resumed, &uninterrupted);
}

/// One layer's tensors after training, under their own names.
fn layer_of(request: &Request, outputs: &Tensors, layer: &str) -> Tensors {
    let prefix = format!("{layer}.");
    let given = request.inputs.iter().chain(outputs);
    let own = given.filter_map(|(name, x)| Some((name.strip_prefix(&prefix)?.to_owned(), x)));
    own.map(|(name, tensor)| (name, tensor.clone())).collect()
}

/// The parameters that an operation on one layer takes from those of the run.
fn params_of(op: &str, run: &Params) -> Params {
    let known = ops::find(op).unwrap().params;
    let own = run.0.iter().filter(|(name, _)| known.contains(&name.as_str()));
    Params(own.map(|(name, value)| (name.clone(), value.clone())).collect())
}

/// The weight that a layer is merged to, by the subject's own operations.
fn merged_weight(
    name: &str,
    run_params: &Params,
    mut layer: Tensors,
    precision: Precision,
) -> Tensor {
    let answer = |op: &str, layer: &Tensors| {
        let known = |input: &String| ops::find(op).unwrap().inputs.iter().any(|i| i.name == *input);
        let own = layer.iter().filter(|(input, _)| known(input));
        let inputs = own.map(|(input, tensor)| (input.clone(), tensor.clone())).collect();
        run(name, &request(op, params_of(op, run_params), inputs), precision)
    };
    let method: String = run_params.required("method").unwrap();
    match method.as_str() {
        "l4q" => on_grid(run_params, &answer("l4q.merge", &layer), precision),
        "lr_qat" => on_grid(run_params, &answer("lr_qat.merge", &layer), precision),
        "qat" => answer("fake_quantize.forward", &layer).remove("output").unwrap(),
        "peqa" => answer("affine.dequantize", &layer).remove("output").unwrap(),
        "qa_lora" => {
            layer.extend(answer("qa_lora.merge", &layer));
            answer("affine.dequantize", &layer).remove("output").unwrap()
        }
        _ => panic!("{method} keeps its path"),
    }
}

/// `codes * scale + offset`, in the type of the run; LR-QAT has no offset.
fn on_grid(params: &Params, merged: &Tensors, precision: Precision) -> Tensor {
    fn of<T: Scalar>(params: &Params, merged: &Tensors) -> Tensor {
        let matrix =
            |tensor: &Tensor| -> Array2<T> { tensor.array().into_dimensionality().unwrap() };
        let Data::I8(codes) = merged["codes"].data() else { panic!("codes are I8") };
        let [rows, columns] = merged["codes"].shape() else { panic!("codes are a matrix") };
        let codes = Array2::from_shape_vec((*rows, *columns), codes.clone()).unwrap();
        let scale = matrix(&merged["scale"]);
        let offset = merged.get("offset").map_or_else(|| Array2::zeros(scale.dim()), matrix);
        let spec = Quantizer::read(params).unwrap().spec(*columns).unwrap();
        let weight = dequantize(codes.view(), scale.view(), offset.view(), &spec).unwrap();
        Tensor::floats(&weight)
    }
    match precision {
        Precision::F32 => of::<f32>(params, merged),
        Precision::F64 => of::<f64>(params, merged),
    }
}

/// The dense model of the merged weights, on the tokens of the last step.
fn merged_model(name: &str, whole: &Request, trained: &Tensors, precision: Precision) -> Request {
    let config = plumbline_conformance::params::llama_config(&whole.params).unwrap();
    let base = whole.inputs.iter().filter(|(name, _)| !name.contains("_proj."));
    let mut inputs: Tensors = base.map(|(name, x)| (name.clone(), x.clone())).collect();
    let [count, batch, length] = whole.sizes("tokens").unwrap();
    let Data::I32(last) = steps(&whole.inputs["tokens"], count - 1, count).data().clone() else {
        panic!("tokens are I32")
    };
    let tokens = Tensor::new(vec![batch, length], Data::I32(last)).unwrap();
    inputs.insert("tokens".to_owned(), tokens);
    for layer in linear_shapes(&config).keys() {
        let tensors = layer_of(whole, trained, layer);
        let weight = merged_weight(name, &whole.params, tensors, precision);
        inputs.insert(format!("{layer}.weight"), weight);
    }
    let params = Params::from_iter([("config", whole.params.0["config"].clone())]);
    request("llama.loss_and_gradients", params, inputs)
}

/// Bit for bit, but for QA-LoRA: its merged zero points are the same function in other roundings,
/// within what those of the model are allowed to do to a logit.
fn merges_to_the_trained_model(name: &str, method: &str, precision: Precision) {
    let (whole, trained) = trained(name, method, precision);
    let merged = merged_model(name, &whole, &trained, precision);
    let mut outputs = run(name, &merged, precision);
    if method != "qa_lora" {
        assert_eq!(bits(&outputs["logits"]), bits(&trained["logits"]));
        return;
    }
    assert_ne!(bits(&outputs["logits"]), bits(&trained["logits"]), "other roundings");
    outputs.insert("logits".to_owned(), trained["logits"].clone());
    let verdicts =
        judge_outputs(&merged, &Tensors::new(), &outputs, Some(precision), precision).unwrap();
    let logits = verdicts.iter().find(|verdict| verdict.tensor == "logits").unwrap();
    assert!(logits.failure.is_none(), "{:?}", logits.failure);
}

/// The tests of a subject in one precision; its methods, and those of them that merge.
macro_rules! gate {
    (
        $module:ident: $subject:literal $precision:ident,
        [$($method:ident)*], merging [$($merging:ident)*]
    ) => {
        mod $module {
            use super::*;

            pub const GATED: (&str, Precision, &[&str]) =
                ($subject, Precision::$precision, &[$(stringify!($method)),*]);

            mod golden_trajectory {
                use super::*;
                $(#[test]
                fn $method() {
                    follows_the_golden_trajectory(
                        $subject, stringify!($method), Precision::$precision);
                })*
            }

            mod rerun {
                use super::*;
                $(#[test]
                fn $method() {
                    runs_again_bit_for_bit($subject, stringify!($method), Precision::$precision);
                })*
            }

            mod resumed {
                use super::*;
                $(#[test]
                fn $method() {
                    resumes_bit_for_bit($subject, stringify!($method), Precision::$precision);
                })*
            }

            mod merged {
                use super::*;
                $(#[test]
                fn $merging() {
                    merges_to_the_trained_model(
                        $subject, stringify!($merging), Precision::$precision);
                })*
            }
        }
    };
}

gate!(reference_f64: "reference" F64,
    [lora l4q lr_qat qa_lora qat qat_lora peqa], merging [l4q lr_qat qa_lora qat peqa]);
gate!(reference_f32: "reference" F32,
    [lora l4q lr_qat qa_lora qat qat_lora peqa], merging [l4q lr_qat qa_lora qat peqa]);
gate!(cpu_f32: "cpu" F32,
    [lora l4q lr_qat qa_lora qat qat_lora peqa], merging [l4q lr_qat qa_lora qat peqa]);

gate!(cuda_host_f32: "cuda-host" F32,
    [lora l4q lr_qat qa_lora qat qat_lora peqa], merging [l4q lr_qat qa_lora qat peqa]);

/// The gate can fail: what a resumed run forgets is in every tensor that it leaves.
#[test]
fn a_forgotten_moment_or_step_shows() {
    let (whole, uninterrupted) = trained("cpu", "l4q", Precision::F32);
    let (_, second) = in_halves("cpu", &whole, Precision::F32);
    let without = |moment: &str| {
        let mut request = second.clone();
        request.inputs.retain(|name, _| !name.starts_with(moment));
        request
    };
    let mut from_step_one = second.clone();
    from_step_one.params.0.remove("first_step");
    for forgetful in [without("first_moment."), without("second_moment."), from_step_one] {
        let resumed = run("cpu", &forgetful, Precision::F32);
        for (name, tensor) in &resumed {
            if name.starts_with("model.") {
                assert_ne!(bits(tensor), bits(&uninterrupted[name]), "{name}");
            }
        }
    }
}

/// A subject, precision or method that the gate leaves out is one that the subject does not have.
#[test]
fn nothing_that_trains_is_left_out() {
    let gated = [reference_f64::GATED, reference_f32::GATED, cpu_f32::GATED, cuda_host_f32::GATED];
    for name in BUILT_IN {
        for precision in subject(name).precisions().to_vec() {
            for method in METHODS {
                let answer = answer(name, method, precision);
                let is_gated = gated.iter().any(|(gated, of, methods)| {
                    gated == name && *of == precision && methods.contains(&method)
                });
                assert_eq!(is_gated, answer.is_ok(), "{name} {precision} {method}: {answer:?}");
            }
        }
    }
}

//! A run that was cut short and goes on ends with the bits of one that was not.
#![cfg(unix)]

#[path = "../common/mod.rs"]
mod common;
mod compare;
mod events;
mod faults;
mod kill;
mod report;

use std::fs;
use std::path::Path;

use common::program::{Place, json, plumbline, refused};
use compare::{assert_same_run, loss_lines};

/// Six steps with everything that a checkpoint has to carry: accumulation, a schedule, two epochs,
/// evaluations.
fn eventful(recipe: &str) -> String {
    recipe
        .replace("steps = 3", "steps = 6\naccumulation = 2\neval_every = 3")
        .replace("[output]", "[schedule]\nwarmup_steps = 2\n[checkpoints]\nevery = 2\n[output]")
        .replace("every = 2\n[output]", "every = 2\nkeep = 9\n[output]")
        .replace("seed = 9", "seed = 9\n[optimizer]\nlearning_rate = 1e-2")
}

/// The same recipe with another output folder.
fn into(recipe: &str, folder: &str) -> String {
    recipe.replace("\"run\"", &format!("{folder:?}"))
}

/// Makes a run as one that was killed somewhere after step `step` left it.
fn cut_short(run: &Path, step: u64) {
    let checkpoints = fs::read_dir(run.join("checkpoints")).unwrap();
    for entry in checkpoints.map(|entry| entry.unwrap().path()) {
        let name = entry.file_name().unwrap().to_string_lossy().into_owned();
        if name.trim_start_matches("step-").parse::<u64>().unwrap() > step {
            fs::remove_dir_all(entry).unwrap();
        }
    }
    // What a killed process leaves: half a line, half a folder.
    let metrics = run.join("metrics.jsonl");
    let text = fs::read_to_string(&metrics).unwrap();
    fs::write(&metrics, &text[..text.len() - 7]).unwrap();
    fs::create_dir_all(run.join("checkpoints/.unfinished-x/y")).unwrap();
    fs::write(run.join(".unfinished-z"), "half").unwrap();
}

fn trained(place: &Place, arguments: &[&str]) -> serde_json::Value {
    json(&plumbline(place.path(), &[&["train", "recipe.toml", "--json"], arguments].concat()))
}

const L4Q: &str = "name = \"l4q\"\nbits = 4\ngroup_size = 16\nrank = 2";

/// Trains once through, and once cut short after step 2.
fn resumes(method: &str, device: &str) {
    resumes_with(method, device, |recipe| recipe);
}

/// The same with something else in the recipe.
fn resumes_with(method: &str, device: &str, change: impl Fn(String) -> String) {
    let place = Place::new();
    let at = place.path();
    let of_method = |recipe: String| change(eventful(&recipe).replace(L4Q, method));
    place.recipe(of_method);
    let whole = trained(&place, &["--device", device]);
    place.recipe(|recipe| into(&of_method(recipe), "cut"));
    trained(&place, &["--device", device]);
    cut_short(&at.join("cut"), 2);
    let resumed = trained(&place, &["--device", device, "--resume"]);
    assert_same_run(&at.join("run"), &at.join("cut"));
    assert_eq!(resumed["last_loss"], whole["last_loss"], "{method}");
    assert_eq!(resumed["perplexity"], whole["perplexity"], "{method}");
    let losses = loss_lines(&at.join("cut"));
    assert_eq!(losses.len(), 6, "{method}");
    assert!(losses[5] != losses[4], "{method}: nothing moves");
}

#[test]
fn every_method_goes_on_to_the_same_bits() {
    for method in [
        L4Q,
        "name = \"lora\"\nrank = 2",
        "name = \"lr_qat\"\nbits = 4\ngroup_size = 16\nrank = 2\nlora_scaling = 4.0\n\
         downcast = \"int\"",
        "name = \"lr_qat\"\nbits = 3\nrank = 2\nlora_scaling = 4.0\ndowncast = \"f32\"\n\
         inner_scale = \"live\"",
        "name = \"lr_qat\"\nbits = 4\ngroup_size = 16\nrank = 2\nlora_scaling = 4.0\n\
         downcast = \"fixed8\"\nactivations = { bits = 8, kv_bits = 4 }",
        "name = \"peqa\"\nbits = 4",
        "name = \"qa_lora\"\nbits = 4\ngroup_size = 16\nrank = 2",
        GPTQ_BASE,
        "name = \"qat\"\nbits = 4\ngroup_size = 16\nquantizer = \"lsq_plus\"",
        "name = \"qat_lora\"\nbits = 4\ngroup_size = 16\nrank = 2",
    ] {
        resumes(method, "cpu");
    }
}

/// Codes that are made of the whole model and kept in the run's folder.
const GPTQ_BASE: &str =
    "name = \"qa_lora\"\nbits = 3\ngroup_size = 16\nrank = 2\nbase = \"gptq\"\ngptq.windows = 3";

#[test]
fn codes_that_were_lost_are_made_again_and_others_are_refused() {
    let place = Place::new();
    let at = place.path();
    let of_method = |recipe: String| eventful(&recipe).replace(L4Q, GPTQ_BASE);
    place.recipe(of_method);
    trained(&place, &[]);
    place.recipe(|recipe| into(&of_method(recipe), "cut"));
    trained(&place, &[]);
    let codes = |run: &str| at.join(run).join("base/model.safetensors");
    let made = fs::read(codes("run")).unwrap();
    cut_short(&at.join("cut"), 2);
    fs::remove_dir_all(at.join("cut/base")).unwrap();
    trained(&place, &["--resume"]);
    assert_same_run(&at.join("run"), &at.join("cut"));
    assert!(fs::read(codes("cut")).unwrap() == made);
    let merge = |run: &str, out: &str| plumbline(at, &["merge", run, "--out", out, "--json"]);
    json(&merge("cut", "merged"));

    let mut other = made;
    *other.last_mut().unwrap() ^= 1;
    fs::write(codes("cut"), other).unwrap();
    refused(&merge("cut", "none"), &["trained on a base with fingerprint"]);
    refused(
        &plumbline(at, &["train", "recipe.toml", "--resume"]),
        &["trained with a base model of fingerprint"],
    );
}

#[test]
fn the_kernels_of_a_gpu_go_on_to_the_same_bits() {
    resumes(L4Q, "cuda-host");
}

/// The moments are on disk in the type that they are kept in, and go on from it.
#[test]
fn moments_in_bf16_go_on_to_the_same_bits() {
    for device in ["cpu", "cuda-host"] {
        resumes_with(L4Q, device, |recipe| {
            recipe.replace("learning_rate = 1e-2", "learning_rate = 1e-2\nstate = \"bf16\"")
        });
    }
}

/// Cut within the warm-up, at its end, and after it.
#[test]
fn a_target_goes_on_to_the_same_bits() {
    for method in [
        "name = \"l4q\"\nbits = 4\ngroup_size = 16\nrank = 2",
        "name = \"qat\"\nbits = 4\ngroup_size = 16\nquantizer = \"lsq\"",
        "name = \"peqa\"\nbits = 4\ngroup_size = 16",
        "name = \"lr_qat\"\nbits = 4\ngroup_size = 16\nrank = 2\nlora_scaling = 4.0\n\
         downcast = \"fixed8\"",
    ] {
        resumes(&format!("{method}\ntarget = \"awq\""), "cpu");
    }
}

#[test]
fn a_warm_up_goes_on_to_the_same_bits() {
    for steps in [1, 2, 3] {
        resumes(&format!("{L4Q}\nlora_warmup_steps = {steps}"), "cpu");
    }
}

#[test]
fn dropout_and_frozen_grids_go_on_to_the_same_bits() {
    resumes("name = \"lora\"\nrank = 2\ndropout = 0.3", "cpu");
    resumes(&format!("{L4Q}\ntrain_scale = false"), "cpu");
}

#[test]
fn a_pretraining_run_goes_on_to_the_same_model() {
    let place = Place::new();
    let at = place.path();
    let recipe = "[model]\nvocab_size = 280\nhidden_size = 16\nintermediate_size = 24\n\
                  num_hidden_layers = 1\nnum_attention_heads = 2\nnum_key_value_heads = 1\n\
                  rope_theta = 10000.0\nrms_norm_eps = 1e-5\n\
                  [data]\ntrain = [\"text.txt\"]\ncontext = 16\n\
                  [training]\nsteps = 4\nmicro_batch = 2\n\
                  [checkpoints]\nevery = 2\nkeep = 9\n[output]\ndir = \"run\"\n";
    for folder in ["run", "cut"] {
        fs::write(at.join("pre.toml"), into(recipe, folder)).unwrap();
        assert!(plumbline(at, &["pretrain", "pre.toml"]).status.success());
    }
    cut_short(&at.join("cut"), 2);
    fs::remove_dir_all(at.join("cut/model")).unwrap();
    assert!(plumbline(at, &["pretrain", "pre.toml", "--resume"]).status.success());
    assert_same_run(&at.join("run"), &at.join("cut"));
    let model = |run: &str| fs::read(at.join(run).join("model/model.safetensors")).unwrap();
    assert_eq!(model("run"), model("cut"));
}

#[test]
fn a_run_without_a_checkpoint_begins_again_and_a_complete_one_stays() {
    let place = Place::new();
    let at = place.path();
    // --resume where there is nothing yet begins, so one command line serves a job queue.
    place.recipe(|recipe| eventful(&recipe));
    trained(&place, &["--resume"]);
    place.recipe(|recipe| into(&eventful(&recipe), "cut"));
    trained(&place, &["--resume"]);
    cut_short(&at.join("cut"), 0);
    trained(&place, &["--resume"]);
    assert_same_run(&at.join("run"), &at.join("cut"));
    let before = fs::read(at.join("cut/metrics.jsonl")).unwrap();
    assert_eq!(trained(&place, &["--resume"])["steps"], 6);
    assert_eq!(fs::read(at.join("cut/metrics.jsonl")).unwrap(), before);
}

#[test]
fn a_moved_folder_is_a_run_too() {
    let place = Place::new();
    let at = place.path();
    place.recipe(|recipe| eventful(&recipe));
    trained(&place, &[]);
    place.recipe(|recipe| into(&eventful(&recipe), "cut"));
    trained(&place, &[]);
    cut_short(&at.join("cut"), 4);
    fs::rename(at.join("cut"), at.join("moved")).unwrap();
    let output = plumbline(at, &["train", "moved", "--resume", "--json"]);
    assert_eq!(json(&output)["steps"], 6);
    assert!(!at.join("cut").exists());
    assert_same_run(&at.join("run"), &at.join("moved"));
}

/// A rate at which the model soon gets worse, and a patience of two evaluations.
fn patient(recipe: &str) -> String {
    eventful(recipe)
        .replace("eval_every = 3", "eval_every = 1")
        .replace("steps = 6", "steps = 60")
        .replace("learning_rate = 1e-2", "learning_rate = 0.3")
        .replace("[output]", "[early_stopping]\npatience = 2\n[output]")
}

/// The newest and the best stay; merging takes the one that is asked for.
#[test]
fn old_checkpoints_go_and_the_best_stays() {
    let place = Place::new();
    let at = place.path();
    place.recipe(|recipe| {
        patient(&recipe).replace("keep = 9", "keep = 1").replace("every = 2\n", "every = 1\n")
    });
    let ended = trained(&place, &[]);
    let (best, last) = (ended["best_step"].as_u64().unwrap(), ended["steps"].as_u64().unwrap());
    assert_eq!(last, best + 2);
    let left = fs::read_dir(at.join("run/checkpoints")).unwrap().count();
    assert_eq!(left, 2, "one by keep and the best");
    let merge = |which: &str, out: &str| {
        plumbline(at, &["merge", "run", "--checkpoint", which, "--out", out, "--json"])
    };
    let path = json(&merge("best", "best"))["checkpoint"].as_str().unwrap().to_owned();
    assert!(path.ends_with(&format!("step-{best}")), "{path}");
    let newest = format!("step-{last}");
    json(&merge(&newest, "last"));
    let model = |folder: &str| fs::read(at.join(folder).join("model.safetensors")).unwrap();
    assert_ne!(model("best"), model("last"));
    refused(&merge("step-777", "none"), &["step-777", &newest]);
    refused(&merge("newest", "none"), &["newest", "best", "step-N"]);
}

#[test]
fn a_run_ends_where_its_evaluations_stop_improving() {
    let place = Place::new();
    let at = place.path();
    place.recipe(|recipe| patient(&recipe));
    let ended = trained(&place, &[]);
    assert_eq!(ended["end"], "early");
    let (best, last) = (ended["best_step"].as_u64().unwrap(), ended["steps"].as_u64().unwrap());
    assert!(last == best + 2 && last < 60, "{best} {last}");
    // It is over, also for --resume; and one that is cut short ends at the same step.
    assert_eq!(trained(&place, &["--resume"])["steps"], last);
    place.recipe(|recipe| into(&patient(&recipe), "cut"));
    trained(&place, &[]);
    cut_short(&at.join("cut"), best);
    assert_eq!(trained(&place, &["--resume"])["steps"], last);
    assert_same_run(&at.join("run"), &at.join("cut"));
    place.recipe(|recipe| patient(&recipe).replace("eval_every = 1", "eval_every = 0"));
    fs::remove_dir_all(at.join("run")).unwrap();
    refused(&plumbline(at, &["train", "recipe.toml"]), &["early_stopping.patience", "eval_every"]);
}

/// Held-back samples stand where texts do: they end the run and name its best checkpoint.
#[test]
fn a_run_that_is_judged_by_held_back_samples_goes_on_to_the_same_bits() {
    let place = Place::new();
    let at = place.path();
    let samples = |count: usize| -> String {
        let answers = ["chaos", "the secret top", "seed", "rose out of chaos"];
        let turn = |role: &str, content| serde_json::json!({ "role": role, "content": content });
        let sample = |n: usize| {
            let answer = format!("{}{}", answers[n % 4], " the earth".repeat(n % 3));
            let turns = [turn("user", "a".into()), turn("assistant", answer)];
            format!("{}\n", serde_json::json!({ "messages": turns }))
        };
        (0..count).map(sample).collect()
    };
    fs::write(at.join("train.jsonl"), samples(17)).unwrap();
    fs::write(at.join("held_back.jsonl"), samples(5)).unwrap();
    let of_samples = |recipe: String| {
        patient(&recipe).replace("train = [\"text.txt\"]\neval = [\"text.txt\"]\ncontext = 24", {
            "train = [\"train.jsonl\"]\neval_samples = [\"held_back.jsonl\"]\ncontext = 64\n\
             format = \"messages\""
        })
    };
    place.recipe(of_samples);
    let ended = trained(&place, &[]);
    assert_eq!(ended["end"], "early");
    assert!(ended["perplexity"]["held_back.jsonl"].is_number(), "{ended}");
    let (best, last) = (ended["best_step"].as_u64().unwrap(), ended["steps"].as_u64().unwrap());
    assert!(last == best + 2 && last < 60, "{best} {last}");
    place.recipe(|recipe| into(&of_samples(recipe), "cut"));
    trained(&place, &[]);
    cut_short(&at.join("cut"), best);
    assert_eq!(trained(&place, &["--resume"])["steps"], last);
    assert_same_run(&at.join("run"), &at.join("cut"));
}

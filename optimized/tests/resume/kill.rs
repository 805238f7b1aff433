//! The program is killed at random moments, goes on, and ends with the same files.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::common::program::Place;
use super::compare::{assert_same_run, loss_lines};
use super::{eventful, into, trained};

/// Kills; `PLUMBLINE_KILLS` asks for another number.
const KILLS: u32 = 5;

/// A checkpoint after every step, so that many of the moments fall into the writing of one.
fn busy(recipe: &str) -> String {
    eventful(recipe).replace("steps = 6", "steps = 12").replace("every = 2\n", "every = 1\n")
}

fn start(at: &Path) -> Child {
    Command::new(assert_cmd::cargo::cargo_bin("plumbline"))
        .args(["train", "recipe.toml", "--resume"])
        .current_dir(at)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Ctrl-C finishes the step, saves and says so by the exit code.
#[test]
fn an_interrupted_run_is_saved_and_goes_on_to_the_same_bits() {
    let place = Place::new();
    let at = place.path();
    let long = |recipe: String| eventful(&recipe).replace("steps = 6", "steps = 80");
    place.recipe(|recipe| long(recipe).replace("keep = 9", "keep = 99"));
    trained(&place, &[]);
    place.recipe(|recipe| into(&long(recipe).replace("keep = 9", "keep = 99"), "cut"));
    let mut child = start(at);
    let metrics = at.join("cut/metrics.jsonl");
    let began = Instant::now();
    while std::fs::read_to_string(&metrics).map_or(0, |text| text.matches("grad_norm").count()) < 3
    {
        assert!(began.elapsed() < Duration::from_secs(60), "the run does not begin");
        std::thread::sleep(Duration::from_millis(2));
    }
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let saved = |folder: &Path| {
        let entries = std::fs::read_dir(folder.join("checkpoints")).unwrap();
        let name = |entry: std::io::Result<std::fs::DirEntry>| entry.unwrap().file_name();
        let names = entries.map(name).map(|name| name.into_string().unwrap());
        names.collect::<std::collections::BTreeSet<_>>()
    };
    let count = loss_lines(&at.join("cut")).len();
    assert!(count < 80, "the run was over before the signal");
    let last = format!("step-{count}");
    assert!(saved(&at.join("cut")).contains(&last), "the step that ran is not saved");
    trained(&place, &["--resume"]);
    if !saved(&at.join("run")).contains(&last) {
        std::fs::remove_dir_all(at.join("cut/checkpoints").join(last)).unwrap();
    }
    assert_same_run(&at.join("run"), &at.join("cut"));
}

/// Every other run is killed a second time while it goes on.
#[test]
fn a_run_that_is_killed_at_any_moment_ends_with_the_same_files() {
    let kills = std::env::var("PLUMBLINE_KILLS").map_or(KILLS, |count| count.parse().unwrap());
    let place = Place::new();
    let at = place.path();
    place.recipe(|recipe| busy(&recipe));
    let began = Instant::now();
    trained(&place, &[]);
    let whole = began.elapsed();
    let mut random = ChaCha8Rng::seed_from_u64(u64::from(kills));
    let (mut killed, mut number) = (0, 0);
    while killed < kills {
        number += 1;
        assert!(number <= 4 * kills, "runs end before they are killed");
        let folder = format!("killed-{number}");
        place.recipe(|recipe| into(&busy(&recipe), &folder));
        for _ in 0..1 + number % 2 {
            let mut child = start(at);
            let micros = random.random_range(0..whole.as_micros() as u64);
            std::thread::sleep(Duration::from_micros(micros));
            // On Unix this is the signal that nobody can catch.
            child.kill().unwrap();
            let ended = child.wait().unwrap();
            killed += u32::from(ended.code().is_none());
        }
        trained(&place, &["--resume"]);
        assert_same_run(&at.join("run"), &at.join(&folder));
    }
    println!("{killed} kills, all runs bitwise equal to the uninterrupted one");
}

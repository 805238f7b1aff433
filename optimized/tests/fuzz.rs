//! Files of every format, broken at random: a reader may refuse them, and must neither panic nor ask
//! for memory that a file of that size cannot need.
//!
//! Two seconds for each format by default; `PLUMBLINE_FUZZ_SECONDS=600 cargo test -p plumbline --test
//! fuzz` is the long run. `PLUMBLINE_FUZZ_SEED` begins elsewhere.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::merged::{Kind, Trained, config, sentence_pieces};
use plumbline::checkpoint::ModelFolder;
use plumbline::export::{CodedLayer, FloatType, Format, Request, export};
use plumbline::model::{Projection, tensor_shapes};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

/// Remembers the largest single request.
struct Watched;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Watched {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.fetch_max(size, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watched = Watched;

/// The whole model is below 200 kB; its weights in f32 are a few of these.
const MOST_BYTES: usize = 64 << 20;

/// A valid model to break: the names of its files and their bytes.
struct Model {
    name: &'static str,
    files: Vec<(&'static str, Vec<u8>)>,
}

impl Model {
    /// As `format` has it, or as it was merged.
    fn new(name: &'static str, kind: Kind, format: Option<Format>) -> Self {
        Self::of(name, kind, format, config(), None)
    }

    /// One file with a tokenizer of pieces and scores in it.
    fn with_tokenizer(name: &'static str, format: Format) -> Self {
        let mut config = config();
        config["vocab_size"] = 288.into();
        let tokenizer = sentence_pieces().to_string();
        Self::of(name, Kind::Symmetric, Some(format), config, Some(&tokenizer))
    }

    fn of(
        name: &'static str,
        kind: Kind,
        format: Option<Format>,
        config: Value,
        tokenizer: Option<&str>,
    ) -> Self {
        let root = tempfile::tempdir().unwrap();
        let merged = root.path().join("merged");
        Trained::new(kind, 4, Some(32)).write(&merged, config);
        if let Some(tokenizer) = tokenizer {
            fs::write(merged.join("tokenizer.json"), tokenizer).unwrap();
        }
        let out = match format {
            None => merged,
            Some(format) => {
                let (source, out) = (ModelFolder::open(&merged).unwrap(), root.path().join("out"));
                let floats = FloatType::F32;
                let request = Request { source: &source, format, floats, out: &out, force: false };
                export(&request, &|_, _| ()).unwrap();
                out
            }
        };
        let files = match out.is_file() {
            true => vec![("model.gguf", fs::read(&out).unwrap())],
            false => ["config.json", "model.safetensors"]
                .map(|file| (file, fs::read(out.join(file)).unwrap()))
                .into(),
        };
        Self { name, files }
    }

    fn write(&self, folder: &Path) -> PathBuf {
        for (name, bytes) in &self.files {
            fs::write(folder.join(name), bytes).unwrap();
        }
        match &self.files[..] {
            [(name, _)] => folder.join(name),
            _ => folder.to_path_buf(),
        }
    }

    /// One to three changes in one of the files, mostly where it says what it is.
    fn broken(&self, random: &mut ChaCha8Rng) -> Self {
        let mut files = self.files.clone();
        let which = random.random_range(0..files.len());
        let bytes = &mut files[which].1;
        for _ in 0..random.random_range(1..=3) {
            let head = bytes.len().min(6000);
            let within = if random.random_bool(0.9) { head } else { bytes.len() };
            change(bytes, within.max(1), random);
        }
        Self { name: self.name, files }
    }
}

/// Numbers that lengths and counts go wrong at.
const EDGES: [u64; 10] = [
    0,
    1,
    31,
    (1 << 31) - 1,
    1 << 32,
    (1 << 53) + 1,
    i64::MAX as u64,
    1 << 63,
    u64::MAX - 7,
    u64::MAX,
];

fn change(bytes: &mut Vec<u8>, within: usize, random: &mut ChaCha8Rng) {
    if bytes.is_empty() {
        return;
    }
    let place = random.random_range(0..within.min(bytes.len()));
    let edge = EDGES[random.random_range(0..EDGES.len())];
    match random.random_range(0..8) {
        0 => bytes[place] ^= 1 << random.random_range(0..8),
        1 => bytes[place] = random.random(),
        2 => {
            for (byte, new) in bytes[place..].iter_mut().zip(edge.to_le_bytes()) {
                *byte = new;
            }
        }
        3 => bytes.truncate(place),
        4 => {
            let end = (place + random.random_range(1..64)).min(bytes.len());
            bytes.drain(place..end);
        }
        5 => {
            let end = (place + random.random_range(1..64)).min(bytes.len());
            let again = bytes[place..end].to_vec();
            bytes.splice(place..place, again);
        }
        // A number in a text becomes another one.
        6 => {
            if let Some(start) =
                (place..within.min(bytes.len())).find(|at| bytes[*at].is_ascii_digit())
            {
                let digits = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
                bytes.splice(start..start + digits, edge.to_string().into_bytes());
            }
        }
        _ => {
            const WORDS: [&[u8]; 8] =
                [b"null", b"-1", b"[]", b"{}", b"\"\"", b"1e308", b"true", b"-0.0"];
            let word = WORDS[random.random_range(0..WORDS.len())];
            if let Some(colon) = (place..within.min(bytes.len())).find(|at| bytes[*at] == b':') {
                let value = colon + 1;
                let rest = bytes[value..].iter();
                let length = rest.take_while(|byte| !b",}]\n".contains(byte)).count();
                bytes.splice(value..value + length, word.iter().copied());
            }
        }
    }
}

/// Everything that a reader does: whether it took the file.
fn read(path: &Path) -> bool {
    let Ok(folder) = ModelFolder::open(path) else { return false };
    let mut taken = true;
    for linear in Projection::all(folder.config()) {
        let coded = CodedLayer::read(&folder, &linear);
        if let Ok(Some(layer)) = coded {
            assert_eq!(layer.weight().len(), linear.out_features * linear.in_features);
            continue;
        }
        taken &= coded.is_ok();
        taken &= folder.unpacked(&linear).is_ok() && folder.weight(&linear).is_ok();
    }
    for (name, shape) in tensor_shapes(folder.config()) {
        if !name.contains("_proj.") {
            taken &= folder.tensor(&name, &shape).is_ok();
        }
    }
    let _either = (folder.tokenizer().is_ok(), folder.fingerprint().is_ok());
    taken
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn no_broken_file_makes_a_reader_panic_or_ask_for_much() {
    let models = [
        Model::new("merged", Kind::Offset, None),
        Model::new("zero points", Kind::ZeroPoint, None),
        Model::new("side by side", Kind::RealZero, Some(Format::Plumbline)),
        Model::new("plain", Kind::Symmetric, Some(Format::HuggingFace)),
        Model::new("compressed-tensors", Kind::ZeroPoint, Some(Format::CompressedTensors)),
        Model::new("gptq", Kind::Symmetric, Some(Format::Gptq)),
        Model::new("awq", Kind::ZeroPoint, Some(Format::Awq)),
        Model::new("mlx", Kind::Symmetric, Some(Format::Mlx)),
        Model::new("gguf", Kind::Symmetric, Some(Format::GgufQ4_0)),
        Model::with_tokenizer("gguf with a tokenizer", Format::GgufQ4_0),
    ];
    let each = Duration::from_secs(setting("PLUMBLINE_FUZZ_SECONDS", 2));
    let first = setting("PLUMBLINE_FUZZ_SEED", 0);
    let folder = tempfile::tempdir().unwrap();
    // What a panic says is told by the failure below.
    std::panic::set_hook(Box::new(|_| ()));
    let mut failures = Vec::new();
    for model in &models {
        let (began, mut tried, mut taken) = (Instant::now(), 0u64, 0u64);
        assert!(read(&model.write(folder.path())), "{} is not valid to begin with", model.name);
        while began.elapsed() < each {
            let seed = first + tried;
            let broken = model.broken(&mut ChaCha8Rng::seed_from_u64(seed));
            let path = broken.write(folder.path());
            LARGEST.store(0, Ordering::Relaxed);
            let outcome = catch_unwind(AssertUnwindSafe(|| read(&path)));
            let largest = LARGEST.load(Ordering::Relaxed);
            match outcome {
                Ok(was_taken) => taken += u64::from(was_taken),
                Err(panic) => {
                    let said = panic.downcast_ref::<String>().cloned();
                    let said = said.or(panic.downcast_ref::<&str>().map(|said| (*said).to_owned()));
                    failures.push(format!(
                        "{} seed {seed}: {}",
                        model.name,
                        said.unwrap_or_default()
                    ));
                }
            }
            if largest > MOST_BYTES {
                failures.push(format!("{} seed {seed}: asks for {largest} bytes", model.name));
            }
            if failures.len() > 20 {
                break;
            }
            tried += 1;
        }
        for file in ["config.json", "model.safetensors", "model.gguf"] {
            let _not_there = fs::remove_file(folder.path().join(file));
        }
        eprintln!("{}: {tried} broken files, {taken} of them still a model", model.name);
        assert!(tried > 50 && taken < tried, "{}: {tried} files, {taken} taken", model.name);
    }
    let _ = std::panic::take_hook();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

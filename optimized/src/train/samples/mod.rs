//! Samples of answers to learn, from files that may be larger than memory: instructions and chats.
//!
//! The files are read once at the start: every record is checked, turned into tokens and counted,
//! and of each only its place and length are kept. A batch reads its records again, those of a
//! table from a temporary file. What a batch holds is a function of the files, the settings and its
//! number: nothing else has to be remembered to go on with a run.

mod encode;
mod format;
mod packing;
mod records;
mod report;
mod source;

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use self::source::Opened;
use super::sequences::Sequences;
use crate::checkpoint::hex;
use crate::error::{Error, Result};

pub use encode::{Dropped, Encoded, Encoder, LossOn, Sample, TooLong};
pub use format::{CHATML_END, CHATML_START, ChatTemplate, SampleFormat, Span};
pub use packing::{EpochOrder, Windows};
pub use records::{Record, Records};
pub use report::DataReport;

/// Records that are turned into tokens together, and the bytes of them after which no other is
/// taken.
const CHUNK: usize = 1024;
const CHUNK_BYTES: usize = 16 << 20;

/// How samples are put into windows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WindowSettings {
    /// Several samples to a window, or each alone.
    pub packing: bool,
    /// Share of the samples that may be dropped or cut.
    pub max_dropped: f64,
    /// Seed of the order.
    pub seed: u64,
}

/// Where a sample stands, and how long it is.
#[derive(Debug, Clone, Copy)]
struct Place {
    offset: u64,
    bytes: u32,
    tokens: u32,
}

/// A file, where its records are read again, and the number of its first sample.
struct Source {
    path: PathBuf,
    file: File,
    first: usize,
}

/// Windows of samples.
pub struct Samples {
    encoder: Arc<Encoder>,
    sources: Vec<Source>,
    places: Vec<Place>,
    windows: Windows,
    order: EpochOrder,
    packing: bool,
    report: DataReport,
    fingerprint: String,
}

/// What the first reading gathers.
struct Reading<'e> {
    encoder: &'e Encoder,
    places: Vec<Place>,
    report: DataReport,
    hash: Sha256,
}

impl Samples {
    /// Reads and checks every file.
    ///
    /// # Errors
    /// `File` naming file and line or row of a record that cannot be used; `Invalid` when more samples
    /// would be dropped or cut than the settings allow, or none is left; `Io`.
    pub fn open(
        paths: &[PathBuf],
        encoder: impl Into<Arc<Encoder>>,
        settings: WindowSettings,
    ) -> Result<Self> {
        let encoder = encoder.into();
        let mut reading = Reading {
            encoder: &encoder,
            places: Vec::new(),
            report: DataReport::default(),
            hash: Sha256::new(),
        };
        let mut sources = Vec::with_capacity(paths.len());
        for path in paths {
            let first = reading.places.len();
            let file = reading.read(path)?;
            sources.push(Source { path: path.clone(), file, first });
        }
        let Reading { places, mut report, mut hash, .. } = reading;
        report.check(settings.max_dropped, encoder.context)?;
        let windows = if settings.packing {
            let lengths: Vec<u32> = places.iter().map(|place| place.tokens).collect();
            Windows::packed(&lengths, encoder.context)
        } else {
            Windows::alone(places.len())
        };
        report.windows = windows.count();
        report.context = encoder.context;
        let WindowSettings { packing, seed, .. } = settings;
        hash.update(format!("windows of {}, packing {packing}, seed {seed}\n", encoder.context));
        let order = EpochOrder::new(windows.count(), seed);
        let fingerprint = hex(hash);
        Ok(Self { encoder, sources, places, windows, order, packing, report, fingerprint })
    }

    /// What was found in the files.
    pub fn report(&self) -> &DataReport {
        &self.report
    }

    /// Tokens of a window.
    pub fn context(&self) -> usize {
        self.encoder.context
    }

    /// Windows of one epoch.
    pub fn windows_per_epoch(&self) -> usize {
        self.windows.count()
    }

    /// SHA-256 over the samples and how they are put into windows: equal for equal batches.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// `count` windows, beginning with the run's window number `first`. Packed ones have as many
    /// tokens as a window holds, others as many as the longest of them.
    ///
    /// # Errors
    /// `Io`; `File` for a file that is no longer what it was.
    pub fn batch(&mut self, first: u64, count: usize) -> Result<Sequences> {
        let windows: Vec<usize> =
            (first..first + count as u64).map(|number| self.order.window(number)).collect();
        self.sequences(&windows)
    }

    /// Some windows in the order in which they were made, whatever the seed: for measuring.
    ///
    /// # Errors
    /// As [`Samples::batch`].
    pub fn in_order(&mut self, windows: Range<usize>) -> Result<Sequences> {
        self.sequences(&windows.collect::<Vec<_>>())
    }

    fn sequences(&mut self, windows: &[usize]) -> Result<Sequences> {
        let length = match self.packing {
            true => self.encoder.context,
            false => {
                let alone = |window: &usize| self.places[*window].tokens as usize;
                windows.iter().map(alone).max().unwrap_or(0)
            }
        };
        let mut sequences = Sequences::new(windows.len(), length);
        for &window in windows {
            for index in 0..self.windows.samples(window).len() {
                let sample = self.sample(self.windows.samples(window)[index] as usize)?;
                sequences.add_document(&sample.tokens, &sample.targets);
            }
            sequences.end_sequence();
        }
        Ok(sequences)
    }

    fn sample(&mut self, number: usize) -> Result<Sample> {
        let place = self.places[number];
        let of = self.sources.partition_point(|source| source.first <= number) - 1;
        let Source { path, file, .. } = &mut self.sources[of];
        let bytes = records::read_again(path, file, place.offset, place.bytes as usize)?;
        match self.encoder.encode(&bytes) {
            Ok(Encoded::Whole(sample) | Encoded::Cut(sample))
                if sample.tokens.len() == place.tokens as usize =>
            {
                Ok(sample)
            }
            _ => Err(Error::file(&*path, "has changed since training began")),
        }
    }
}

fn next_chunk(records: &mut Opened) -> Result<Vec<Record>> {
    let (mut chunk, mut bytes) = (Vec::new(), 0);
    for record in records {
        let record = record?;
        bytes += record.bytes.len();
        chunk.push(record);
        if chunk.len() == CHUNK || bytes >= CHUNK_BYTES {
            break;
        }
    }
    Ok(chunk)
}

impl Reading<'_> {
    /// Reads and checks a file; the file that its records are read again from is returned.
    fn read(&mut self, path: &Path) -> Result<File> {
        let mut records = Opened::new(path, &self.encoder.format)?;
        let unit = records.unit();
        let before = self.report.samples;
        loop {
            let chunk = next_chunk(&mut records)?;
            if chunk.is_empty() {
                break;
            }
            let encoded: Vec<_> =
                chunk.par_iter().map(|record| self.encoder.encode(&record.bytes)).collect();
            for (record, encoded) in chunk.iter().zip(encoded) {
                let encoded = encoded.map_err(|bad| {
                    let line = record.line + bad.line - 1;
                    Error::file(path, format!("{unit} {line}: {}", bad.reason))
                })?;
                self.keep(path, (unit, record), encoded)?;
            }
        }
        match self.report.samples - before {
            0 => Err(Error::file(path, "holds no sample")),
            _ => records.into_file(path),
        }
    }

    fn keep(
        &mut self,
        path: &Path,
        (unit, record): (&str, &Record),
        encoded: Encoded,
    ) -> Result<()> {
        self.report.count(&encoded, || match unit {
            "line" => format!("{}:{}", path.display(), record.line),
            _ => format!("{}: {unit} {}", path.display(), record.line),
        });
        let (Encoded::Whole(sample) | Encoded::Cut(sample)) = encoded else { return Ok(()) };
        let too_large = |_| Error::file(path, format!("{unit} {}: over 4 GiB", record.line));
        if self.places.len() == u32::MAX as usize {
            return Err(Error::Invalid(format!("more than {} samples", u32::MAX)));
        }
        for value in sample.tokens.iter().chain(&sample.targets) {
            self.hash.update(value.to_le_bytes());
        }
        self.hash.update((sample.tokens.len() as u64).to_le_bytes());
        self.places.push(Place {
            offset: record.offset,
            bytes: u32::try_from(record.bytes.len()).map_err(too_large)?,
            tokens: sample.tokens.len() as u32,
        });
        Ok(())
    }
}

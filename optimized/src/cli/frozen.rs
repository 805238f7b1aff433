//! The codes that a run freezes where GPTQ makes them: made once, kept in the run's folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use plumbline::backend::Backend;
use plumbline::checkpoint::{
    ModelFolder, QuantizationConfig, StoredCodes, new_folder, save_merged, sha256,
};
use plumbline::finetune::{FrozenCodes, MergedModel};
use plumbline::methods::AffineTensors;
use plumbline::model::Projection;
use plumbline::ptq::{Calibration, PtqSettings, quantize_watched};
use plumbline::recipe::MethodSettings;
use plumbline::train::TrainingData;

use super::progress::Progress;

/// The folder of the codes in that of a run.
const FOLDER: &str = "base";

/// Codes of a run.
pub enum Frozen<B: Backend> {
    /// The method makes them of each layer.
    None,
    /// Read from the run's folder.
    Stored { codes: FrozenCodes, fingerprint: String },
    /// Made for a run that has none yet.
    Made { settings: PtqSettings, model: Box<MergedModel<B, AffineTensors>> },
}

impl<B: Backend> Frozen<B> {
    /// Those of the run in a folder, or new ones.
    pub fn find(
        backend: Arc<B>,
        run: &Path,
        method: &MethodSettings,
        base: &ModelFolder,
        data: &mut TrainingData,
    ) -> Result<Self> {
        let Some((settings, windows)) = method.gptq_base()? else { return Ok(Self::None) };
        if run.join(FOLDER).exists() {
            let (codes, fingerprint) = stored(run)?;
            return Ok(Self::Stored { codes, fingerprint });
        }
        let calibration = Calibration::of_training(data, windows)?;
        let layers = Projection::all(base.config()).len();
        let mut bar = Progress::new(settings.name(), layers as u64);
        let progress = |done| bar.at(done as u64, String::new);
        let model = quantize_watched(backend, base, &settings, &calibration, progress)?;
        Ok(Self::Made { settings, model: Box::new(model) })
    }

    /// Those that layers begin with.
    pub fn codes(&self) -> Option<&FrozenCodes> {
        match self {
            Self::None => None,
            Self::Stored { codes, .. } => Some(codes),
            Self::Made { model, .. } => Some(&model.linears),
        }
    }

    /// Writes them where they are new. What is trained has a fingerprint of both, the base's own
    /// and theirs.
    pub fn keep(self, run: &Path, base: &ModelFolder, fingerprint: String) -> Result<String> {
        let of_codes = match self {
            Self::None => return Ok(fingerprint),
            Self::Stored { fingerprint, .. } => fingerprint,
            Self::Made { settings, model } => {
                let path = run.join(FOLDER);
                let quantization =
                    QuantizationConfig::new(settings.grid(), AffineTensors::ZERO_POINT, []);
                let MergedModel { model, linears } = &*model;
                new_folder(&path, |folder| {
                    save_merged(folder, model, linears, &quantization, base)
                })?;
                ModelFolder::open(&path)?.fingerprint()?
            }
        };
        Ok(of_both(&fingerprint, &of_codes))
    }
}

/// The codes of a run and their fingerprint.
fn stored(run: &Path) -> Result<(FrozenCodes, String)> {
    let path: PathBuf = run.join(FOLDER);
    let folder = ModelFolder::open(&path)?;
    let codes = Projection::all(folder.config())
        .into_iter()
        .map(|linear| Ok((linear.name.clone(), folder.affine(&linear)?)))
        .collect::<Result<_>>()
        .with_context(|| format!("{}: the codes of the run", path.display()))?;
    Ok((codes, folder.fingerprint()?))
}

/// The codes of a run that was trained, and the fingerprint of what was trained.
pub fn of_run(
    run: &Path,
    method: &MethodSettings,
    fingerprint: String,
) -> Result<(Option<FrozenCodes>, String)> {
    if method.gptq_base()?.is_none() {
        return Ok((None, fingerprint));
    }
    let (codes, of_codes) = stored(run)?;
    Ok((Some(codes), of_both(&fingerprint, &of_codes)))
}

fn of_both(base: &str, codes: &str) -> String {
    sha256(format!("{base}\n{codes}\n").as_bytes())
}

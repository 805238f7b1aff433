//! What the program carries: a small pretrained model and texts to measure and train it on.
//! Origin and licence: `assets/PROVENANCE.md`.

use crate::error::{Error, Result};

const TEXTS: [(&str, &str); 3] = [
    ("milton_train", include_str!("../assets/texts/milton_train.txt")),
    ("milton_eval", include_str!("../assets/texts/milton_eval.txt")),
    ("plays_eval", include_str!("../assets/texts/plays_eval.txt")),
];

/// A text by name: `milton_train`, `milton_eval` (held back), `plays_eval` (held back).
///
/// # Errors
/// `Invalid` listing the names there are.
pub fn text(name: &str) -> Result<&'static str> {
    TEXTS.iter().find(|(known, _)| *known == name).map(|(_, text)| *text).ok_or_else(|| {
        let names = TEXTS.map(|(name, _)| format!("builtin:{name}")).join(", ");
        Error::Invalid(format!("there is no text builtin:{name}; there are {names}"))
    })
}
/// tmp
pub fn model() -> Result<crate::checkpoint::ModelFolder> { Err(Error::Invalid("tmp".into())) }

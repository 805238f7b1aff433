//! What the program carries: a small pretrained model and texts to measure and train it on.
//! Origin and licence: `assets/PROVENANCE.md`.

use std::path::Path;

use crate::checkpoint::ModelFolder;
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
/// The small model: LLaMA, 1.4 M parameters, bf16, trained on Shakespeare.
///
/// # Errors
/// None that a test has not excluded: the files are part of the program.
pub fn model() -> Result<ModelFolder> {
    ModelFolder::from_bytes(
        Path::new("builtin"),
        include_str!("../assets/tiny/model/config.json"),
        include_bytes!("../assets/tiny/model/model.safetensors"),
        include_bytes!("../assets/tiny/model/tokenizer.json"),
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cpu::Cpu;
    use crate::eval::perplexity;

    #[test]
    fn the_built_in_model_reads_shakespeare_that_it_has_not_seen() {
        let folder = model().unwrap();
        let mut tokens = folder.tokenizer().unwrap().encode(text("plays_eval").unwrap()).unwrap();
        tokens.truncate(2048);
        let model = folder.load_dense(Arc::new(Cpu), false).unwrap();
        let found = perplexity(&model, &tokens, 256, |_| {}).unwrap();
        assert_eq!((found.windows, found.predicted_tokens), (8, 8 * 255));
        // The value that the pretraining's weights gave when they were added.
        assert!((found.perplexity - BUILT_IN_PERPLEXITY).abs() < 0.01, "{}", found.perplexity);
    }

    #[test]
    fn an_unknown_text_is_refused_with_the_names_there_are() {
        let message = text("homer").unwrap_err().to_string();
        assert!(message.contains("homer") && message.contains("builtin:milton_eval"), "{message}");
    }

    const BUILT_IN_PERPLEXITY: f64 = 42.557;
}

//! The template that makes a text of a chat, handed on from a model to what is made of it. It is not
//! interpreted here.

use std::io::ErrorKind;
use std::path::Path;

use serde_json::Value;

use super::atomic::write_file;
use crate::error::{Error, Result};

/// Where transformers looks first.
const FILE: &str = "chat_template.jinja";

/// The template of a folder: in a file of its own, or the only or default one of
/// `tokenizer_config.json`.
pub(super) fn read(folder: &Path) -> Result<Option<String>> {
    if let Some(template) = text(&folder.join(FILE))? {
        return Ok(Some(template));
    }
    let path = folder.join("tokenizer_config.json");
    let Some(config) = text(&path)? else { return Ok(None) };
    let config: Value = serde_json::from_str(&config).map_err(|error| Error::file(&path, error))?;
    let template = match &config["chat_template"] {
        Value::Array(named) => {
            let default = named.iter().find(|template| template["name"] == "default");
            default.map_or(&Value::Null, |default| &default["template"])
        }
        template => template,
    };
    match template {
        Value::Null => Ok(None),
        Value::String(template) => Ok(Some(template.clone())),
        other => {
            let reason =
                format!("chat_template is {other}, expected a text or a list of named ones");
            Err(Error::file(&path, reason))
        }
    }
}

/// Writes the template into an existing folder.
pub(crate) fn write(folder: &Path, template: Option<&str>) -> Result<()> {
    match template {
        Some(template) => write_file(&folder.join(FILE), template.as_bytes()),
        None => Ok(()),
    }
}

/// A text file that need not be there.
fn text(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(path, "read")(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_template_is_found_where_transformers_finds_it() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let config = |text: &str| fs::write(folder.join("tokenizer_config.json"), text).unwrap();
        assert_eq!(read(folder).unwrap(), None);
        config("{}");
        assert_eq!(read(folder).unwrap(), None);
        config(r#"{"chat_template": "one"}"#);
        assert_eq!(read(folder).unwrap().as_deref(), Some("one"));
        config(
            r#"{"chat_template": [{"name": "tool_use", "template": "two"},
                {"name": "default", "template": "three"}]}"#,
        );
        assert_eq!(read(folder).unwrap().as_deref(), Some("three"));
        config(r#"{"chat_template": 4}"#);
        let error = read(folder).unwrap_err().to_string();
        assert!(error.contains("tokenizer_config.json: chat_template is 4"), "{error}");
        write(folder, Some("five")).unwrap();
        assert_eq!(read(folder).unwrap().as_deref(), Some("five"));
    }
}

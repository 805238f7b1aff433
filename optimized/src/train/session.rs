//! `sessions.json`: where and when each process trained that a run consists of.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::checkpoint::write_file;
use crate::error::{Error, Result};

/// One process that trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Session {
    /// UTC.
    pub began: String,
    /// Steps that were done before.
    pub step: u64,
    /// Of this program.
    pub version: String,
    /// The backend.
    pub device: String,
    /// Threads of the processor.
    pub threads: usize,
    /// Name of the machine.
    pub host: String,
    /// Its processor.
    pub processor: String,
    /// Operating system and architecture.
    pub system: String,
}

impl Session {
    /// This process, about to go on from `step`.
    pub fn new(device: &str, step: u64) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            began: utc(now.as_secs()),
            step,
            version: env!("CARGO_PKG_VERSION").into(),
            device: device.into(),
            threads: rayon::current_num_threads(),
            host: host(),
            processor: processor(),
            system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        }
    }
}

/// The sessions of a run so far; none where the file is absent.
///
/// # Errors
/// `Io`; `File` where it is damaged.
pub fn read_sessions(path: &Path) -> Result<Vec<Session>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(path).map_err(Error::io(path, "read"))?;
    serde_json::from_str(&text).map_err(|error| Error::file(path, error))
}

/// Adds a session.
///
/// # Errors
/// As [`read_sessions`].
pub fn add_session(path: &Path, session: Session) -> Result<()> {
    let mut sessions = read_sessions(path)?;
    sessions.push(session);
    let text = serde_json::to_string_pretty(&sessions).expect("plain data serialises");
    write_file(path, text.as_bytes())
}

fn host() -> String {
    let of_kernel = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let name = of_kernel.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    if name.trim().is_empty() { "unknown".into() } else { name.trim().into() }
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name"));
    let name = line.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim());
    name.unwrap_or("unknown").into()
}

/// `2026-02-28 23:59:59` from seconds since 1970.
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Years begin in March, so that a leap day is the last of its year; 719468 days lie between
    // 0000-03-01 and 1970-01-01, and 146097 are 400 years.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let leap_days = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / 146_096;
    let year_of_era = (day_of_era - leap_days) / 365;
    let first = 365 * year_of_era + year_of_era / 4 - year_of_era / 100;
    let day_of_year = day_of_era - first;
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = 400 * era + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_dates_also_around_leap_days() {
        assert_eq!(utc(0), "1970-01-01 00:00:00");
        assert_eq!(utc(951_782_399), "2000-02-28 23:59:59");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(utc(1_772_323_199), "2026-02-28 23:59:59");
        assert_eq!(utc(4_107_542_400), "2100-03-01 00:00:00");
    }
}

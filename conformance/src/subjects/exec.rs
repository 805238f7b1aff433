//! `exec:COMMAND LINE`: an implementation in another process, over its standard streams.
//!
//! `exec-bf16:COMMAND LINE` is the same for one that rounds the factors of its products.
//! The command is started once and asked one line at a time, `eval <in>\t<out>`; it answers `ok`,
//! `skip <why>` or `error <what>`. The input file has the float type of the precision asked for.
//! A process that dies, exceeds the time limit or answers anything else is killed with everything
//! it started; that case fails, and the next one gets a fresh process.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::case::{Request, container, request_container};
use crate::error::Error;
use crate::ops::Operation;
use crate::precision::{Precision, Products};
use crate::subject::{Subject, SubjectError, Support};
use crate::tensor::Tensors;

/// An answer is one short line; a process that writes more without a line end is flooding.
const LONGEST_LINE: u64 = 64 * 1024;

/// What is kept of the standard error stream: its end.
const STDERR_KEPT: usize = 4096;

/// A file of outputs that is larger than this is not read.
const LARGEST_ANSWER: u64 = 4 << 30;

/// Time to end by itself after its input was closed.
const FAREWELL: Duration = Duration::from_secs(1);

/// A command that answers requests.
pub struct Exec {
    name: String,
    products: Products,
    command: String,
    timeout: Duration,
    folder: tempfile::TempDir,
    requests: u64,
    running: Option<Running>,
}

struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<Line>,
    stderr: Arc<Mutex<Vec<u8>>>,
}

enum Line {
    Text(String),
    Flood,
    NotText,
    End,
}

impl Exec {
    /// Starts nothing yet.
    ///
    /// # Errors
    /// `Usage` for an empty command, `Io` without a temporary folder.
    pub fn new(command: &str, products: Products, timeout: Duration) -> Result<Self, Error> {
        if command.trim().is_empty() {
            return Err(Error::Usage("subject is \"exec:\", expected a command line".to_owned()));
        }
        let folder = tempfile::Builder::new()
            .prefix("conform-exec-")
            .tempdir()
            .map_err(|source| Error::io(&std::env::temp_dir(), source))?;
        if folder.path().to_string_lossy().contains(['\t', '\n', '\r']) {
            let path = folder.path().display();
            return Err(Error::Usage(format!("temporary folder {path:?} holds a tab or line end")));
        }
        Ok(Self {
            name: match products {
                Products::AsStored => format!("exec:{command}"),
                Products::Bf16 => format!("exec-bf16:{command}"),
            },
            products,
            command: command.to_owned(),
            timeout,
            folder,
            requests: 0,
            running: None,
        })
    }

    fn ask(&mut self, input: &Path, output: &Path) -> Result<Tensors, SubjectError> {
        let running = match self.running.take() {
            Some(running) => self.running.insert(running),
            None => {
                let started = Running::start(&self.command);
                self.running.insert(started.map_err(|e| broken(format!("cannot start: {e}")))?)
            }
        };
        let answer = running.ask(input, output, self.timeout).map_err(broken)?;
        let (word, rest) = answer.split_once(' ').unwrap_or((&answer, ""));
        match (word, rest) {
            ("ok", "") => read_answer(output).map_err(broken),
            ("skip", why) => Err(SubjectError::Skip(why.to_owned())),
            ("error", what) => Err(SubjectError::Refused(what.to_owned())),
            _ => Err(broken(format!("answered {}, expected ok, skip or error", shown(&answer)))),
        }
    }
}

fn broken(what: String) -> SubjectError {
    SubjectError::Broken(what)
}

/// At most the beginning of something a process wrote, on one line.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(200).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    format!("{shown:?}")
}

fn read_answer(output: &Path) -> Result<Tensors, String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let size = std::fs::metadata(output)?.len();
        if size > LARGEST_ANSWER {
            return Err(std::io::Error::other(format!("{size} bytes are too many")));
        }
        std::fs::read(output)
    };
    let bytes = read().map_err(|e| format!("answered ok, but its output file: {e}"))?;
    let container =
        container::parse(&bytes).map_err(|e| format!("answered ok, but its output file: {e}"))?;
    let mut outputs = Tensors::new();
    for (name, tensor) in container.tensors {
        match name.strip_prefix("out.") {
            Some(name) => _ = outputs.insert(name.to_owned(), tensor),
            // A whole case with its inputs is welcome.
            None if name.starts_with("in.") => {}
            None => return Err(format!("answered ok, but its output file holds tensor {name}")),
        }
    }
    Ok(outputs)
}

impl Subject for Exec {
    fn name(&self) -> &str {
        &self.name
    }

    fn products(&self) -> Products {
        self.products
    }

    fn precisions(&self) -> &[Precision] {
        &[Precision::F32, Precision::F64]
    }

    fn supports(&self, _: &Operation, _: Precision) -> Support {
        Support::Yes
    }

    fn answers_in_any_type(&self) -> bool {
        true
    }

    fn run(&mut self, request: &Request, _: Precision) -> Result<Tensors, SubjectError> {
        self.requests += 1;
        // Fresh names: an answer can never be a leftover of an earlier case.
        let file = |end: &str| -> PathBuf {
            self.folder.path().join(format!("{}.{end}.safetensors", self.requests))
        };
        let (input, output) = (file("in"), file("out"));
        container::write(&input, &request_container(request))
            .map_err(|e| broken(format!("the request could not be written: {e}")))?;
        let result = self.ask(&input, &output);
        for path in [&input, &output] {
            // The folder is temporary and goes with the subject in any case.
            _ = std::fs::remove_file(path);
        }
        match result {
            Err(SubjectError::Broken(what)) => {
                let stderr = self.running.take().map(Running::kill).unwrap_or_default();
                let after =
                    if stderr.is_empty() { String::new() } else { format!("; stderr: {stderr}") };
                Err(broken(format!("{what}{after}")))
            }
            other => other,
        }
    }
}

impl Running {
    fn start(command: &str) -> std::io::Result<Self> {
        let mut shell = if cfg!(windows) { Command::new("cmd") } else { Command::new("sh") };
        shell.args([if cfg!(windows) { "/C" } else { "-c" }, command]);
        // A group of its own, so that a shell's children end with it.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut shell, 0);
        let mut child =
            shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let missing = || std::io::Error::other("a standard stream is missing");
        let stdin = child.stdin.take().ok_or_else(missing)?;
        let stdout = child.stdout.take().ok_or_else(missing)?;
        let stderr_pipe = child.stderr.take().ok_or_else(missing)?;
        // A short queue: who floods is blocked by its own pipe instead of filling memory.
        let (sender, lines) = sync_channel(2);
        std::thread::spawn(move || read_lines(BufReader::new(stdout), &sender));
        let stderr = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&stderr);
        std::thread::spawn(move || keep_end(stderr_pipe, &kept));
        Ok(Self { child, stdin: Some(stdin), lines, stderr })
    }

    fn ask(&mut self, input: &Path, output: &Path, timeout: Duration) -> Result<String, String> {
        match self.lines.try_recv() {
            Err(TryRecvError::Empty) => {}
            Ok(Line::Text(text)) => return Err(format!("wrote {} unasked", shown(&text))),
            Ok(Line::Flood | Line::NotText) => return Err("wrote unasked".to_owned()),
            Ok(Line::End) | Err(TryRecvError::Disconnected) => return Err(self.death()),
        }
        let request = format!("eval {}\t{}\n", input.display(), output.display());
        let sent = match self.stdin.as_mut() {
            Some(stdin) => stdin.write_all(request.as_bytes()).and_then(|()| stdin.flush()),
            None => return Err(self.death()),
        };
        if sent.is_err() {
            return Err(self.death());
        }
        match self.lines.recv_timeout(timeout) {
            Ok(Line::Text(text)) => Ok(text),
            Ok(Line::Flood) => Err(format!("wrote {LONGEST_LINE} bytes without a line end")),
            Ok(Line::NotText) => Err("answered with bytes that are not UTF-8".to_owned()),
            Ok(Line::End) | Err(RecvTimeoutError::Disconnected) => Err(self.death()),
            Err(RecvTimeoutError::Timeout) => {
                Err(format!("gave no answer within {} s", timeout.as_secs_f64()))
            }
        }
    }

    /// What is known about a process that closed its output.
    fn death(&mut self) -> String {
        match self.wait(FAREWELL) {
            Some(status) => format!("ended ({status}) without an answer"),
            None => "closed its output without an answer".to_owned(),
        }
    }

    fn wait(&mut self, limit: Duration) -> Option<std::process::ExitStatus> {
        let started = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if started.elapsed() < limit => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                _ => return None,
            }
        }
    }

    /// Ends the process and everything it started; the end of its standard error.
    fn kill(mut self) -> String {
        self.stop();
        // What was written before the end still travels through the reader's thread.
        std::thread::sleep(Duration::from_millis(20));
        let kept = self.stderr.lock().map(|kept| kept.clone()).unwrap_or_default();
        let text = String::from_utf8_lossy(&kept);
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    fn stop(&mut self) {
        self.stdin = None;
        #[cfg(unix)]
        {
            // The shell's own kill reaches a group; its leader is not reaped yet, so the number
            // cannot belong to anyone else.
            let group = format!("kill -KILL -{}", self.child.id());
            _ = Command::new("sh").args(["-c", &group]).stderr(Stdio::null()).status();
        }
        // Already ended is as good.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stdin = None;
        if self.wait(FAREWELL).is_none() {
            self.stop();
        }
    }
}

fn read_lines(mut stdout: impl BufRead, sender: &SyncSender<Line>) {
    loop {
        let mut bytes = Vec::new();
        let read = stdout.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut bytes);
        let line = match (read, bytes.pop()) {
            (Err(_), _) | (_, None) => Line::End,
            (Ok(_), Some(b'\n')) => match String::from_utf8(bytes) {
                Ok(text) => Line::Text(text.trim_end_matches('\r').to_owned()),
                Err(_) => Line::NotText,
            },
            // A last line without its end is no answer: the process died while writing it.
            (Ok(count), Some(_)) if (count as u64) < LONGEST_LINE => Line::End,
            (Ok(_), Some(_)) => Line::Flood,
        };
        let last = !matches!(line, Line::Text(_));
        if sender.send(line).is_err() || last {
            return;
        }
    }
}

fn keep_end(mut stderr: impl Read, kept: &Mutex<Vec<u8>>) {
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = stderr.read(&mut buffer) {
        let Ok(mut kept) = kept.lock() else { return };
        kept.extend_from_slice(&buffer[..count]);
        let surplus = kept.len().saturating_sub(STDERR_KEPT);
        kept.drain(..surplus);
    }
}

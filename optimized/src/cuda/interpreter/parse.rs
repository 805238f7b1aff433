//! The text of a compiled module, taken apart into statements. What they mean is decoded later.

use std::collections::HashMap;

use super::declare::{Declared, declared, head_of_entry, split};

/// A compiled module.
#[derive(Debug, Default)]
pub(super) struct Text {
    /// Its kernels.
    pub(super) entries: Vec<Entry>,
    /// Variables outside of kernels.
    pub(super) variables: Vec<Declared>,
    /// Names of the source files, by the compiler's number.
    files: HashMap<u32, String>,
}

/// A kernel.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub(super) name: String,
    /// Name and type of each parameter.
    pub(super) parameters: Vec<(String, String)>,
    /// Threads of a block: at most these (`.maxntid`), or exactly these (`.reqntid`).
    pub(super) most_threads: Option<u32>,
    pub(super) exact_threads: Option<[u32; 3]>,
    /// Name, or prefix of numbered names, and type of each register.
    pub(super) registers: Vec<(String, String)>,
    pub(super) variables: Vec<Declared>,
    /// Index of the statement after each label.
    pub(super) labels: HashMap<String, usize>,
    pub(super) statements: Vec<Statement>,
}

/// An instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Statement {
    /// The predicate it depends on and whether that is negated.
    pub(super) guard: Option<(String, bool)>,
    pub(super) opcode: String,
    pub(super) operands: Vec<String>,
    pub(super) place: Place,
}

/// Where an instruction comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Place {
    pub(super) ptx_line: u32,
    /// File and line of the source.
    inner: (u32, u32),
    /// Where the outermost function that this was inlined from is called.
    outer: (u32, u32),
}

impl Text {
    /// File and line of the source, and where that was inlined to.
    pub(super) fn source(&self, place: Place) -> String {
        let name = |(file, line): (u32, u32)| match self.files.get(&file) {
            Some(file) => format!("{file}:{line}"),
            None => "unknown source line".to_owned(),
        };
        if place.inner == place.outer {
            return name(place.outer);
        }
        format!("{} (inlined {})", name(place.outer), name(place.inner))
    }
}

/// Takes a module apart.
///
/// # Errors
/// Naming the line that is not understood.
pub(super) fn parse(ptx: &str) -> Result<Text, String> {
    let mut parser = Parser::default();
    for (index, line) in ptx.lines().enumerate() {
        let line = line.split("//").next().unwrap_or("").trim();
        parser.line_number = index as u32 + 1;
        parser.line(line).map_err(|reason| format!("PTX line {}: {reason}", index + 1))?;
    }
    if parser.entry.is_some() {
        return Err("the text ends inside a kernel".to_owned());
    }
    Ok(parser.text)
}

/// A position of the compiler's line table: file, line, column.
type Position = (u32, u32, u32);

#[derive(Default)]
struct Parser {
    text: Text,
    entry: Option<Entry>,
    /// What an unfinished statement or declaration has so far, and its first line.
    pending: String,
    pending_line: u32,
    line_number: u32,
    /// Names that an open brace inside of a kernel gave to its own registers and labels.
    scopes: Vec<HashMap<String, String>>,
    scopes_seen: usize,
    /// Whether the body of the entry has begun.
    body: bool,
    /// Inside the braces of a section of debug data.
    section: bool,
    inner: Position,
    outer: (u32, u32),
    /// Where the code at a position was inlined to.
    inlined: HashMap<Position, Position>,
}

impl Parser {
    fn line(&mut self, line: &str) -> Result<(), String> {
        if self.section {
            self.section = line != "}";
            return Ok(());
        }
        if line.is_empty() {
            return Ok(());
        }
        if self.pending.is_empty() {
            self.pending_line = self.line_number;
            match line.split_whitespace().next().unwrap_or("") {
                ".loc" => return self.location(line),
                ".file" => return self.file(line),
                ".section" => {
                    self.section = true;
                    return Ok(());
                }
                ".version" | ".target" | ".address_size" => return Ok(()),
                _ => {}
            }
        }
        if self.entry.is_none() || !self.body { self.outside(line) } else { self.inside(line) }
    }

    /// A line outside of every body: heads of kernels and variables of the module.
    fn outside(&mut self, line: &str) -> Result<(), String> {
        self.pending.push_str(line);
        self.pending.push(' ');
        let text = self.pending.trim().to_owned();
        if text.contains(".entry") {
            if let Some(head) = text.strip_suffix('{') {
                self.pending.clear();
                self.entry = Some(head_of_entry(head)?);
                self.body = true;
                self.inlined.clear();
            }
        } else if text.contains(".func") {
            return Err(format!("functions are not supported: {text}"));
        } else if let Some(declaration) = text.strip_suffix(';') {
            self.pending.clear();
            self.text.variables.push(declared(declaration)?);
        }
        Ok(())
    }

    /// A line of a body. Several statements may stand on one.
    fn inside(&mut self, line: &str) -> Result<(), String> {
        let mut rest = line;
        while !rest.is_empty() {
            if self.pending.is_empty() {
                self.pending_line = self.line_number;
                if let Some(after) = rest.strip_prefix('{') {
                    self.scopes.push(HashMap::new());
                    self.scopes_seen += 1;
                    rest = after.trim_start();
                    continue;
                }
                if let Some(after) = rest.strip_prefix('}') {
                    self.close();
                    rest = after.trim_start();
                    continue;
                }
                if let Some((label, after)) = label(rest) {
                    self.label(label);
                    rest = after;
                    continue;
                }
            }
            let Some(end) = rest.find(';') else {
                self.pending.push_str(rest);
                self.pending.push(' ');
                return Ok(());
            };
            self.pending.push_str(&rest[..end]);
            rest = rest[end + 1..].trim_start();
            let statement = std::mem::take(&mut self.pending);
            self.statement(statement.trim())?;
        }
        Ok(())
    }

    fn close(&mut self) {
        if self.scopes.pop().is_none() {
            self.text.entries.extend(self.entry.take());
            self.body = false;
        }
    }

    fn label(&mut self, name: &str) {
        let name = self.local(name);
        if let Some(entry) = &mut self.entry {
            entry.labels.insert(name, entry.statements.len());
        }
    }

    /// The name that a new register or label of the innermost scope gets.
    fn local(&mut self, name: &str) -> String {
        let unique = format!("{name}@{}", self.scopes_seen);
        match self.scopes.last_mut() {
            None => name.to_owned(),
            Some(scope) => scope.entry(name.to_owned()).or_insert(unique).clone(),
        }
    }

    fn statement(&mut self, text: &str) -> Result<(), String> {
        if text.is_empty() || text.starts_with(".pragma") {
            return Ok(());
        }
        if let Some(registers) = text.strip_prefix(".reg") {
            let (kind, names) = word(registers.trim());
            for name in names.split(',') {
                let name = name.trim();
                if name.contains('<') && !self.scopes.is_empty() {
                    return Err("numbered registers inside of braces are not supported".to_owned());
                }
                let name = self.local(name.split('<').next().unwrap_or(name));
                let entry = self.entry.as_mut().ok_or("a register outside of a kernel")?;
                entry.registers.push((name, kind.trim_start_matches('.').to_owned()));
            }
            return Ok(());
        }
        if text.starts_with('.') {
            let entry = self.entry.as_mut().ok_or("a variable outside of a kernel")?;
            entry.variables.push(declared(text)?);
            return Ok(());
        }
        let (guard, text) = match text.strip_prefix('@') {
            None => (None, text),
            Some(guarded) => {
                let (guard, rest) = word(guarded);
                let name = guard.trim_start_matches('!');
                (Some((self.renamed(name), guard.starts_with('!'))), rest)
            }
        };
        let (opcode, operands) = word(text);
        let operands = split(operands).iter().map(|operand| self.renamed(operand)).collect();
        let place = Place {
            ptx_line: self.pending_line,
            inner: (self.inner.0, self.inner.1),
            outer: self.outer,
        };
        let statement = Statement { guard, opcode: opcode.to_owned(), operands, place };
        self.entry.as_mut().ok_or("a statement outside of a kernel")?.statements.push(statement);
        Ok(())
    }

    /// An operand with the names of open scopes replaced.
    fn renamed(&self, operand: &str) -> String {
        if self.scopes.is_empty() {
            return operand.to_owned();
        }
        let mut renamed = String::new();
        let mut rest = operand;
        while let Some(first) = rest.chars().next() {
            let end = rest.find(|c: char| !named(c)).unwrap_or(rest.len());
            if end == 0 {
                renamed.push(first);
                rest = &rest[first.len_utf8()..];
                continue;
            }
            let name = &rest[..end];
            let found = self.scopes.iter().rev().find_map(|scope| scope.get(name));
            renamed.push_str(found.map_or(name, String::as_str));
            rest = &rest[end..];
        }
        renamed
    }

    /// `.loc FILE LINE COLUMN[, function_name LABEL, inlined_at FILE LINE COLUMN]`
    fn location(&mut self, line: &str) -> Result<(), String> {
        let numbers = |text: &str| -> Option<Position> {
            let mut numbers = text.split_whitespace().map(|number| number.parse().ok());
            Some((numbers.next()??, numbers.next()??, numbers.next()??))
        };
        let position = line.trim_start_matches(".loc").split(',').next().and_then(numbers);
        self.inner = position.ok_or_else(|| format!("not a location: {line}"))?;
        let mut outer = self.inner;
        if let Some((_, at)) = line.split_once("inlined_at") {
            let at = numbers(at).ok_or_else(|| format!("not a location: {line}"))?;
            self.inlined.insert(self.inner, at);
            outer = at;
            // A function inlined into an inlined function: its place was told before.
            for _ in 0..16 {
                match self.inlined.get(&outer) {
                    Some(next) if *next != outer => outer = *next,
                    _ => break,
                }
            }
        }
        self.outer = (outer.0, outer.1);
        Ok(())
    }

    /// `.file NUMBER "PATH"`
    fn file(&mut self, line: &str) -> Result<(), String> {
        let mut words = line.split_whitespace().skip(1);
        let number = words.next().and_then(|number| number.parse().ok());
        let path = line.split('"').nth(1);
        let (Some(number), Some(path)) = (number, path) else {
            return Err(format!("not a file: {line}"));
        };
        let name = path.rsplit('/').next().unwrap_or(path);
        self.text.files.insert(number, name.to_owned());
        Ok(())
    }
}

/// Characters of names.
fn named(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$' | '%' | '@' | '.')
}

/// The first word and the rest.
fn word(text: &str) -> (&str, &str) {
    match text.split_once(char::is_whitespace) {
        Some((first, rest)) => (first, rest.trim()),
        None => (text, ""),
    }
}

/// A label at the start of a line.
fn label(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !named(c))?;
    let after = text[end..].strip_prefix(':')?;
    (end > 0).then(|| (&text[..end], after.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: &str = r#"
.version 9.0
.extern .shared .align 16 .b8 tile[];
.visible .entry scale(
	.param .u64 scale_param_0, // x
	.param .f32 scale_param_1
)
.maxntid 128, 1, 1
{
	.reg .pred %p<2>;
	.reg .b32 	%r<3>;
	.shared .align 4 .b8 sums[128];
	.loc	1 7 0
	mov.u32 %r1, %tid.x;
	.loc	2 9 5, function_name $L__info_string0, inlined_at 1 8 3
	@!%p1 bra 	$L__BB0_2;
	.loc	2 4 1, function_name $L__info_string1, inlined_at 2 9 5
	{ .reg .b32 t; mov.b32 t, %r1;
	mov.b32 %r2, t; }
$L__BB0_2:
	ld.shared.v2.f32 	{%f1, %f2},
		[sums+8];
	ret;
}
	.file	1 "/a/scale.cu"
	.file	2 "/a/kernels.cuh"
	.section	.debug_str
	{
.b8 95
	}
"#;

    #[test]
    fn a_kernel_is_taken_apart() {
        let text = parse(KERNEL).unwrap();
        let tile = &text.variables[0];
        assert_eq!((tile.name.as_str(), tile.align, tile.bytes), ("tile", 16, None));
        let entry = &text.entries[0];
        assert_eq!((entry.name.as_str(), entry.most_threads), ("scale", Some(128)));
        assert_eq!(entry.parameters[1], ("scale_param_1".to_owned(), "f32".to_owned()));
        assert_eq!(entry.registers[1], ("%r".to_owned(), "b32".to_owned()));
        assert_eq!(entry.variables[0].bytes, Some(128));
        assert_eq!(entry.statements.len(), 6);
        assert_eq!(entry.labels["$L__BB0_2"], 4);
        let branch = &entry.statements[1];
        assert_eq!(branch.guard, Some(("%p1".to_owned(), true)));
        let load = &entry.statements[4];
        assert_eq!(load.operands, ["{%f1, %f2}", "[sums+8]"]);
    }

    #[test]
    fn a_scope_has_names_of_its_own() {
        let text = parse(KERNEL).unwrap();
        let entry = &text.entries[0];
        assert_eq!(entry.registers[2].0, "t@1");
        assert_eq!(entry.statements[2].operands, ["t@1", "%r1"]);
        assert_eq!(entry.statements[3].operands, ["%r2", "t@1"]);
    }

    #[test]
    fn an_instruction_knows_its_line_and_where_it_was_inlined() {
        let text = parse(KERNEL).unwrap();
        let source = |index: usize| text.source(text.entries[0].statements[index].place);
        assert_eq!(source(0), "scale.cu:7");
        assert_eq!(source(1), "scale.cu:8 (inlined kernels.cuh:9)");
        assert_eq!(source(2), "scale.cu:8 (inlined kernels.cuh:4)");
        assert_eq!(text.entries[0].statements[0].place.ptx_line, 14);
    }

    #[test]
    fn functions_are_refused() {
        assert!(parse(".func f()\n{\n}\n").unwrap_err().contains("PTX line 1"));
    }
}

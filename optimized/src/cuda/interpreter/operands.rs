//! Operands: registers, predicates, constants, variables and addresses become indices.

use std::collections::HashMap;

use super::code::{ALWAYS, Address, Code, Parameter, Predicate, Register, Special};
use super::declare::{Declared, immediate, split};
use super::parse::{Entry, Text};
use super::shared::Variable;

/// Added to an address in shared memory to make it one of the generic space.
pub(super) const SHARED_WINDOW: u64 = 1 << 62;
/// The same for a thread's own memory.
pub(super) const LOCAL_WINDOW: u64 = 1 << 61;

/// The class of a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Predicate,
    Bits(u32),
}

/// A kernel while it is decoded: what its names mean.
pub(super) struct Decoder<'a> {
    pub(super) entry: &'a Entry,
    pub(super) code: Code,
    /// Declared names and prefixes.
    classes: HashMap<&'a str, Class>,
    /// Registers in use.
    registers: HashMap<String, Register>,
    predicates: HashMap<String, u16>,
    constants: HashMap<u64, Register>,
    /// Addresses of variables.
    addresses: HashMap<String, u64>,
    /// Places in the code's list of tables.
    tables: HashMap<String, usize>,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(text: &'a Text, entry: &'a Entry) -> Result<Self, String> {
        let mut classes = HashMap::new();
        for (name, kind) in &entry.registers {
            let class = match kind.as_str() {
                "pred" => Class::Predicate,
                "b16" | "u16" | "s16" | "f16" => Class::Bits(16),
                "b32" | "u32" | "s32" | "f32" => Class::Bits(32),
                "b64" | "u64" | "s64" | "f64" => Class::Bits(64),
                _ => return Err(format!("register {name} of unknown type {kind}")),
            };
            classes.insert(name.as_str(), class);
        }
        let code = Code {
            instructions: Vec::new(),
            places: Vec::new(),
            registers: 0,
            predicates: 1,
            constants: Vec::new(),
            specials: Vec::new(),
            parameters: Vec::new(),
            shared: Vec::new(),
            open_shared: None,
            shared_cell_bytes: 4,
            local_bytes: 0,
            tables: Vec::new(),
            most_threads: entry.most_threads,
            exact_threads: entry.exact_threads,
        };
        let mut decoder = Self {
            entry,
            code,
            classes,
            registers: HashMap::new(),
            predicates: HashMap::new(),
            constants: HashMap::new(),
            addresses: HashMap::new(),
            tables: HashMap::new(),
        };
        for (name, kind) in &entry.parameters {
            let (bytes, float) = match kind.as_str() {
                "u32" | "s32" | "b32" => (4, false),
                "u64" | "s64" | "b64" => (8, false),
                "f32" => (4, true),
                "f64" => (8, true),
                _ => return Err(format!("parameter {name} of type {kind} is not supported")),
            };
            let register = decoder.new_register()?;
            decoder.code.parameters.push(Parameter { register, bytes, float });
        }
        decoder.variables(text)?;
        Ok(decoder)
    }

    /// Gives variables their addresses: fixed shared ones, then the open ones behind them.
    fn variables(&mut self, text: &'a Text) -> Result<(), String> {
        let mut end = 0;
        let all: Vec<&Declared> = text.variables.iter().chain(&self.entry.variables).collect();
        for variable in &all {
            match (variable.space.as_str(), variable.bytes) {
                ("shared", None) => {}
                ("shared", Some(bytes)) => {
                    if !self.uses(&variable.name) {
                        continue;
                    }
                    let start = usize::next_multiple_of(end, variable.align);
                    end = start + bytes;
                    let name = plain(&variable.name);
                    self.code.shared.push(Variable { name, start, bytes });
                    self.addresses.insert(variable.name.clone(), start as u64);
                }
                ("local", Some(bytes)) => {
                    let start = self.code.local_bytes.next_multiple_of(variable.align.max(8));
                    self.code.local_bytes = start + bytes;
                    self.addresses.insert(variable.name.clone(), start as u64);
                }
                ("global" | "const", Some(bytes)) => {
                    let mut content = variable.content.clone();
                    content.resize(bytes, 0);
                    self.tables.insert(variable.name.clone(), self.code.tables.len());
                    self.code.tables.push((plain(&variable.name), content));
                }
                _ => return Err(format!("variable {} is not supported", variable.name)),
            }
        }
        for variable in all {
            if variable.space == "shared" && variable.bytes.is_none() {
                let start = end.next_multiple_of(variable.align.max(16));
                self.code.open_shared = Some((plain(&variable.name), start));
                self.addresses.insert(variable.name.clone(), start as u64);
            }
        }
        Ok(())
    }

    /// Whether the kernel names a variable.
    fn uses(&self, name: &str) -> bool {
        let mut operands = self.entry.statements.iter().flat_map(|s| &s.operands);
        operands.any(|operand| operand.contains(name))
    }

    fn new_register(&mut self) -> Result<Register, String> {
        let register = Register::try_from(self.code.registers).map_err(|_| "too many registers")?;
        self.code.registers += 1;
        Ok(register)
    }

    fn class(&self, name: &str) -> Option<Class> {
        let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
        self.classes.get(name).or_else(|| self.classes.get(prefix)).copied()
    }

    /// Bits of a declared register.
    pub(super) fn bits(&self, name: &str) -> Option<u32> {
        match self.class(name)? {
            Class::Bits(bits) => Some(bits),
            Class::Predicate => None,
        }
    }

    /// A register that is written.
    pub(super) fn target(&mut self, name: &str) -> Result<Register, String> {
        if let Some(register) = self.registers.get(name) {
            return Ok(*register);
        }
        match self.class(name) {
            Some(Class::Bits(_)) => {
                let register = self.new_register()?;
                self.registers.insert(name.to_owned(), register);
                Ok(register)
            }
            _ => Err(format!("{name} is not a register")),
        }
    }

    pub(super) fn constant(&mut self, value: u64) -> Result<Register, String> {
        if let Some(register) = self.constants.get(&value) {
            return Ok(*register);
        }
        let register = self.new_register()?;
        self.constants.insert(value, register);
        self.code.constants.push((register, value));
        Ok(register)
    }

    /// A register or a value that is read.
    pub(super) fn source(&mut self, operand: &str) -> Result<Register, String> {
        if self.class(operand).is_some() {
            return self.target(operand);
        }
        let table = self.tables.get(operand).map(|table| Special::Table(*table));
        if let Some(special) = special(operand).or(table) {
            return match self.registers.get(operand) {
                Some(register) => Ok(*register),
                None => self.special(operand, special),
            };
        }
        let address = self.addresses.get(operand).copied();
        let value = address.or_else(|| immediate(operand));
        let value = value.ok_or_else(|| format!("operand {operand} is not understood"))?;
        self.constant(value)
    }

    fn special(&mut self, name: &str, special: Special) -> Result<Register, String> {
        let register = self.new_register()?;
        self.registers.insert(name.to_owned(), register);
        self.code.specials.push((register, special));
        Ok(register)
    }

    /// A predicate that is written.
    pub(super) fn target_predicate(&mut self, name: &str) -> Result<u16, String> {
        if let Some(index) = self.predicates.get(name) {
            return Ok(*index);
        }
        if self.class(name) != Some(Class::Predicate) {
            return Err(format!("{name} is not a predicate"));
        }
        let index = u16::try_from(self.code.predicates).map_err(|_| "too many predicates")?;
        self.code.predicates += 1;
        self.predicates.insert(name.to_owned(), index);
        Ok(index)
    }

    /// A predicate that is read.
    pub(super) fn predicate(&mut self, operand: &str) -> Result<Predicate, String> {
        match operand {
            "1" | "-1" => return Ok(ALWAYS),
            "0" => return Ok(Predicate { negated: true, ..ALWAYS }),
            _ => {}
        }
        let name = operand.trim_start_matches('!');
        let index = self.target_predicate(name)?;
        Ok(Predicate { index, negated: operand.starts_with('!') })
    }

    /// `[base]`, `[base+4]`, `[name+4]`, `[64]`
    pub(super) fn address(&mut self, operand: &str) -> Result<Address, String> {
        let inner = operand.strip_prefix('[').and_then(|inner| inner.strip_suffix(']'));
        let inner = inner.ok_or_else(|| format!("{operand} is not an address"))?;
        let (base, offset) = inner.split_once('+').unwrap_or((inner, "0"));
        let offset = immediate(offset.trim()).ok_or_else(|| format!("offset {offset}"))?;
        Ok(Address { base: self.source(base.trim())?, offset: offset as i64 })
    }

    /// `{a, b}` or a single one.
    pub(super) fn vector(operand: &str) -> Vec<String> {
        match operand.strip_prefix('{').and_then(|inner| inner.strip_suffix('}')) {
            Some(inner) => split(inner),
            None => vec![operand.to_owned()],
        }
    }

    /// The register of a parameter.
    pub(super) fn parameter(&self, operand: &str) -> Result<Parameter, String> {
        let name = operand.trim_matches(['[', ']']);
        let index = self.entry.parameters.iter().position(|(parameter, _)| parameter == name);
        index.map(|index| self.code.parameters[index]).ok_or_else(|| format!("no parameter {name}"))
    }
}

fn special(name: &str) -> Option<Special> {
    let axis = |name: &str| ["x", "y", "z"].iter().position(|axis| *axis == name);
    if let Some((family, name)) = name.split_once('.') {
        let axis = axis(name)?;
        return Some(match family {
            "%tid" => Special::Thread(axis),
            "%ntid" => Special::BlockSize(axis),
            "%ctaid" => Special::Block(axis),
            "%nctaid" => Special::GridSize(axis),
            _ => return None,
        });
    }
    Some(match name {
        "%laneid" => Special::Lane,
        "%warpid" => Special::Warp,
        "%lanemask_eq" => Special::LanesEqual,
        "%lanemask_lt" => Special::LanesBelow,
        "%lanemask_le" => Special::LanesUpTo,
        "%lanemask_gt" => Special::LanesAbove,
        "%lanemask_ge" => Special::LanesFrom,
        _ => return None,
    })
}

/// The name that a mangled local of a function had in the source: `_ZZ3sumE4tile` is `tile`.
fn plain(name: &str) -> String {
    let ends = name.match_indices('E').filter(|_| name.starts_with("_ZZ"));
    let found = ends.rev().find_map(|(end, _)| {
        let rest = &name[end + 1..];
        let local = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        let len: usize = rest[..rest.len() - local.len()].parse().ok()?;
        local.get(..len)
    });
    found.unwrap_or(name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_have_the_names_of_the_source() {
        assert_eq!(plain("_ZZ3sumE4tile"), "tile");
        assert_eq!(plain("_ZZ11overrunEEEE5Etile"), "Etile");
        assert_eq!(plain("tile"), "tile");
    }

    #[test]
    fn special_registers_are_known_by_name() {
        assert_eq!(special("%ctaid.y"), Some(Special::Block(1)));
        assert_eq!(special("%lanemask_lt"), Some(Special::LanesBelow));
        assert_eq!(special("%clock64"), None);
        assert_eq!(special("%tid.w"), None);
    }
}

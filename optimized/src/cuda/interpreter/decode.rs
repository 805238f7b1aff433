//! From statements to [`Code`]: operands become indices, labels become places.
//!
//! Every instruction of the kernel is decoded before the first runs. One that is not known, in any
//! part of its text, is an error that names it.

use std::collections::HashMap;

use super::code::{
    ALWAYS, Address, Code, Instruction, Op, Parameter, Predicate, Register, Special,
};
use super::declare::{Declared, immediate, split};
use super::decode_memory;
use super::instruction::{Arithmetic, arithmetic, combine, compare};
use super::parse::{Entry, Statement, Text};
use super::shared::Variable;

/// Added to an address in shared memory to make it one of the generic space.
pub(super) const SHARED_WINDOW: u64 = 1 << 62;
/// The same for a thread's own memory.
pub(super) const LOCAL_WINDOW: u64 = 1 << 61;

/// Decodes a kernel.
///
/// # Errors
/// Naming line and text of what is not understood.
pub(super) fn decode(text: &Text, name: &str) -> Result<Code, String> {
    let entry = text.entries.iter().find(|entry| entry.name == name);
    let entry = entry.ok_or_else(|| format!("the module has no kernel {name}"))?;
    let mut decoder = Decoder::new(text, entry)?;
    for statement in &entry.statements {
        let place = statement.place;
        let instruction = decoder.statement(statement).map_err(|reason| {
            let (opcode, operands) = (&statement.opcode, statement.operands.join(", "));
            let line = place.ptx_line;
            format!("PTX line {line} ({}): {opcode} {operands}: {reason}", text.source(place))
        })?;
        decoder.code.instructions.push(instruction);
        decoder.code.places.push(place);
    }
    // A kernel that runs off its end returns there.
    decoder.code.instructions.push(Instruction { guard: ALWAYS, op: Op::Return });
    decoder.code.places.push(entry.statements.last().map(|last| last.place).unwrap_or_default());
    Ok(decoder.code)
}

/// The class of a register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    Predicate,
    Bits(u32),
}

pub(super) struct Decoder<'a> {
    entry: &'a Entry,
    pub(super) code: Code,
    /// Declared names and prefixes.
    classes: HashMap<&'a str, Class>,
    registers: HashMap<String, Register>,
    predicates: HashMap<String, u16>,
    constants: HashMap<u64, Register>,
    /// Addresses of variables.
    addresses: HashMap<String, u64>,
    tables: HashMap<String, usize>,
}

impl<'a> Decoder<'a> {
    fn new(text: &'a Text, entry: &'a Entry) -> Result<Self, String> {
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
        if let Some(special) = special(operand) {
            if let Some(register) = self.registers.get(operand) {
                return Ok(*register);
            }
            return self.special(operand, special);
        }
        if let Some(table) = self.tables.get(operand) {
            return self.special(operand, Special::Table(*table));
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

    /// A label's place.
    fn label(&self, name: &str) -> Result<usize, String> {
        self.entry.labels.get(name).copied().ok_or_else(|| format!("no label {name}"))
    }

    fn statement(&mut self, statement: &Statement) -> Result<Instruction, String> {
        let guard = match &statement.guard {
            None => ALWAYS,
            Some((name, negated)) => {
                Predicate { index: self.target_predicate(name)?, negated: *negated }
            }
        };
        let operands: Vec<&str> = statement.operands.iter().map(String::as_str).collect();
        Ok(Instruction { guard, op: self.op(&statement.opcode, &operands)? })
    }

    fn op(&mut self, opcode: &str, operands: &[&str]) -> Result<Op, String> {
        if let Some(op) = self.control(opcode, operands)? {
            return Ok(op);
        }
        if let Some(op) = self.on_predicates(opcode, operands)? {
            return Ok(op);
        }
        if let Some(op) = decode_memory::decode(self, opcode, operands)? {
            return Ok(op);
        }
        if let ("mov.b32" | "mov.b64", [d, a]) = (opcode, operands)
            && (d.starts_with('{') || a.starts_with('{'))
        {
            return self.pack(opcode, d, a);
        }
        if let Some(kind) = opcode.strip_prefix("selp.") {
            let [d, a, b, by] = exactly(operands)?;
            if !matches!(
                kind,
                "b16"
                    | "u16"
                    | "s16"
                    | "b32"
                    | "u32"
                    | "s32"
                    | "f32"
                    | "b64"
                    | "u64"
                    | "s64"
                    | "f64"
            ) {
                return Err("unknown instruction".to_owned());
            }
            let (d, a, b) = (self.target(d)?, self.source(a)?, self.source(b)?);
            return Ok(Op::Select { d, a, b, by: self.predicate(by)? });
        }
        let f = arithmetic(opcode).ok_or("unknown instruction")?;
        let needed = match f {
            Arithmetic::One(_) => 1,
            Arithmetic::Two(_) | Arithmetic::Quotient(_) => 2,
            Arithmetic::Three(_) => 3,
            Arithmetic::Four(_) => 4,
        };
        if operands.len() != needed + 1 {
            return Err(format!("{} operands, expected {}", operands.len(), needed + 1));
        }
        let mut sources = [0; 4];
        for (source, operand) in sources.iter_mut().zip(&operands[1..]) {
            *source = self.source(operand)?;
        }
        let d = self.target(operands[0])?;
        Ok(match f {
            Arithmetic::One(f) => Op::One(f, d, sources[0]),
            f => Op::Calculate { f, d, operands: sources },
        })
    }

    fn control(&mut self, opcode: &str, operands: &[&str]) -> Result<Option<Op>, String> {
        Ok(Some(match opcode {
            "bra" | "bra.uni" => {
                let [label] = exactly(operands)?;
                Op::Branch { target: self.label(label)? }
            }
            "ret" | "exit" | "ret.uni" => Op::Return,
            "trap" => Op::Trap,
            "bar.sync" | "barrier.sync" | "barrier.sync.aligned" => match operands {
                ["0"] => Op::Barrier,
                _ => return Err("only barrier 0 of all threads is supported".to_owned()),
            },
            "bar.warp.sync" => {
                let [members] = exactly(operands)?;
                Op::WarpBarrier { members: self.source(members)? }
            }
            _ => return Ok(None),
        }))
    }

    fn on_predicates(&mut self, opcode: &str, operands: &[&str]) -> Result<Option<Op>, String> {
        if let Some(rest) = opcode.strip_prefix("setp.") {
            return self.setp(rest, operands).map(Some);
        }
        let Some(name) = opcode.strip_suffix(".pred") else { return Ok(None) };
        Ok(Some(match name {
            "mov" => {
                let [d, a] = exactly(operands)?;
                Op::SetPredicate { d: self.target_predicate(d)?, a: self.predicate(a)? }
            }
            "not" => {
                let [d, a] = exactly(operands)?;
                let a = self.predicate(a)?;
                let a = Predicate { negated: !a.negated, ..a };
                Op::SetPredicate { d: self.target_predicate(d)?, a }
            }
            name => {
                let Some(combine) = combine(name) else { return Ok(None) };
                let [d, a, b] = exactly(operands)?;
                let (a, b) = (self.predicate(a)?, self.predicate(b)?);
                Op::Logic { combine, d: self.target_predicate(d)?, a, b }
            }
        }))
    }

    /// `setp.<comparison>[.<combination>].<type> p[|q], a, b[, c]`
    fn setp(&mut self, rest: &str, operands: &[&str]) -> Result<Op, String> {
        let parts: Vec<&str> = rest.split('.').collect();
        let (comparison, with, kind) = match parts[..] {
            [comparison, kind] => (comparison, None, kind),
            [comparison, with, kind] => {
                (comparison, Some(combine(with).ok_or("unknown instruction")?), kind)
            }
            _ => return Err("unknown instruction".to_owned()),
        };
        let f = compare(comparison, kind).ok_or("unknown instruction")?;
        let (d, a, b, with) = match (operands, with) {
            ([d, a, b], None) => (d, a, b, None),
            ([d, a, b, c], Some(with)) => (d, a, b, Some((with, self.predicate(c)?))),
            _ => return Err("wrong number of operands".to_owned()),
        };
        let (d, complement) = match d.split_once('|') {
            Some((d, q)) => (d, Some(self.target_predicate(q.trim())?)),
            None => (*d, None),
        };
        let d = if d == "_" { return Err("no predicate".to_owned()) } else { d.trim() };
        let (a, b) = (self.source(a)?, self.source(b)?);
        Ok(Op::Compare { f, d: self.target_predicate(d)?, complement, a, b, with })
    }

    /// `mov.b64 %rd, {%r1, %r2}` and back.
    fn pack(&mut self, opcode: &str, d: &str, a: &str) -> Result<Op, String> {
        let width = if opcode == "mov.b64" { 64 } else { 32 };
        let names = Self::vector(if a.starts_with('{') { a } else { d });
        let count = names.len();
        if !matches!(count, 2 | 4) {
            return Err("unknown instruction".to_owned());
        }
        let bits = width / count as u32;
        if a.starts_with('{') {
            let mut values = [0; 4];
            for (value, name) in values.iter_mut().zip(&names) {
                *value = self.source(name)?;
            }
            return Ok(Op::Pack { d: self.target(d)?, values, count, bits });
        }
        let mut values = [None; 4];
        for (value, name) in values.iter_mut().zip(&names) {
            *value = if name == "_" { None } else { Some(self.target(name)?) };
        }
        Ok(Op::Unpack { values, bits, a: self.source(a)? })
    }

    /// The register of a parameter.
    pub(super) fn parameter(&self, operand: &str) -> Result<Parameter, String> {
        let name = operand.trim_matches(['[', ']']);
        let index = self.entry.parameters.iter().position(|(parameter, _)| parameter == name);
        index.map(|index| self.code.parameters[index]).ok_or_else(|| format!("no parameter {name}"))
    }
}

/// Exactly as many operands as the instruction has.
pub(super) fn exactly<'b, const N: usize>(operands: &[&'b str]) -> Result<[&'b str; N], String> {
    operands.try_into().map_err(|_| format!("{} operands, expected {N}", operands.len()))
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
    let Some(position) = name.rfind('E').filter(|_| name.starts_with("_ZZ")) else {
        return name.to_owned();
    };
    name[position + 1..].trim_start_matches(|c: char| c.is_ascii_digit()).to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::parse::parse;
    use super::*;

    fn code(body: &str) -> Result<Code, String> {
        let text = format!(
            ".visible .entry k(.param .u64 k_param_0, .param .f32 k_param_1)\n{{\n.reg .pred %p<9>;\n\
             .reg .b32 %r<9>;\n.reg .f32 %f<9>;\n.reg .b64 %rd<9>;\n.reg .b16 %rs<9>;\n{body}\n}}\n"
        );
        decode(&parse(&text)?, "k")
    }

    #[test]
    fn an_unknown_instruction_names_its_line_and_text() {
        let message = code("add.s32 %r1, %r2, 1;\nmadd.s32 %r1, %r2, 1;").unwrap_err();
        assert!(message.contains("PTX line 9"), "{message}");
        assert!(message.contains("madd.s32 %r1, %r2, 1"), "{message}");
    }

    #[test]
    fn what_is_half_known_is_refused() {
        for statement in [
            "add.sat.s32 %r1, %r2, 1;",
            "ld.global.acquire.gpu.u32 %r1, [%rd1];",
            "bar.sync 1, 64;",
            "shfl.sync.bfly.b64 %rd1, %rd2, 1, 31, -1;",
            "setp.lt.nand.s32 %p1, %r1, %r2, %p2;",
            "atom.global.add.f32 %f1, [%rd1], %f2;",
            "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r1,%r1,%r1,%r1}, {%r1,%r1,%r1,%r1}, {%r1,%r1}, {%r1,%r1,%r1,%r1};",
            "call.uni f;",
            "add.s32 %r1, %r2;",
            "bra nowhere;",
            "mov.u32 %r1, %clock;",
            "selp.b8 %r1, %r1, %r1, %p1;",
        ] {
            assert!(code(statement).is_err(), "{statement}");
        }
    }

    #[test]
    fn every_operand_is_a_register() {
        let code =
            code("mad.lo.s32 %r1, %tid.x, 3, -1;\nfma.rn.f32 %f1, %f1, 0f40000000, %f1;").unwrap();
        assert_eq!(code.specials.len(), 1);
        let values: Vec<u64> = code.constants.iter().map(|(_, value)| *value).collect();
        assert_eq!(values, [3, u64::MAX, 0x4000_0000]);
        // Two parameters, the special, three constants, %r1 and %f1.
        assert_eq!(code.registers, 8);
        assert_eq!(code.instructions.len(), 3);
    }

    #[test]
    fn shared_variables_lie_behind_each_other() {
        let body = ".shared .align 4 .b8 _ZZ1kE4tile[6];\n.shared .align 8 .b8 sums[8];\n\
                    st.shared.u16 [_ZZ1kE4tile+2], %rs1;\nmov.u32 %r1, sums;";
        let code = code(body).unwrap();
        assert_eq!((code.shared[0].name.as_str(), code.shared[1].start), ("tile", 8));
        assert_eq!(code.shared_cell_bytes, 2);
    }
}

//! From statements to [`Code`]: operands become indices, labels become places.
//!
//! Every instruction of the kernel is decoded before the first runs. One that is not known, in any
//! part of its text, is an error that names it.

use super::code::{ALWAYS, Code, Instruction, Op, Predicate};
use super::decode_memory;
use super::instruction::{Arithmetic, arithmetic, combine, compare};
use super::operands::Decoder;
use super::parse::{Statement, Text};

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

impl Decoder<'_> {
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
}

/// Exactly as many operands as the instruction has.
pub(super) fn exactly<'b, const N: usize>(operands: &[&'b str]) -> Result<[&'b str; N], String> {
    operands.try_into().map_err(|_| format!("{} operands, expected {N}", operands.len()))
}

#[cfg(test)]
mod tests {
    use super::super::parse::parse;
    use super::*;

    fn code(body: &str) -> Result<Code, String> {
        let text = format!(
            ".visible .entry k(.param .u64 k_param_0, .param .f32 k_param_1)\n{{\n\
             .reg .pred %p<9>;\n.reg .b32 %r<9>;\n.reg .f32 %f<9>;\n\
             .reg .b64 %rd<9>;\n.reg .b16 %rs<9>;\n{body}\n}}\n"
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
            "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r1,%r1,%r1,%r1}, \
             {%r1,%r1,%r1,%r1}, {%r1,%r1}, {%r1,%r1,%r1,%r1};",
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

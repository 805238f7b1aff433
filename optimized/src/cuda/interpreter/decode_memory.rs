//! Decoding what touches memory and what the lanes of a warp do together.

use super::code::{Op, Register, Shuffle, Space, Transfer, Update, Vote};
use super::declare::immediate;
use super::decode::exactly;
use super::instruction::{Arithmetic, Product, arithmetic};
use super::operands::{Decoder, LOCAL_WINDOW, SHARED_WINDOW};

/// Hints about caches, and orders that the interpreter keeps anyway.
const HINTS: &[&str] = &[
    "nc",
    "ca",
    "cg",
    "cs",
    "lu",
    "wb",
    "wt",
    "weak",
    "volatile",
    "L1::no_allocate",
    "L1::evict_last",
    "L1::evict_first",
    "L2::64B",
    "L2::128B",
    "L2::256B",
];

/// The instruction, or `None` when it is of another kind.
pub(super) fn decode(
    decoder: &mut Decoder<'_>,
    opcode: &str,
    operands: &[&str],
) -> Result<Option<Op>, String> {
    let parts: Vec<&str> = opcode.split('.').collect();
    Ok(Some(match parts[0] {
        "ld" if parts.get(1) == Some(&"param") => parameter(decoder, &parts, operands)?,
        "ld" | "st" => transfer(decoder, &parts, operands)?,
        "atom" | "red" => atomic(decoder, &parts, operands)?,
        "cvta" => convert_address(decoder, opcode, operands)?,
        "shfl" => shuffle(decoder, opcode, operands)?,
        "vote" => vote(decoder, opcode, operands)?,
        "activemask" if opcode == "activemask.b32" => {
            let [d] = exactly(operands)?;
            Op::ActiveMask { d: decoder.target(d)? }
        }
        "ldmatrix" => load_matrix(decoder, &parts, operands)?,
        "mma" => multiply(decoder, opcode, operands)?,
        "cp" => copy(decoder, &parts, operands)?,
        "membar" if matches!(parts[1..], ["cta" | "gl" | "sys"]) => Op::Fence,
        "fence" if matches!(parts[1..], ["acq_rel" | "sc", "cta" | "gpu" | "sys"]) => Op::Fence,
        _ => return Ok(None),
    }))
}

/// Bytes of a type, and whether it is signed.
fn size(kind: &str) -> Result<(usize, bool), String> {
    Ok(match kind {
        "u8" | "b8" => (1, false),
        "s8" => (1, true),
        "u16" | "b16" => (2, false),
        "s16" => (2, true),
        "u32" | "b32" | "f32" => (4, false),
        "s32" => (4, true),
        "u64" | "b64" | "f64" => (8, false),
        "s64" => (8, true),
        _ => return Err(format!("unknown type {kind}")),
    })
}

fn parameter(decoder: &mut Decoder<'_>, parts: &[&str], operands: &[&str]) -> Result<Op, String> {
    let ["ld", "param", kind] = parts[..] else { return Err("unknown instruction".to_owned()) };
    let [d, address] = exactly(operands)?;
    let parameter = decoder.parameter(address)?;
    let (bytes, _) = size(kind)?;
    let copy = match (bytes, arithmetic(if bytes == 8 { "mov.b64" } else { "mov.b32" })) {
        (4 | 8, Some(Arithmetic::One(copy))) if bytes == parameter.bytes => copy,
        _ => return Err("a part of a parameter".to_owned()),
    };
    Ok(Op::One(copy, decoder.target(d)?, parameter.register))
}

fn transfer(decoder: &mut Decoder<'_>, parts: &[&str], operands: &[&str]) -> Result<Op, String> {
    let (mut space, mut count) = (Space::Generic, 1);
    for part in &parts[1..parts.len() - 1] {
        match *part {
            "global" => space = Space::Global,
            "shared" | "shared::cta" => space = Space::Shared,
            "local" => space = Space::Local,
            // Tables of the module, which lie beside the buffers.
            "const" => space = Space::Global,
            "v2" => count = 2,
            "v4" => count = 4,
            hint if HINTS.contains(&hint) => {}
            other => return Err(format!("unknown modifier .{other}")),
        }
    }
    let (bytes, signed) = size(parts[parts.len() - 1])?;
    let load = parts[0] == "ld";
    let [first, second] = exactly(operands)?;
    let (registers, address) = if load { (first, second) } else { (second, first) };
    let address = decoder.address(address)?;
    let names = Decoder::vector(registers);
    if names.len() != count || bytes * count > 16 {
        return Err("wrong number of values".to_owned());
    }
    let (mut values, mut extend) = ([0; 4], None);
    for (value, name) in values.iter_mut().zip(&names) {
        *value = if load { decoder.target(name)? } else { decoder.source(name)? };
        extend = decoder.bits(name).filter(|bits| load && signed && *bits > 8 * bytes as u32);
    }
    note_shared(decoder, space, bytes * count);
    let transfer = Transfer { space, address, bytes, count, values, extend };
    Ok(if load { Op::Load(transfer) } else { Op::Store(transfer) })
}

/// Remembers the narrowest access to shared memory.
fn note_shared(decoder: &mut Decoder<'_>, space: Space, bytes: usize) {
    if matches!(space, Space::Shared | Space::Generic) {
        decoder.code.shared_cell_bytes = decoder.code.shared_cell_bytes.min(bytes);
    }
}

/// `atom[.global|.shared].<operation>.<type> d, [a], b[, c]`; `red` has no `d`.
fn atomic(decoder: &mut Decoder<'_>, parts: &[&str], operands: &[&str]) -> Result<Op, String> {
    let mut space = Space::Generic;
    let mut rest = &parts[1..];
    while rest.len() > 2 {
        match rest[0] {
            "global" => space = Space::Global,
            "shared" | "shared::cta" => space = Space::Shared,
            "relaxed" | "gpu" | "cta" | "sys" => {}
            other => return Err(format!("unknown modifier .{other}")),
        }
        rest = &rest[1..];
    }
    let [operation, kind] = rest[..] else { return Err("unknown instruction".to_owned()) };
    let (bytes, signed) = size(kind)?;
    if kind.starts_with('f') || bytes < 4 {
        return Err("atomic operations on floats depend on the order of the threads".to_owned());
    }
    let update = match (operation, signed) {
        ("add", _) => Update::Add,
        ("and", _) => Update::And,
        ("or", _) => Update::Or,
        ("xor", _) => Update::Xor,
        ("exch", _) => Update::Exchange,
        ("min", false) => Update::MinUnsigned,
        ("max", false) => Update::MaxUnsigned,
        ("min", true) => Update::MinSigned,
        ("max", true) => Update::MaxSigned,
        ("cas", _) => Update::CompareAndSwap,
        _ => return Err(format!("unknown operation .{operation}")),
    };
    let (d, operands) = match parts[0] {
        "red" => (None, operands),
        _ => match operands {
            ["_", rest @ ..] => (None, rest),
            [d, rest @ ..] => (Some(decoder.target(d)?), rest),
            [] => return Err("no operands".to_owned()),
        },
    };
    let (address, a, b) = match (operands, update) {
        ([address, a, b], Update::CompareAndSwap) => (address, a, b),
        ([address, a], update) if update != Update::CompareAndSwap => (address, a, a),
        _ => return Err("wrong number of operands".to_owned()),
    };
    let (address, a, b) = (decoder.address(address)?, decoder.source(a)?, decoder.source(b)?);
    note_shared(decoder, space, bytes);
    Ok(Op::Atomic { space, update, bytes, d, address, a, b })
}

/// Addresses of global memory are the same in the generic space; others are shifted by a window.
fn convert_address(
    decoder: &mut Decoder<'_>,
    opcode: &str,
    operands: &[&str],
) -> Result<Op, String> {
    let window = match opcode {
        "cvta.global.u64" | "cvta.to.global.u64" | "cvta.const.u64" | "cvta.to.const.u64" => 0,
        "cvta.shared.u64" => SHARED_WINDOW,
        "cvta.to.shared.u64" => SHARED_WINDOW.wrapping_neg(),
        "cvta.local.u64" => LOCAL_WINDOW,
        "cvta.to.local.u64" => LOCAL_WINDOW.wrapping_neg(),
        _ => return Err("unknown instruction".to_owned()),
    };
    let [d, a] = exactly(operands)?;
    let (d, a, window) = (decoder.target(d)?, decoder.source(a)?, decoder.constant(window)?);
    let f = arithmetic("add.u64").ok_or("unknown instruction")?;
    Ok(Op::Calculate { f, d, operands: [a, window, 0, 0] })
}

fn shuffle(decoder: &mut Decoder<'_>, opcode: &str, operands: &[&str]) -> Result<Op, String> {
    let kind = match opcode {
        "shfl.sync.up.b32" => Shuffle::Up,
        "shfl.sync.down.b32" => Shuffle::Down,
        "shfl.sync.bfly.b32" => Shuffle::Butterfly,
        "shfl.sync.idx.b32" => Shuffle::Index,
        _ => return Err("unknown instruction".to_owned()),
    };
    let [d, a, b, c, members] = exactly(operands)?;
    let (d, inside) = match d.split_once('|') {
        Some((d, inside)) => (d.trim(), Some(decoder.target_predicate(inside.trim())?)),
        None => (d, None),
    };
    Ok(Op::Shuffle {
        kind,
        d: decoder.target(d)?,
        inside,
        a: decoder.source(a)?,
        b: decoder.source(b)?,
        c: decoder.source(c)?,
        members: decoder.source(members)?,
    })
}

fn vote(decoder: &mut Decoder<'_>, opcode: &str, operands: &[&str]) -> Result<Op, String> {
    let [d, a, members] = exactly(operands)?;
    let (a, members) = (decoder.predicate(a)?, decoder.source(members)?);
    let vote = match opcode {
        "vote.sync.ballot.b32" => {
            return Ok(Op::Ballot { d: decoder.target(d)?, a, members });
        }
        "vote.sync.all.pred" => Vote::All,
        "vote.sync.any.pred" => Vote::Any,
        "vote.sync.uni.pred" => Vote::Uniform,
        _ => return Err("unknown instruction".to_owned()),
    };
    Ok(Op::Vote { vote, d: decoder.target_predicate(d)?, a, members })
}

/// `ldmatrix.sync.aligned.m8n8.x4[.trans].shared.b16 {...}, [a]`
fn load_matrix(decoder: &mut Decoder<'_>, parts: &[&str], operands: &[&str]) -> Result<Op, String> {
    let (count, transposed) = match parts[1..] {
        ["sync", "aligned", "m8n8", count, "shared" | "shared::cta", "b16"] => (count, false),
        ["sync", "aligned", "m8n8", count, "trans", "shared" | "shared::cta", "b16"] => {
            (count, true)
        }
        _ => return Err("unknown instruction".to_owned()),
    };
    let count = match count {
        "x1" => 1,
        "x2" => 2,
        "x4" => 4,
        _ => return Err("unknown instruction".to_owned()),
    };
    let [d, address] = exactly(operands)?;
    let names = Decoder::vector(d);
    if names.len() != count {
        return Err(format!("{} registers, expected {count}", names.len()));
    }
    let mut d = [0; 4];
    for (register, name) in d.iter_mut().zip(&names) {
        *register = decoder.target(name)?;
    }
    Ok(Op::LoadMatrix { count, transposed, d, address: decoder.address(address)? })
}

fn multiply(decoder: &mut Decoder<'_>, opcode: &str, operands: &[&str]) -> Result<Op, String> {
    let product = Product::of(opcode).ok_or("unknown instruction")?;
    let [d, a, b, c] = exactly(operands)?;
    let d = registers(decoder, d, true)?;
    let a = registers(decoder, a, false)?;
    let b = registers(decoder, b, false)?;
    let c = registers(decoder, c, false)?;
    Ok(Op::Multiply { product, d, a, b, c })
}

fn registers<const N: usize>(
    decoder: &mut Decoder<'_>,
    operand: &str,
    written: bool,
) -> Result<[Register; N], String> {
    let names = Decoder::vector(operand);
    if names.len() != N {
        return Err(format!("{} registers, expected {N}", names.len()));
    }
    let mut registers = [0; N];
    for (register, name) in registers.iter_mut().zip(&names) {
        *register = if written { decoder.target(name)? } else { decoder.source(name)? };
    }
    Ok(registers)
}

/// `cp.async.cg.shared.global [to], [from], bytes[, present]` and what waits for it.
fn copy(decoder: &mut Decoder<'_>, parts: &[&str], operands: &[&str]) -> Result<Op, String> {
    match (&parts[1..], operands) {
        (["async", "commit_group"], []) => return Ok(Op::Commit),
        (["async", "wait_all"], []) => return Ok(Op::WaitAll),
        (["async", "wait_group"], [groups]) => {
            let groups = immediate(groups).ok_or("not a number of groups")?;
            return Ok(Op::Wait { groups: groups as u32 });
        }
        _ => {}
    }
    let cached_in_l2_only = match parts[1..] {
        ["async", level @ ("ca" | "cg"), "shared" | "shared::cta", "global"] => level == "cg",
        [
            "async",
            level @ ("ca" | "cg"),
            "shared" | "shared::cta",
            "global",
            "L2::64B" | "L2::128B" | "L2::256B",
        ] => level == "cg",
        _ => return Err("unknown instruction".to_owned()),
    };
    let (to, from, bytes, present) = match operands {
        [to, from, bytes] => (to, from, bytes, None),
        [to, from, bytes, present] => (to, from, bytes, Some(decoder.source(present)?)),
        _ => return Err("wrong number of operands".to_owned()),
    };
    let bytes = match (immediate(bytes), cached_in_l2_only) {
        (Some(16), _) => 16,
        (Some(8), false) => 8,
        (Some(4), false) => 4,
        _ => return Err(format!("a copy of {bytes} bytes")),
    };
    note_shared(decoder, Space::Shared, bytes);
    let (to, from) = (decoder.address(to)?, decoder.address(from)?);
    Ok(Op::Copy { to, from, bytes, present })
}

//! A decoded kernel: instructions whose operands are indices.
//!
//! Immediates, parameters and special registers (`%tid.x`) are registers too, filled before a warp
//! starts, so that an operand is always an index.

use super::instruction::{Arithmetic, Combine, Compare, Product};
use super::parse::Place;
use super::shared::Variable;

/// Index of a register of up to 64 bits.
pub(super) type Register = u16;

/// A predicate register, perhaps negated. [`ALWAYS`] is true.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Predicate {
    pub(super) index: u16,
    pub(super) negated: bool,
}

/// The predicate that is true in every lane.
pub(super) const ALWAYS: Predicate = Predicate { index: 0, negated: false };

/// A kernel that is ready to run.
#[derive(Debug)]
pub(super) struct Code {
    pub(super) instructions: Vec<Instruction>,
    /// Of each instruction.
    pub(super) places: Vec<Place>,
    pub(super) registers: usize,
    pub(super) predicates: usize,
    pub(super) constants: Vec<(Register, u64)>,
    pub(super) specials: Vec<(Register, Special)>,
    /// Register and bytes of each parameter, and whether it is a float.
    pub(super) parameters: Vec<Parameter>,
    /// Fixed in size; open ones are in `open_shared`.
    pub(super) shared: Vec<Variable>,
    /// Names of variables over the memory that the launch adds, and where that begins.
    pub(super) open_shared: Option<(String, usize)>,
    /// The narrowest access to shared memory.
    pub(super) shared_cell_bytes: usize,
    /// Bytes of each thread's own memory.
    pub(super) local_bytes: usize,
    /// Name and content of tables of the module.
    pub(super) tables: Vec<(String, Vec<u8>)>,
    pub(super) most_threads: Option<u32>,
    pub(super) exact_threads: Option<[u32; 3]>,
}

/// What a parameter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parameter {
    pub(super) register: Register,
    pub(super) bytes: usize,
    pub(super) float: bool,
}

/// A value that differs between threads, warps or blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Special {
    Thread(usize),
    Block(usize),
    BlockSize(usize),
    GridSize(usize),
    Lane,
    Warp,
    LanesEqual,
    LanesBelow,
    LanesUpTo,
    LanesAbove,
    LanesFrom,
    /// Address of a table of the module.
    Table(usize),
}

/// An instruction and the predicate that it depends on.
#[derive(Debug, Clone)]
pub(super) struct Instruction {
    pub(super) guard: Predicate,
    pub(super) op: Op,
}

/// Memory that an address can lie in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Space {
    Global,
    Shared,
    Local,
    /// One of the others, by the address.
    Generic,
}

/// `[register + offset]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) base: Register,
    pub(super) offset: i64,
}

/// A load or store of up to four neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Transfer {
    pub(super) space: Space,
    pub(super) address: Address,
    /// Bytes of one value.
    pub(super) bytes: usize,
    pub(super) count: usize,
    pub(super) values: [Register; 4],
    /// Width of the register that a signed value is extended to, in bits.
    pub(super) extend: Option<u32>,
}

/// What an atomic operation does with the old value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Update {
    Add,
    And,
    Or,
    Xor,
    Exchange,
    MinUnsigned,
    MaxUnsigned,
    MinSigned,
    MaxSigned,
    CompareAndSwap,
}

/// Which lane a shuffle reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

/// What a vote asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vote {
    All,
    Any,
    Uniform,
}

/// What an instruction does.
#[derive(Debug, Clone)]
pub(super) enum Op {
    One(fn(&mut super::instruction::Lanes, &super::instruction::Lanes), Register, Register),
    Calculate {
        f: Arithmetic,
        d: Register,
        operands: [Register; 4],
    },
    Compare {
        f: Compare,
        d: u16,
        complement: Option<u16>,
        a: Register,
        b: Register,
        with: Option<(Combine, Predicate)>,
    },
    Select {
        d: Register,
        a: Register,
        b: Register,
        by: Predicate,
    },
    Logic {
        combine: Combine,
        d: u16,
        a: Predicate,
        b: Predicate,
    },
    SetPredicate {
        d: u16,
        a: Predicate,
    },
    /// `count` values of `bits` bits into one, the first lowest.
    Pack {
        d: Register,
        values: [Register; 4],
        count: usize,
        bits: u32,
    },
    Unpack {
        values: [Option<Register>; 4],
        bits: u32,
        a: Register,
    },
    Load(Transfer),
    Store(Transfer),
    Atomic {
        space: Space,
        update: Update,
        bytes: usize,
        d: Option<Register>,
        address: Address,
        a: Register,
        b: Register,
    },
    Branch {
        target: usize,
    },
    Return,
    Trap,
    Barrier,
    WarpBarrier {
        members: Register,
    },
    Shuffle {
        kind: Shuffle,
        d: Register,
        inside: Option<u16>,
        a: Register,
        b: Register,
        c: Register,
        members: Register,
    },
    Vote {
        vote: Vote,
        d: u16,
        a: Predicate,
        members: Register,
    },
    Ballot {
        d: Register,
        a: Predicate,
        members: Register,
    },
    ActiveMask {
        d: Register,
    },
    LoadMatrix {
        count: usize,
        transposed: bool,
        d: [Register; 4],
        address: Address,
    },
    Multiply {
        product: Product,
        d: [Register; 4],
        a: [Register; 4],
        b: [Register; 2],
        c: [Register; 4],
    },
    /// To shared memory; `bytes` of which the first `from` come from global memory.
    Copy {
        to: Address,
        from: Address,
        bytes: usize,
        present: Option<Register>,
    },
    Commit,
    /// Until at most this many groups are on their way.
    Wait {
        groups: u32,
    },
    WaitAll,
    /// An order of memory accesses that the interpreter keeps anyway.
    Fence,
}

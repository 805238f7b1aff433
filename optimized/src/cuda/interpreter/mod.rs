//! An interpreter of compiled kernels that checks what a device does not: `docs/interpreter.md`.
//!
//! [`parse`] takes the text apart, [`decode`] turns a kernel into instructions on numbered
//! registers, [`block`] runs a block's warps in turns, [`warp`] an instruction for 32 lanes at a
//! time. [`memory`], [`shared`] and [`race`] watch every access.

mod access;
mod block;
mod code;
mod collective;
mod copies;
mod declare;
mod decode;
mod decode_memory;
mod fault;
mod instruction;
mod memory;
mod operands;
mod order;
mod parse;
mod race;
mod registers;
mod shared;
mod warp;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

pub use fault::Fault;
pub use memory::Buffer;

use super::launch::{Argument, Kernel, Pointer, Shape};
use block::{Launch, Worker};
use code::Code;
use memory::{Global, View};
use order::Order;
use parse::Text;
use shared::Variable;

/// Shared memory that a block can have on every device that the kernels are compiled for.
const MOST_SHARED_BYTES: usize = 99 << 10;

/// Instructions after which a warp is taken to loop for ever.
const BUDGET: u64 = 1 << 28;

/// The machine: its decoded kernels and the numbers it has given to blocks.
pub(super) struct Machine {
    /// Orders in which every launch runs.
    orders: usize,
    budget: u64,
    kernels: Mutex<HashMap<(usize, &'static str), Arc<Loaded>>>,
    /// The next block's number in this machine's life.
    tokens: Mutex<u64>,
    instructions: AtomicU64,
}

/// A kernel that ran before.
struct Loaded {
    text: Text,
    code: Code,
    /// Names of the parameters in the source.
    names: Vec<String>,
    tables: Vec<Buffer>,
}

impl Machine {
    pub(super) fn new(orders: usize) -> Self {
        Self {
            orders: orders.max(1),
            budget: BUDGET,
            kernels: Mutex::new(HashMap::new()),
            // Token 0 is no block's.
            tokens: Mutex::new(1),
            instructions: AtomicU64::new(0),
        }
    }

    /// Instructions of warps executed so far.
    pub(super) fn instructions(&self) -> u64 {
        self.instructions.load(Relaxed)
    }

    /// Replaces the number of instructions after which a warp is taken to loop for ever.
    pub(super) fn set_budget(&mut self, budget: u64) {
        self.budget = budget;
    }

    fn loaded(&self, kernel: Kernel) -> Result<Arc<Loaded>, String> {
        let key = (kernel.module.ptx.as_ptr() as usize, kernel.entry);
        // A panic elsewhere leaves the map whole.
        let mut kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = kernels.get(&key) {
            return Ok(Arc::clone(loaded));
        }
        let text = parse::parse(kernel.module.ptx)?;
        let code = decode::decode(&text, kernel.entry)?;
        let names = names(kernel.module.source, kernel.entry, code.parameters.len());
        let tables = code.tables.iter().map(|(_, content)| {
            let mut buffer = Buffer::zeros(content.len(), 1);
            buffer.write(0, content);
            buffer
        });
        let loaded = Arc::new(Loaded { tables: tables.collect(), text, code, names });
        kernels.insert(key, Arc::clone(&loaded));
        Ok(loaded)
    }

    /// Runs a kernel in every order; what is wrong with it in one line.
    pub(super) fn launch(
        &self,
        kernel: Kernel,
        shape: Shape,
        arguments: &[Argument<'_, Buffer>],
    ) -> Result<(), String> {
        let blocks = shape.grid.iter().map(|size| u64::from(*size)).product::<u64>();
        if blocks == 0 {
            return Ok(());
        }
        let loaded = self.loaded(kernel)?;
        let shared = check_shape(&loaded.code, shape, blocks)?;
        let pointers = pointer_tables(arguments);
        let (mut views, parameters) = bind(&loaded, arguments, &pointers)?;
        let outputs: Vec<&Buffer> =
            views.iter().filter(|view| view.writable).map(|view| view.buffer).collect();
        let names: Vec<String> =
            views.iter().filter(|view| view.writable).map(|view| view.name.clone()).collect();
        let first_table = views.len();
        for (buffer, (name, _)) in loaded.tables.iter().zip(&loaded.code.tables) {
            views.push(View { buffer, writable: false, name: name.clone() });
        }
        let mut launch = Launch {
            code: &loaded.code,
            text: &loaded.text,
            shape,
            global: Global::new(views),
            parameters,
            tables: (0..loaded.tables.len()).map(|i| Global::address(first_table + i)).collect(),
            shared,
            first_token: 0,
            budget: self.budget,
        };
        let before = (self.orders > 1).then(|| snapshots(&outputs));
        let mut first: Option<Vec<Vec<u32>>> = None;
        for index in 0..self.orders {
            launch.first_token = self.tokens(blocks, &outputs);
            self.run(&launch, blocks as u32, Order::new(index))
                .map_err(|fault| fault.to_string())?;
            let (Some(before), true) = (&before, self.orders > 1) else { break };
            let after = snapshots(&outputs);
            if let Some(first) = &first {
                compare(first, &after, &names)?;
            } else {
                first = Some(after);
            }
            if index + 1 < self.orders {
                outputs.iter().zip(before).for_each(|(buffer, before)| buffer.restore(before));
            }
        }
        Ok(())
    }

    /// Takes a token for each block; the first. Where they start anew, outputs forget the old ones.
    fn tokens(&self, blocks: u64, outputs: &[&Buffer]) -> u32 {
        let size = 1u64 << race::TOKEN_BITS;
        let mut next = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if *next % size + blocks > size {
            // Tokens of a launch never cross a generation, which leaves out the token 0.
            *next = next.next_multiple_of(size) + 1;
        }
        let first = *next;
        *next += blocks;
        for buffer in outputs {
            buffer.prepare((first / size) as u32);
        }
        (first % size) as u32
    }

    /// Runs the blocks in parallel. Of several that fail, the one with the lowest index tells.
    fn run(&self, launch: &Launch<'_>, blocks: u32, order: Order) -> Result<(), Box<Fault>> {
        let (next, failed) = (AtomicUsize::new(0), AtomicU32::new(u32::MAX));
        let blocks = order.blocks(blocks);
        let workers = rayon::current_num_threads().min(blocks.len());
        let faults = (0..workers).into_par_iter().filter_map(|_| {
            let (mut worker, mut first) = (Worker::new(launch), None);
            while let Some(block) = blocks.get(next.fetch_add(1, Relaxed)) {
                if *block > failed.load(Relaxed) {
                    continue;
                }
                match worker.run(*block, order) {
                    Ok(instructions) => {
                        self.instructions.fetch_add(instructions, Relaxed);
                    }
                    Err(fault) => {
                        failed.fetch_min(*block, Relaxed);
                        first = Some((*block, fault));
                    }
                }
            }
            first
        });
        let fault = faults.min_by_key(|(block, _)| *block);
        fault.map_or(Ok(()), |(_, fault)| Err(fault))
    }
}

fn snapshots(buffers: &[&Buffer]) -> Vec<Vec<u32>> {
    buffers.iter().map(|buffer| buffer.snapshot()).collect()
}

/// That two orders left the same bits.
fn compare(first: &[Vec<u32>], second: &[Vec<u32>], names: &[String]) -> Result<(), String> {
    for ((first, second), name) in first.iter().zip(second).zip(names) {
        if let Some(word) = first.iter().zip(second).position(|(first, second)| first != second) {
            let (first, second, byte) = (first[word], second[word], 4 * word);
            return Err(format!(
                "the result depends on the order of blocks and warps: the word at byte {byte} of \
                 `{name}` is {first:#010x} in one order and {second:#010x} in another"
            ));
        }
    }
    Ok(())
}

/// That a device could run this shape; the shared memory it has.
fn check_shape(code: &Code, shape: Shape, blocks: u64) -> Result<Vec<Variable>, String> {
    let threads = shape.block.iter().map(|size| u64::from(*size)).product::<u64>();
    if threads == 0 || threads > 1024 || shape.block[2] > 64 {
        return Err(format!("{:?} threads in a block, at most 1024 and 64 along z", shape.block));
    }
    if shape.grid[1] > 65535 || shape.grid[2] > 65535 || blocks >= 1 << (race::TOKEN_BITS - 1) {
        return Err(format!("{:?} blocks, at most 65535 along y and z", shape.grid));
    }
    if code.most_threads.is_some_and(|most| threads > u64::from(most)) {
        return Err(format!(
            "{threads} threads in a block, compiled for at most {:?}",
            code.most_threads
        ));
    }
    if code.exact_threads.is_some_and(|exact| exact != shape.block) {
        return Err(format!(
            "{:?} threads in a block, compiled for {:?}",
            shape.block, code.exact_threads
        ));
    }
    let mut shared = code.shared.clone();
    let dynamic = shape.dynamic_shared as usize;
    match &code.open_shared {
        Some((name, start)) => {
            shared.push(Variable { name: name.clone(), start: *start, bytes: dynamic });
        }
        None if dynamic > 0 => {
            return Err(format!(
                "{dynamic} bytes of shared memory that the kernel does not declare"
            ));
        }
        None => {}
    }
    let end = shared.iter().map(|variable| variable.start + variable.bytes).max().unwrap_or(0);
    if end > MOST_SHARED_BYTES {
        return Err(format!("{end} bytes of shared memory, at most {MOST_SHARED_BYTES}"));
    }
    Ok(shared)
}

/// The tables of pointers among the arguments. [`bind`] numbers the buffers as this does: a table,
/// then what it points to.
fn pointer_tables(arguments: &[Argument<'_, Buffer>]) -> Vec<Buffer> {
    let (mut tables, mut next) = (Vec::new(), 0);
    for argument in arguments {
        match argument {
            Argument::In(_) | Argument::Out(_) => next += 1,
            Argument::Table(pointers) => {
                let first = next + 1;
                next = first + pointers.len();
                let addresses: Vec<u64> = (first..next).map(Global::address).collect();
                let mut table = Buffer::zeros(addresses.len(), 8);
                table.write(0, bytemuck::cast_slice(&addresses));
                tables.push(table);
            }
            _ => {}
        }
    }
    tables
}

/// The buffers and the values of the parameters.
fn bind<'a>(
    loaded: &Loaded,
    arguments: &'a [Argument<'_, Buffer>],
    tables: &'a [Buffer],
) -> Result<(Vec<View<'a>>, Vec<u64>), String> {
    let parameters = &loaded.code.parameters;
    if arguments.len() != parameters.len() {
        return Err(format!("{} arguments, expected {}", arguments.len(), parameters.len()));
    }
    let (mut views, mut values) = (Vec::new(), Vec::new());
    let mut tables = tables.iter();
    for ((argument, parameter), name) in arguments.iter().zip(parameters).zip(&loaded.names) {
        let mut pointer = |buffer: &'a Buffer, writable, name: String| {
            let address = Global::address(views.len());
            views.push(View { buffer, writable, name });
            address
        };
        let (bytes, float, value) = match argument {
            Argument::In(buffer) => (8, false, pointer(buffer, false, name.clone())),
            Argument::Out(buffer) => (8, false, pointer(buffer, true, name.clone())),
            Argument::Table(pointers) => {
                let table = tables.next().expect("there is one for each");
                let address = pointer(table, false, name.clone());
                for (index, buffer) in pointers.iter().enumerate() {
                    let name = format!("{name}[{index}]");
                    match buffer {
                        Pointer::In(buffer) => pointer(buffer, false, name),
                        Pointer::Out(buffer) => pointer(buffer, true, name),
                    };
                }
                (8, false, address)
            }
            Argument::U64(value) => (8, false, *value),
            Argument::U32(value) => (4, false, u64::from(*value)),
            Argument::I32(value) => (4, false, u64::from(*value as u32)),
            Argument::F32(value) => (4, true, u64::from(value.to_bits())),
            Argument::F64(value) => (8, true, value.to_bits()),
        };
        if (bytes, float) != (parameter.bytes, parameter.float) {
            return Err(format!("argument `{name}` has not the type of its parameter"));
        }
        values.push(value);
    }
    Ok((views, values))
}

/// The parameters' names in the source, or their numbers where it does not say.
fn names(source: &str, entry: &str, count: usize) -> Vec<String> {
    let lines = source.lines().map(|line| line.split("//").next().unwrap_or(""));
    let text = lines.collect::<Vec<_>>().join(" ");
    let head = text.match_indices(entry).find_map(|(at, _)| {
        let whole = !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let rest = text[at + entry.len()..].trim_start().strip_prefix('(').filter(|_| whole)?;
        let names: Vec<String> = rest[..rest.find(')')?]
            .split(',')
            .filter_map(|parameter| {
                let mut words = parameter.split(|c: char| !c.is_alphanumeric() && c != '_');
                words.rfind(|word| !word.is_empty()).map(str::to_owned)
            })
            .collect();
        (names.len() == count).then_some(names)
    });
    head.unwrap_or_else(|| (0..count).map(|index| format!("argument {index}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_of_the_program_is_understood() {
        for module in crate::cuda::MODULES {
            let text = parse::parse(module.ptx).unwrap();
            assert!(!text.entries.is_empty(), "{}", module.name);
            for entry in &text.entries {
                if let Err(reason) = decode::decode(&text, &entry.name) {
                    panic!("{}.cu: {reason}", module.name);
                }
            }
        }
    }

    #[test]
    fn names_come_from_the_source() {
        let source = "// f(a)\nvoid f_backward(int x) {}\n\
                      void f(const float* gate,  // [len], (x)\n  word len) {}";
        assert_eq!(names(source, "f", 2), ["gate", "len"]);
        assert_eq!(names(source, "g", 1), ["argument 0"]);
    }

    #[test]
    fn tokens_of_a_launch_stay_in_one_generation() {
        let machine = Machine::new(1);
        let size = 1u64 << race::TOKEN_BITS;
        assert_eq!(machine.tokens(10, &[]), 1);
        assert_eq!(machine.tokens(10, &[]), 11);
        *machine.tokens.lock().unwrap() = size - 5;
        let buffer = Buffer::zeros(1, 4);
        assert_eq!(machine.tokens(10, &[&buffer]), 1);
        assert_eq!(machine.tokens(1, &[&buffer]), 11);
    }
}

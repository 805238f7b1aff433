//! One block after the other: its warps take turns until all have exited.

use super::code::{Code, Special};
use super::fault::{Broken, Fault, coordinates};
use super::memory::Global;
use super::order::Order;
use super::parse::Text;
use super::race::{Actor, TICK_BITS};
use super::shared::{Shared, Variable};
use super::warp::{State, Warp};
use crate::cuda::Shape;

/// What all blocks of a launch share.
pub(super) struct Launch<'a> {
    pub(super) code: &'a Code,
    pub(super) text: &'a Text,
    pub(super) shape: Shape,
    pub(super) global: Global<'a>,
    /// Content of the parameters' registers.
    pub(super) parameters: Vec<u64>,
    /// Addresses of the module's tables.
    pub(super) tables: Vec<u64>,
    pub(super) shared: Vec<Variable>,
    pub(super) first_token: u32,
    /// Instructions that a warp may execute.
    pub(super) budget: u64,
}

/// What the warps of a running block share.
pub(super) struct Block<'a> {
    pub(super) code: &'a Code,
    pub(super) global: &'a Global<'a>,
    pub(super) shared: Shared,
    /// The moment; thread and warp are each access's own.
    pub(super) actor: Actor,
    pub(super) budget: u64,
}

impl Block<'_> {
    /// Threads met: time goes on.
    pub(super) fn advance(&mut self) -> Result<u32, String> {
        self.actor.tick += 1;
        if self.actor.tick >> TICK_BITS != 0 {
            return Err("more barriers in one block than can be told apart".to_owned());
        }
        Ok(self.actor.tick)
    }
}

/// Runs blocks of a launch, reusing its memory.
pub(super) struct Worker<'a> {
    launch: &'a Launch<'a>,
    block: Block<'a>,
    warps: Vec<Warp>,
}

impl<'a> Worker<'a> {
    pub(super) fn new(launch: &'a Launch<'a>) -> Self {
        let threads: u32 = launch.shape.block.iter().product();
        let actor = Actor {
            token: 0,
            first_token: launch.first_token,
            thread: 0,
            tick: 0,
            block_since: 0,
            warp_since: 0,
        };
        Self {
            launch,
            block: Block {
                code: launch.code,
                global: &launch.global,
                shared: Shared::new(launch.shared.clone(), launch.code.shared_cell_bytes),
                actor,
                budget: launch.budget,
            },
            warps: (0..threads.div_ceil(32)).map(|warp| Warp::new(warp, launch.code)).collect(),
        }
    }

    /// Runs a block; the number of instructions its warps executed.
    pub(super) fn run(&mut self, index: u32, order: Order) -> Result<u64, Box<Fault>> {
        self.begin(index);
        let mut dice = order.within(index);
        let mut turns: Vec<usize> = (0..self.warps.len()).collect();
        let mut states = vec![State::Ready; self.warps.len()];
        loop {
            if let Some(dice) = &mut dice {
                dice.shuffle(&mut turns);
            }
            for warp in &turns {
                if states[*warp] == State::Ready {
                    // Turns of every length: from one instruction to some thousands.
                    let turn = dice.as_mut().map_or(u64::MAX, |dice| {
                        let longest = 1 << dice.below(13);
                        1 + dice.below(longest)
                    });
                    states[*warp] = self.warps[*warp]
                        .run(&mut self.block, turn)
                        .map_err(|broken| self.fault(index, *warp, &broken))?;
                }
            }
            if states.contains(&State::Ready) {
                continue;
            }
            if states.iter().all(|state| *state == State::Done) {
                return Ok(self.warps.iter().map(|warp| warp.steps).sum());
            }
            self.meet(index, &mut states)?;
        }
    }

    /// All warps wait at the barrier or have exited: lets them go on if all threads are there.
    fn meet(&mut self, index: u32, states: &mut [State]) -> Result<(), Box<Fault>> {
        let waiting = states.iter().position(|state| *state == State::Barrier).unwrap_or(0);
        let wrong = |warp: usize, what: &str| {
            self.fault(index, warp, &Broken::first(self.warps[warp].live(), what))
        };
        if self.warps.iter().any(|warp| warp.exited != 0) {
            return Err(wrong(waiting, "bar.sync waits for threads that have exited"));
        }
        let pc = self.warps[waiting].pc;
        if let Some(other) = self.warps.iter().position(|warp| warp.pc != pc) {
            let what = format!("warp {other} waits at a different bar.sync: {}", self.place(pc));
            return Err(wrong(other, &what));
        }
        let tick = match self.block.advance() {
            Ok(tick) => tick,
            Err(what) => return Err(self.fault(index, waiting, &Broken::new(0, what))),
        };
        self.block.actor.block_since = tick;
        for (warp, state) in self.warps.iter_mut().zip(states) {
            warp.release();
            *state = State::Ready;
        }
        Ok(())
    }

    /// Fills the registers that are given before the first instruction.
    fn begin(&mut self, index: u32) {
        let Launch { code, shape, parameters, tables, first_token, .. } = self.launch;
        self.block.actor.token = first_token + index;
        (self.block.actor.tick, self.block.actor.block_since) = (0, 0);
        let threads: u32 = shape.block.iter().product();
        let block = coordinates(index, shape.grid);
        for warp in &mut self.warps {
            let first = warp.index * 32;
            warp.begin(u32::MAX >> (32 - (threads - first).min(32)));
            for (register, value) in &code.constants {
                warp.registers.set(*register, |_| *value);
            }
            for (parameter, value) in code.parameters.iter().zip(parameters) {
                warp.registers.set(parameter.register, |_| *value);
            }
            for (register, special) in &code.specials {
                warp.registers.set(*register, |lane| {
                    let bit = 1u64 << lane;
                    match *special {
                        Special::Thread(axis) => {
                            coordinates(first + lane as u32, shape.block)[axis].into()
                        }
                        Special::Block(axis) => block[axis].into(),
                        Special::BlockSize(axis) => shape.block[axis].into(),
                        Special::GridSize(axis) => shape.grid[axis].into(),
                        Special::Lane => lane as u64,
                        Special::Warp => warp.index.into(),
                        Special::LanesEqual => bit,
                        Special::LanesBelow => bit - 1,
                        Special::LanesUpTo => bit | (bit - 1),
                        Special::LanesAbove => 0xFFFF_FFFF & !(bit | (bit - 1)),
                        Special::LanesFrom => 0xFFFF_FFFF & !(bit - 1),
                        Special::Table(table) => tables[table],
                    }
                });
            }
        }
    }

    fn place(&self, pc: usize) -> String {
        let place = self.launch.code.places[pc];
        format!("{} (PTX line {})", self.launch.text.source(place), place.ptx_line)
    }

    #[cold]
    fn fault(&self, block: u32, warp: usize, broken: &Broken) -> Box<Fault> {
        let warp = &self.warps[warp];
        let place = self.launch.code.places[warp.place_of(broken.lane)];
        // Places in a message stand as @pc@.
        let what = broken.what.split('@').enumerate().map(|(i, part)| match part.parse() {
            Ok(pc) if i % 2 == 1 => self.place(pc),
            _ => part.to_owned(),
        });
        Box::new(Fault {
            block: coordinates(block, self.launch.shape.grid),
            thread: coordinates(warp.index * 32 + broken.lane, self.launch.shape.block),
            ptx_line: place.ptx_line,
            source: self.launch.text.source(place),
            what: what.collect(),
        })
    }
}

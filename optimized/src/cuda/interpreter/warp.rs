//! A warp: which lanes run together, and the instructions that are neither memory nor collective.
//!
//! Lanes that stand at the same instruction run together, those at the lowest one first. In the
//! code that the compiler lays out, lanes that parted thereby meet again where their paths join.

use super::block::Block;
use super::code::{Instruction, Op};
use super::copies::Copies;
use super::fault::Broken;
use super::instruction::Arithmetic;
use super::registers::{FULL, Registers, lanes};

type Outcome<T = ()> = Result<T, Box<Broken>>;

/// What a warp did with its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It could go on.
    Ready,
    /// All its threads wait at the block's barrier.
    Barrier,
    /// All its threads have exited.
    Done,
}

pub(super) struct Warp {
    pub(super) index: u32,
    pub(super) registers: Registers,
    pub(super) copies: Copies,
    /// Each lane's own memory, one after the other.
    pub(super) local: Vec<u8>,
    /// The instruction of the lanes that run, also where a fault is.
    pub(super) pc: usize,
    /// The lanes that run.
    pub(super) active: u32,
    /// Lanes that are threads of the block, and those that exited.
    present: u32,
    pub(super) exited: u32,
    /// Lanes that wait for others at a collective instruction or a barrier.
    waiting: u32,
    /// Where the lanes stand that do not run.
    pcs: [usize; 32],
    /// The lowest place of a lane that could run and does not.
    next_parked: usize,
    /// The block's time when the lanes last met.
    pub(super) since: u32,
    pub(super) steps: u64,
}

impl Warp {
    pub(super) fn new(index: u32, code: &super::code::Code) -> Self {
        Self {
            index,
            registers: Registers::new(code),
            copies: Copies::default(),
            local: vec![0; 32 * code.local_bytes],
            pc: 0,
            active: 0,
            present: 0,
            exited: 0,
            waiting: 0,
            pcs: [0; 32],
            next_parked: usize::MAX,
            since: 0,
            steps: 0,
        }
    }

    /// Begins a block whose threads in this warp are `present`.
    pub(super) fn begin(&mut self, present: u32) {
        self.registers.clear();
        self.copies.clear();
        // What an earlier block left must not look like a value.
        self.local.fill(0xFF);
        (self.pc, self.active, self.present) = (0, present, present);
        (self.exited, self.waiting, self.since, self.steps) = (0, 0, 0, 0);
        self.next_parked = usize::MAX;
    }

    /// Lanes that are threads and have not exited.
    pub(super) fn live(&self) -> u32 {
        self.present & !self.exited
    }

    /// Goes on behind a barrier.
    pub(super) fn release(&mut self) {
        self.pc += 1;
    }

    /// Runs at most `turn` instructions.
    pub(super) fn run(&mut self, block: &mut Block<'_>, turn: u64) -> Outcome<State> {
        let code = block.code;
        let turn = turn.min(block.budget.saturating_sub(self.steps));
        for step in 0..turn {
            if self.pc >= self.next_parked {
                self.regroup();
            }
            let instruction = &code.instructions[self.pc];
            let mask = self.registers.holds(instruction.guard, self.active)?;
            if let Some(state) = self.step(block, instruction, mask)? {
                self.steps += step + 1;
                return Ok(state);
            }
        }
        self.steps += turn;
        if self.steps >= block.budget {
            let what = format!("still running after {} instructions of its warp", self.steps);
            return Err(Broken::first(self.active, what));
        }
        Ok(State::Ready)
    }

    /// Runs one instruction for the lanes of `mask`; the others skip it.
    #[inline(always)]
    fn step(
        &mut self,
        block: &mut Block<'_>,
        instruction: &Instruction,
        mask: u32,
    ) -> Outcome<Option<State>> {
        match &instruction.op {
            Op::One(f, d, a) => {
                let mut out = [0; 32];
                f(&mut out, self.registers.read(*a, mask)?);
                self.registers.write(*d, mask, &out);
            }
            Op::Calculate { f, d, operands } => self.calculate(*f, *d, *operands, mask)?,
            Op::Branch { target } => {
                self.branch(*target, mask);
                return Ok(None);
            }
            Op::Return => return self.exit(mask),
            Op::Barrier => return if mask == 0 { self.skip() } else { self.barrier(mask) },
            op @ (Op::Load(_) | Op::Store(_) | Op::Atomic { .. } | Op::Copy { .. }) => {
                self.memory(block, op, mask)?;
            }
            op @ (Op::Shuffle { .. }
            | Op::Vote { .. }
            | Op::Ballot { .. }
            | Op::WarpBarrier { .. }
            | Op::LoadMatrix { .. }
            | Op::Multiply { .. }) => {
                return if mask == 0 { self.skip() } else { self.together(block, op, mask) };
            }
            op => self.simple(block, op, mask)?,
        }
        self.pc += 1;
        Ok(None)
    }

    fn skip(&mut self) -> Outcome<Option<State>> {
        self.pc += 1;
        Ok(None)
    }

    fn calculate(&mut self, f: Arithmetic, d: u16, operands: [u16; 4], mask: u32) -> Outcome {
        let mut out = [0; 32];
        let read = |i: usize| self.registers.read(operands[i], mask);
        match f {
            Arithmetic::One(f) => f(&mut out, read(0)?),
            Arithmetic::Two(f) => f(&mut out, read(0)?, read(1)?),
            Arithmetic::Three(f) => f(&mut out, read(0)?, read(1)?, read(2)?),
            Arithmetic::Four(f) => f(&mut out, [read(0)?, read(1)?, read(2)?, read(3)?]),
            Arithmetic::Quotient(f) => {
                let divisor = read(1)?;
                if let Some(lane) = lanes(mask).find(|lane| divisor[*lane] == 0) {
                    return Err(Broken::new(lane as u32, "integer division by zero"));
                }
                f(&mut out, read(0)?, divisor);
            }
        }
        self.registers.write(d, mask, &out);
        Ok(())
    }

    /// What is left: predicates, packing, and copies that are waited for.
    fn simple(&mut self, block: &mut Block<'_>, op: &Op, mask: u32) -> Outcome {
        let registers = &mut self.registers;
        match *op {
            Op::Compare { f, d, complement, a, b, with } => {
                let result = f(registers.read(a, mask)?, registers.read(b, mask)?);
                let (yes, no) = match with {
                    None => (result, !result),
                    Some((combine, with)) => {
                        let with = registers.holds(with, mask)?;
                        (combine.of(result, with), combine.of(!result, with))
                    }
                };
                registers.decide(d, mask, yes);
                if let Some(complement) = complement {
                    registers.decide(complement, mask, no);
                }
            }
            Op::Select { d, a, b, by } => {
                let first = registers.holds(by, mask)?;
                // Only the operand that is taken has to be there.
                let out = *registers.read(a, first)?;
                let other = *registers.read(b, mask & !first)?;
                registers.write(d, first, &out);
                registers.write(d, mask & !first, &other);
            }
            Op::Logic { combine, d, a, b } => {
                let result = combine.of(registers.holds(a, mask)?, registers.holds(b, mask)?);
                registers.decide(d, mask, result);
            }
            Op::SetPredicate { d, a } => {
                let value = registers.holds(a, mask)?;
                registers.decide(d, mask, value);
            }
            Op::Pack { d, values, count, bits } => {
                let mut out = [0; 32];
                for (i, value) in values[..count].iter().enumerate() {
                    for (out, value) in out.iter_mut().zip(registers.read(*value, mask)?) {
                        *out |= (value & (u64::MAX >> (64 - bits))) << (i as u32 * bits);
                    }
                }
                registers.write(d, mask, &out);
            }
            Op::Unpack { values, bits, a } => {
                let from = *registers.read(a, mask)?;
                for (i, value) in values.iter().enumerate() {
                    if let Some(value) = value {
                        let part =
                            |from: u64| from >> (i as u32 * bits) & (u64::MAX >> (64 - bits));
                        registers.write(*value, mask, &from.map(part));
                    }
                }
            }
            Op::ActiveMask { d } => registers.write(d, mask, &[u64::from(mask); 32]),
            Op::Commit => self.copies.commit(mask),
            Op::Wait { groups } => self.wait_for_copies(block, mask, Some(groups)),
            Op::WaitAll => self.wait_for_copies(block, mask, None),
            Op::Fence => {}
            Op::Trap if mask != 0 => return Err(Broken::first(mask, "the kernel gives up (trap)")),
            _ => {}
        }
        Ok(())
    }

    fn branch(&mut self, target: usize, mask: u32) {
        let staying = self.active & !mask;
        if staying == 0 {
            self.pc = target;
        } else if mask == 0 {
            self.pc += 1;
        } else {
            self.park(staying, self.pc + 1);
            self.park(mask, target);
            self.active = 0;
            self.choose();
        }
    }

    fn exit(&mut self, mask: u32) -> Outcome<Option<State>> {
        if let Some(lane) = self.copies.on_their_way(mask) {
            return Err(Broken::new(lane, "exits with an asynchronous copy not waited for"));
        }
        self.exited |= mask;
        self.active &= !mask;
        if self.active != 0 {
            return self.skip();
        }
        if self.choose() {
            return Ok(None);
        }
        if self.waiting != 0 {
            return Err(self.divergence());
        }
        Ok(Some(State::Done))
    }

    fn barrier(&mut self, mask: u32) -> Outcome<Option<State>> {
        self.part(mask);
        Ok(self.gather(self.live(), "bar.sync")?.then_some(State::Barrier))
    }

    /// Only the lanes of `mask` take part in what is next; the others go on behind it.
    pub(super) fn part(&mut self, mask: u32) {
        let skipping = self.active & !mask;
        if skipping != 0 {
            self.park(skipping, self.pc + 1);
            self.active = mask;
        }
    }

    /// Whether all lanes of `needed` stand here. If not, those that do wait, and others run.
    pub(super) fn gather(&mut self, needed: u32, what: &str) -> Outcome<bool> {
        let pc = self.pc;
        let here = lanes(self.waiting).filter(|lane| self.pcs[*lane] == pc);
        let here = here.fold(0, |mask, lane| mask | 1 << lane);
        let missing = needed & !(self.active | here);
        if missing == 0 {
            self.active |= here;
            self.waiting &= !here;
            return Ok(true);
        }
        let gone = missing & !self.live();
        if gone != 0 {
            let lanes = masks(gone);
            let what = format!("{what} asks for lanes {lanes}, which have exited or do not exist");
            return Err(Broken::first(self.active, what));
        }
        self.park(self.active, pc);
        self.waiting |= self.active;
        let first = self.active;
        self.active = 0;
        if self.choose() {
            return Ok(false);
        }
        self.active = first;
        Err(self.divergence())
    }

    /// Leaves an instruction that only the lanes of `group` executed.
    pub(super) fn advance(&mut self, group: u32) {
        let staying = self.active & !group;
        if staying != 0 {
            self.park(staying, self.pc);
            self.active = group;
        }
        self.pc += 1;
    }

    #[cold]
    fn divergence(&self) -> Box<Broken> {
        let mut places: Vec<(usize, u32)> = Vec::new();
        for lane in lanes(self.waiting) {
            match places.iter_mut().find(|(pc, _)| *pc == self.pcs[lane]) {
                Some((_, mask)) => *mask |= 1 << lane,
                None => places.push((self.pcs[lane], 1 << lane)),
            }
        }
        let mut parts: Vec<String> = places
            .iter()
            .map(|(pc, mask)| format!("lanes {} wait at @{pc}@", masks(*mask)))
            .collect();
        if self.exited != 0 {
            parts.push(format!("lanes {} have exited", masks(self.exited)));
        }
        let what = format!("the warp diverged for good: {}", parts.join(", "));
        Broken::first(self.waiting, what)
    }

    /// Where a lane waits; of a lane that runs, where it runs.
    pub(super) fn place_of(&self, lane: u32) -> usize {
        if self.waiting >> lane & 1 == 1 { self.pcs[lane as usize] } else { self.pc }
    }

    fn park(&mut self, mask: u32, pc: usize) {
        for lane in lanes(mask) {
            self.pcs[lane] = pc;
        }
        self.next_parked = self.next_parked.min(pc);
    }

    fn regroup(&mut self) {
        self.park(self.active, self.pc);
        self.active = 0;
        self.choose();
    }

    /// Runs the lanes at the lowest place of those that can run; whether there are any.
    fn choose(&mut self) -> bool {
        let runnable = self.live() & !self.waiting;
        let (mut lowest, mut next, mut chosen) = (usize::MAX, usize::MAX, 0);
        for lane in lanes(runnable) {
            let pc = self.pcs[lane];
            if pc < lowest {
                (next, lowest, chosen) = (lowest, pc, 1 << lane);
            } else if pc == lowest {
                chosen |= 1 << lane;
            } else {
                next = next.min(pc);
            }
        }
        if chosen != 0 {
            (self.pc, self.active, self.next_parked) = (lowest, chosen, next);
        } else {
            self.next_parked = usize::MAX;
        }
        chosen != 0
    }
}

/// Lanes of a mask in words: `0-3, 7`.
pub(super) fn masks(mask: u32) -> String {
    if mask == FULL {
        return "0-31".to_owned();
    }
    let mut parts = Vec::new();
    let mut lane = 0;
    while lane < 32 {
        let len = (!(mask >> lane)).trailing_zeros().min(32 - lane);
        match len {
            0 => {}
            1 => parts.push(format!("{lane}")),
            _ => parts.push(format!("{lane}-{}", lane + len - 1)),
        }
        lane += len + 1;
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_are_written_as_ranges() {
        assert_eq!(masks(FULL), "0-31");
        assert_eq!(masks(0xF), "0-3");
        assert_eq!(masks(0x8000_0085), "0, 2, 7, 31");
    }
}

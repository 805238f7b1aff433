//! Which accesses of one launch are ordered, and which are a race.
//!
//! Every piece of memory has a [`Cell`] that remembers its last write and the reads since. Time in
//! a block is a counter, the tick, that grows with every synchronisation: an access from before the
//! block's last barrier is ordered before everything after it, one from before the warp's last
//! `bar.warp.sync` before everything of that warp. Accesses of two blocks of a launch are never
//! ordered. A block of a launch has a number of its own, its token, which grows from launch to
//! launch, so that cells need no clearing between launches.

/// Bits of a token; the interpreter clears the cells before they are used up.
pub(super) const TOKEN_BITS: u32 = 30;
/// Bits of a tick.
pub(super) const TICK_BITS: u32 = 20;
const THREAD_BITS: u32 = 10;

/// Who one access stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Span {
    Thread,
    Warp,
    Block,
    Grid,
}

/// The last access of a kind in one word, the newest where it stands for several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access(pub(super) u64);

impl Access {
    const ATOMIC: u64 = 1;
    const PENDING: u64 = 2;

    fn new(actor: &Actor, span: Span) -> Self {
        let moment = actor.moment() << (64 - TOKEN_BITS - TICK_BITS);
        Self(moment | u64::from(actor.thread) << 4 | (span as u64) << 2)
    }

    /// Token and tick.
    fn moment(self) -> u64 {
        self.0 >> (64 - TOKEN_BITS - TICK_BITS)
    }

    fn token(self) -> u32 {
        (self.0 >> (64 - TOKEN_BITS)) as u32
    }

    fn tick(self) -> u32 {
        (self.0 >> (64 - TOKEN_BITS - TICK_BITS)) as u32 & ((1 << TICK_BITS) - 1)
    }

    fn thread(self) -> u32 {
        (self.0 >> 4) as u32 & ((1 << THREAD_BITS) - 1)
    }

    fn span(self) -> Span {
        match self.0 >> 2 & 3 {
            0 => Span::Thread,
            1 => Span::Warp,
            2 => Span::Block,
            _ => Span::Grid,
        }
    }

    fn atomic(self) -> bool {
        self.0 & Self::ATOMIC != 0
    }

    /// Whether it is not of the block with this token.
    pub(super) fn older_than(self, token: u32) -> bool {
        self.token() != token
    }

    /// Whether an asynchronous copy is on its way to this place.
    pub(super) fn pending(self) -> bool {
        self.0 & Self::PENDING != 0
    }
}

/// A thread at a moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Actor {
    /// Of its block.
    pub(super) token: u32,
    /// Of the launch's first block.
    pub(super) first_token: u32,
    /// Flat index in the block.
    pub(super) thread: u32,
    /// The block's time.
    pub(super) tick: u32,
    /// When the block's threads last met.
    pub(super) block_since: u32,
    /// When the warp's threads last met.
    pub(super) warp_since: u32,
}

impl Actor {
    /// Token and tick as they stand in an [`Access`].
    #[inline(always)]
    fn moment(&self) -> u64 {
        u64::from(self.token) << TICK_BITS | u64::from(self.tick)
    }

    /// What a read leaves behind in the common case: the last write is from before the block's last
    /// barrier, and so are the reads, or they are of this moment. `None` where [`read`] must judge.
    ///
    /// This is what [`read`] does, in few comparisons. Only for memory of one block.
    #[inline(always)]
    pub(super) fn quick_read(&self, write: Access, read: Access) -> Option<Access> {
        let start = u64::from(self.token) << TICK_BITS;
        let since = u64::from(self.block_since);
        if write.moment().wrapping_sub(start) >= since || write.pending() {
            return None;
        }
        let age = read.moment().wrapping_sub(start);
        if age < since || age >> TICK_BITS != 0 {
            return Some(Access::new(self, Span::Thread));
        }
        if age != u64::from(self.tick) {
            return None;
        }
        let span = match (read.thread() ^ self.thread) >> 5 {
            0 if read.span() == Span::Thread && read.thread() == self.thread => Span::Thread,
            0 => read.span().max(Span::Warp),
            _ => Span::Block,
        };
        Some(Access::new(self, span))
    }

    /// Whether `old` happened before what this thread does now.
    #[inline]
    fn follows(&self, old: Access) -> bool {
        if old.token() < self.first_token {
            return true;
        }
        if old.token() != self.token || old.span() == Span::Grid {
            return false;
        }
        let same_warp = old.span() <= Span::Warp && old.thread() / 32 == self.thread / 32;
        (old.span() == Span::Thread && old.thread() == self.thread)
            || old.tick() < self.block_since
            || (same_warp && old.tick() < self.warp_since)
    }

    /// An access of this thread beside `old`, which stays visible where nothing orders the two.
    fn beside(&self, old: Access) -> Access {
        if self.follows(old) {
            return Access::new(self, Span::Thread);
        }
        let span = if old.token() != self.token {
            Span::Grid
        } else if old.thread() / 32 == self.thread / 32 {
            Span::Warp
        } else {
            Span::Block
        };
        Access::new(self, span.max(old.span()))
    }
}

/// Two accesses of one place that nothing orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Race {
    earlier: &'static str,
    by: Access,
}

impl Race {
    /// In words, after "read of x: ".
    pub(super) fn describe(&self, actor: &Actor) -> String {
        let (earlier, thread) = (self.earlier, self.by.thread());
        if self.by.pending() {
            return format!("race with an asynchronous copy of thread {thread} not waited for");
        }
        if self.by.token() == actor.token && self.by.span() < Span::Grid {
            format!("race with an earlier {earlier} by thread {thread}, no barrier between")
        } else {
            let block = self.by.token() - actor.first_token;
            format!("race with a {earlier} by thread {thread} of block number {block}")
        }
    }
}

/// The words of one piece of memory: the two operations that the rules need of them.
pub(super) trait Cell {
    /// Last write, or the atomic operations since.
    fn write(&self) -> Access;
    /// Reads since the last write.
    fn read(&self) -> Access;
    /// Replaces the write and returns the old one, in one step.
    fn swap_write(&mut self, new: Access) -> Access;
    /// Replaces the read and returns the old one, in one step.
    fn swap_read(&mut self, new: Access) -> Access;
}

#[inline]
fn unordered(actor: &Actor, earlier: &'static str, by: Access) -> Result<(), Race> {
    if by.pending() || !actor.follows(by) { Err(Race { earlier, by }) } else { Ok(()) }
}

/// Notes a read.
///
/// The note comes before the look at the writes, and a writer's before its look at the reads: of
/// two blocks that run at once, at least one sees the other.
#[inline]
pub(super) fn read(cell: &mut impl Cell, actor: &Actor) -> Result<(), Race> {
    let old = cell.read();
    let new = actor.beside(old);
    if new != old {
        cell.swap_read(new);
    }
    unordered(actor, "write", cell.write())
}

/// Notes a write.
#[inline]
pub(super) fn write(cell: &mut impl Cell, actor: &Actor) -> Result<(), Race> {
    let old = cell.swap_write(Access::new(actor, Span::Thread));
    unordered(actor, "write", old)?;
    unordered(actor, "read", cell.read())
}

/// Notes an asynchronous copy that starts: a write that is not there before it is waited for.
pub(super) fn start_copy(cell: &mut impl Cell, actor: &Actor) -> Result<(), Race> {
    let new = Access::new(actor, Span::Thread);
    let old = cell.swap_write(Access(new.0 | Access::PENDING));
    unordered(actor, "write", old)?;
    unordered(actor, "read", cell.read())
}

/// Notes that the thread waited for its copy: from here on the data is a write of its.
pub(super) fn end_copy(cell: &mut impl Cell, actor: &Actor) {
    cell.swap_write(Access::new(actor, Span::Thread));
}

/// Notes an atomic operation, which may stand beside others.
pub(super) fn atomic(cell: &mut impl Cell, actor: &Actor) -> Result<(), Race> {
    let old = cell.write();
    let new = actor.beside(old);
    let old = cell.swap_write(Access(new.0 | Access::ATOMIC));
    if !old.atomic() {
        unordered(actor, "write", old)?;
    }
    unordered(actor, "read", cell.read())
}

/// A cell that one thread of the host uses at a time.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Shadow {
    pub(super) write: u64,
    pub(super) read: u64,
}

impl Cell for Shadow {
    fn write(&self) -> Access {
        Access(self.write)
    }
    fn read(&self) -> Access {
        Access(self.read)
    }
    fn swap_write(&mut self, new: Access) -> Access {
        Access(std::mem::replace(&mut self.write, new.0))
    }
    fn swap_read(&mut self, new: Access) -> Access {
        Access(std::mem::replace(&mut self.read, new.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn actor(thread: u32) -> Actor {
        Actor { token: 7, first_token: 5, thread, tick: 3, block_since: 2, warp_since: 2 }
    }

    #[test]
    fn a_write_and_a_read_of_two_threads_race() {
        let mut cell = Shadow::default();
        write(&mut cell, &actor(0)).unwrap();
        read(&mut cell, &actor(0)).unwrap();
        assert!(read(&mut cell, &actor(1)).is_err());
    }

    #[test]
    fn a_quick_read_leaves_what_a_read_leaves() {
        let moments = (0..3u32).flat_map(|token| (0..5).map(move |tick| (token + 6, tick)));
        let cells = moments.flat_map(|(token, tick)| {
            [0, 1, 40].map(|thread| Actor { token, tick, ..actor(thread) })
        });
        let mut quick = 0;
        let cells: Vec<Actor> = cells.filter(|old| old.token != 7 || old.tick <= 3).collect();
        for (write, old) in cells.iter().flat_map(|write| cells.iter().map(move |old| (write, old)))
        {
            for span in [Span::Thread, Span::Warp, Span::Block] {
                let mut cell = Shadow {
                    write: Access::new(write, Span::Thread).0,
                    read: Access::new(old, span).0,
                };
                // Other blocks are forgotten before a read is judged, as `shared` does.
                let reader = Actor { first_token: 7, ..actor(1) };
                let Some(new) = reader.quick_read(cell.write(), cell.read()) else { continue };
                if old.token != reader.token {
                    cell.read = 0;
                }
                read(&mut cell, &reader).unwrap();
                assert_eq!(new, cell.read());
                quick += 1;
            }
        }
        assert!(quick > 50);
    }

    #[test]
    fn a_barrier_orders_the_block() {
        let mut cell = Shadow::default();
        write(&mut cell, &actor(0)).unwrap();
        let later = Actor { tick: 4, block_since: 4, ..actor(99) };
        read(&mut cell, &later).unwrap();
    }

    #[test]
    fn a_warp_barrier_orders_its_warp_only() {
        for (thread, ordered) in [(31, true), (32, false)] {
            let mut cell = Shadow::default();
            write(&mut cell, &actor(0)).unwrap();
            let later = Actor { tick: 4, warp_since: 4, ..actor(thread) };
            assert_eq!(read(&mut cell, &later).is_ok(), ordered);
        }
    }

    #[test]
    fn two_readers_stand_beside_each_other_and_a_writer_sees_both() {
        let mut cell = Shadow::default();
        read(&mut cell, &actor(0)).unwrap();
        read(&mut cell, &actor(1)).unwrap();
        assert!(write(&mut cell, &actor(1)).is_err());
        let mut cell = Shadow::default();
        read(&mut cell, &actor(40)).unwrap();
        read(&mut cell, &actor(1)).unwrap();
        // Thread 40's read is in another warp: thread 1's warp barrier does not order it.
        let later = Actor { tick: 4, warp_since: 4, ..actor(1) };
        assert!(write(&mut cell, &later).is_err());
    }

    #[test]
    fn blocks_of_one_launch_are_never_ordered_and_launches_always() {
        let mut cell = Shadow::default();
        write(&mut cell, &actor(0)).unwrap();
        let other_block = Actor { token: 8, tick: 9, block_since: 9, ..actor(0) };
        assert!(read(&mut cell, &other_block).is_err());
        let mut cell = Shadow::default();
        write(&mut cell, &actor(0)).unwrap();
        let next_launch = Actor { token: 9, first_token: 9, ..actor(0) };
        read(&mut cell, &next_launch).unwrap();
    }

    #[test]
    fn readers_of_two_blocks_forbid_a_write_of_either() {
        let mut cell = Shadow::default();
        read(&mut cell, &actor(0)).unwrap();
        read(&mut cell, &Actor { token: 8, ..actor(0) }).unwrap();
        assert!(
            write(&mut cell, &Actor { token: 8, tick: 9, block_since: 9, ..actor(0) }).is_err()
        );
    }

    #[test]
    fn atomics_stand_beside_atomics_and_nothing_else() {
        let mut cell = Shadow::default();
        atomic(&mut cell, &actor(0)).unwrap();
        atomic(&mut cell, &Actor { token: 8, ..actor(3) }).unwrap();
        assert!(read(&mut cell, &actor(0)).is_err());
        let mut cell = Shadow::default();
        write(&mut cell, &actor(0)).unwrap();
        assert!(atomic(&mut cell, &actor(1)).is_err());
    }

    #[test]
    fn a_copy_is_there_for_its_thread_once_it_waited() {
        let mut cell = Shadow::default();
        start_copy(&mut cell, &actor(0)).unwrap();
        let race = read(&mut cell, &actor(0)).unwrap_err();
        assert!(race.describe(&actor(0)).contains("not waited for"));
        end_copy(&mut cell, &actor(0));
        read(&mut cell, &actor(0)).unwrap();
        assert!(read(&mut cell, &actor(1)).is_err());
    }
}

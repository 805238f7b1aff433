//! What the lanes of a warp do together: shuffles, votes, barriers of the warp, matrices.

use super::block::Block;
use super::code::{Op, Register, Shuffle, Vote};
use super::fault::Broken;
use super::instruction::{Lanes, fragments};
use super::registers::{FULL, lanes};
use super::shared::Want;
use super::warp::{State, Warp};

type Outcome<T = ()> = Result<T, Box<Broken>>;

impl Warp {
    /// Runs a collective instruction once all lanes that it asks for stand here.
    pub(super) fn together(
        &mut self,
        block: &mut Block<'_>,
        op: &Op,
        mask: u32,
    ) -> Outcome<Option<State>> {
        self.part(mask);
        let (group, what) = match op {
            Op::Shuffle { members, .. } => (self.members(*members)?, "shfl.sync"),
            Op::Vote { members, .. } | Op::Ballot { members, .. } => {
                (self.members(*members)?, "vote.sync")
            }
            Op::WarpBarrier { members } => (self.members(*members)?, "bar.warp.sync"),
            Op::LoadMatrix { .. } => (FULL, "ldmatrix"),
            _ => (FULL, "mma.sync"),
        };
        if !self.gather(group, what)? {
            return Ok(None);
        }
        match *op {
            Op::Shuffle { kind, d, inside, a, b, c, members } => {
                self.agree(members, group)?;
                let sources = *self.registers.read(b, group)?;
                let clamps = *self.registers.read(c, group)?;
                let values = *self.registers.read(a, group)?;
                let (out, in_range) = shuffle(kind, &values, &sources, &clamps, group)?;
                self.registers.write(d, group, &out);
                if let Some(inside) = inside {
                    self.registers.decide(inside, group, in_range);
                }
            }
            Op::Vote { vote, d, a, members } => {
                self.agree(members, group)?;
                let yes = self.registers.holds(a, group)?;
                let result = match vote {
                    Vote::All => yes == group,
                    Vote::Any => yes != 0,
                    Vote::Uniform => yes == group || yes == 0,
                };
                self.registers.decide(d, group, if result { FULL } else { 0 });
            }
            Op::Ballot { d, a, members } => {
                self.agree(members, group)?;
                let yes = self.registers.holds(a, group)?;
                self.registers.write(d, group, &[u64::from(yes); 32]);
            }
            Op::WarpBarrier { members } => {
                self.agree(members, group)?;
                // A barrier of some lanes orders only these: no order is noted.
                if group & self.live() == self.live() {
                    self.since = block.advance().map_err(|what| Broken::first(group, what))?;
                }
            }
            Op::LoadMatrix { count, transposed, d, address } => {
                let addresses = self.addresses(address, FULL)?;
                for (i, d) in d[..count].iter().enumerate() {
                    let rows = self.matrix(block, &addresses, 8 * i)?;
                    self.registers.write(*d, FULL, &fragments(&rows, transposed));
                }
            }
            Op::Multiply { product, d, a, b, c } => {
                let read = |register: Register| self.registers.read(register, FULL);
                let a = [read(a[0])?, read(a[1])?, read(a[2])?, read(a[3])?];
                let b = [read(b[0])?, read(b[1])?];
                let c = [read(c[0])?, read(c[1])?, read(c[2])?, read(c[3])?];
                let out = product.apply(a, b, c);
                for (d, out) in d.iter().zip(&out) {
                    self.registers.write(*d, FULL, out);
                }
            }
            _ => {}
        }
        self.advance(group);
        Ok(None)
    }

    /// The lanes that the first running lane asks for.
    fn members(&self, register: Register) -> Outcome<u32> {
        let first = self.active.trailing_zeros();
        let members = self.registers.read(register, self.active)?[first as usize] as u32;
        if members >> first & 1 == 0 {
            return Err(Broken::new(first, "a collective instruction without its own lane"));
        }
        Ok(members)
    }

    /// That all lanes of the group ask for the same group.
    fn agree(&self, register: Register, group: u32) -> Outcome {
        let members = self.registers.read(register, group)?;
        match lanes(group).find(|lane| members[*lane] as u32 != group) {
            Some(lane) => {
                Err(Broken::new(lane as u32, "lanes of one group ask for different lanes"))
            }
            None => Ok(()),
        }
    }

    /// The 8 x 8 matrix whose rows the lanes from `first` on point at.
    fn matrix(
        &self,
        block: &mut Block<'_>,
        addresses: &Lanes,
        first: usize,
    ) -> Outcome<[[u16; 8]; 8]> {
        let mut rows = [[0; 8]; 8];
        for (lane, row) in (first..).zip(&mut rows) {
            let actor = self.actor(block, lane);
            let place = block.shared.access(&actor, addresses[lane], 16, Want::Read);
            let place = place.map_err(|what| Broken::new(lane as u32, what))?;
            for (column, value) in row.iter_mut().enumerate() {
                *value = block.shared.load(place + 2 * column, 2) as u16;
            }
        }
        Ok(rows)
    }
}

/// Each lane's value and whether its source was in range, as the instruction set defines them.
fn shuffle(
    kind: Shuffle,
    values: &Lanes,
    sources: &Lanes,
    clamps: &Lanes,
    group: u32,
) -> Outcome<(Lanes, u32)> {
    let (mut out, mut in_range) = ([0; 32], 0);
    for lane in lanes(group) {
        let me = lane as i64;
        let (b, c) = ((sources[lane] & 31) as i64, clamps[lane] as i64);
        let (clamp, segments) = (c & 31, c >> 8 & 31);
        let most = (me & segments) | (clamp & !segments);
        let least = me & segments;
        let (source, inside) = match kind {
            Shuffle::Up => (me - b, me - b >= most),
            Shuffle::Down => (me + b, me + b <= most),
            Shuffle::Butterfly => (me ^ b, (me ^ b) <= most),
            Shuffle::Index => {
                let source = least | (b & !segments);
                (source, source <= most)
            }
        };
        let source = if inside { source as usize } else { lane };
        if group >> source & 1 == 0 {
            let what = format!("shuffle reads lane {source}, which does not take part");
            return Err(Broken::new(lane as u32, what));
        }
        out[lane] = values[source] & 0xFFFF_FFFF;
        in_range |= u32::from(inside) << lane;
    }
    Ok((out, in_range))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shuffled(kind: Shuffle, b: u64, c: u64) -> (Lanes, u32) {
        let values = std::array::from_fn(|lane| 100 + lane as u64);
        shuffle(kind, &values, &[b; 32], &[c; 32], FULL).unwrap()
    }

    #[test]
    fn shuffles_read_the_lane_that_the_manual_names() {
        let (out, inside) = shuffled(Shuffle::Butterfly, 16, 31);
        assert_eq!((out[0], out[17], inside), (116, 101, FULL));
        let (out, inside) = shuffled(Shuffle::Down, 4, 31);
        assert_eq!((out[0], out[27], out[28]), (104, 131, 128));
        assert_eq!(inside, 0x0FFF_FFFF);
        let (out, inside) = shuffled(Shuffle::Up, 1, 0);
        assert_eq!((out[0], out[31], inside), (100, 130, 0xFFFF_FFFE));
        let (out, _) = shuffled(Shuffle::Index, 3, 31);
        assert!(out.iter().all(|value| *value == 103));
    }

    #[test]
    fn segments_keep_shuffles_apart() {
        // Width 8: the clamp as __shfl_*_sync makes it, (32 - 8) << 8 | 31 or 0.
        let (out, _) = shuffled(Shuffle::Down, 4, 24 << 8 | 31);
        assert_eq!((out[0], out[4], out[9]), (104, 104, 113));
        let (out, _) = shuffled(Shuffle::Index, 2, 24 << 8 | 31);
        assert_eq!((out[0], out[15], out[31]), (102, 110, 126));
        let (out, _) = shuffled(Shuffle::Up, 1, 24 << 8);
        assert_eq!((out[8], out[9]), (108, 108));
    }

    #[test]
    fn a_shuffle_from_outside_the_group_is_a_fault() {
        assert!(shuffle(Shuffle::Butterfly, &[0; 32], &[16; 32], &[31; 32], 0xFFFF).is_err());
    }
}

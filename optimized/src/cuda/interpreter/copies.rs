//! Asynchronous copies on their way to shared memory (`cp.async`).

/// One copy of one lane.
pub(super) struct OnItsWay {
    pub(super) lane: u32,
    group: u32,
    pub(super) place: usize,
    pub(super) bytes: usize,
    /// What was in global memory when the copy started, zeros where it reads less.
    pub(super) data: [u8; 16],
}

/// The copies of a warp, each lane's in the order of their start.
#[derive(Default)]
pub(super) struct Copies {
    all: Vec<OnItsWay>,
    /// Groups that each lane has closed.
    closed: [u32; 32],
}

impl Copies {
    pub(super) fn clear(&mut self) {
        self.all.clear();
        self.closed = [0; 32];
    }

    pub(super) fn start(&mut self, lane: u32, place: usize, bytes: usize, data: [u8; 16]) {
        let group = self.closed[lane as usize];
        self.all.push(OnItsWay { lane, group, place, bytes, data });
    }

    /// Closes the group of what the lanes started.
    pub(super) fn commit(&mut self, mask: u32) {
        for lane in super::registers::lanes(mask) {
            self.closed[lane] += 1;
        }
    }

    /// Gives `arrive` every copy that a lane of `mask` waits for: all but the last `groups` closed
    /// groups, or all at all.
    pub(super) fn wait(
        &mut self,
        mask: u32,
        groups: Option<u32>,
        mut arrive: impl FnMut(&OnItsWay),
    ) {
        let closed = &self.closed;
        self.all.retain(|copy| {
            let done = groups.is_none_or(|groups| {
                copy.group.saturating_add(groups) < closed[copy.lane as usize]
            });
            let arrives = mask >> copy.lane & 1 == 1 && done;
            if arrives {
                arrive(copy);
            }
            !arrives
        });
    }

    /// A lane of `mask` that has a copy on its way.
    pub(super) fn on_their_way(&self, mask: u32) -> Option<u32> {
        self.all.iter().map(|copy| copy.lane).find(|lane| mask >> lane & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrived(copies: &mut Copies, mask: u32, groups: Option<u32>) -> Vec<(u32, usize)> {
        let mut arrived = Vec::new();
        copies.wait(mask, groups, |copy| arrived.push((copy.lane, copy.place)));
        arrived
    }

    #[test]
    fn waiting_leaves_the_newest_groups() {
        let mut copies = Copies::default();
        for place in 0..3 {
            copies.start(4, place, 16, [0; 16]);
            copies.commit(1 << 4);
        }
        copies.start(4, 3, 16, [0; 16]);
        assert_eq!(arrived(&mut copies, 1 << 4, Some(1)), [(4, 0), (4, 1)]);
        assert_eq!(arrived(&mut copies, 1 << 4, Some(0)), [(4, 2)]);
        assert_eq!(copies.on_their_way(1 << 4), Some(4));
        assert_eq!(arrived(&mut copies, 1 << 4, None), [(4, 3)]);
        assert_eq!(copies.on_their_way(1 << 4), None);
    }

    #[test]
    fn a_lane_waits_for_its_own_copies() {
        let mut copies = Copies::default();
        copies.start(0, 0, 4, [0; 16]);
        copies.start(1, 4, 4, [0; 16]);
        copies.commit(3);
        assert_eq!(arrived(&mut copies, 2, Some(0)), [(1, 4)]);
        assert_eq!(copies.on_their_way(3), Some(0));
    }
}

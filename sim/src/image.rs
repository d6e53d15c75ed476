//! What a power cut leaves of one file.

use bytes::Bytes;

use crate::dice::Dice;

/// What a file system writes at once.
const PAGE_BYTES: usize = 4096;

/// A file's content on the disk, and what has been written since it was flushed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Content {
    flushed: Vec<u8>,
    since: Vec<Op>,
}

#[derive(Debug, Clone)]
enum Op {
    Write { at: usize, bytes: Bytes },
    Cut(usize),
}

impl Content {
    pub(crate) fn flushed(flushed: Vec<u8>) -> Self {
        Self { flushed, since: Vec::new() }
    }

    pub(crate) fn write(&mut self, at: u64, bytes: Bytes) {
        self.since.push(Op::Write { at: index(at), bytes });
    }

    pub(crate) fn cut(&mut self, length: u64) {
        self.since.push(Op::Cut(index(length)));
    }

    pub(crate) fn flush(&mut self) {
        for op in std::mem::take(&mut self.since) {
            apply(&mut self.flushed, &op);
        }
    }

    /// Some of it is on the disk; the rest the system takes for written from now on.
    pub(crate) fn fail_flush(&mut self, dice: &Dice) {
        self.flushed = self.after_power_cut(dice);
        self.since.clear();
    }

    /// What is there when the machine starts again.
    pub(crate) fn after_power_cut(&self, dice: &Dice) -> Vec<u8> {
        let mut image = self.flushed.clone();
        let mut rest = &self.since[..];
        loop {
            let writes = rest.iter().position(|op| matches!(op, Op::Cut(_))).unwrap_or(rest.len());
            keep_pages(&mut image, &rest[..writes], dice);
            // What changes a length is kept in order by every journalling file system.
            match &rest[writes..] {
                [cut, behind @ ..] if dice.chance(0.5) => {
                    apply(&mut image, cut);
                    rest = behind;
                }
                _ => return image,
            }
        }
    }
}

/// Each page as it was after some of `writes`, or before all.
fn keep_pages(image: &mut Vec<u8>, writes: &[Op], dice: &Dice) {
    let end = writes.iter().map(end_of).max().unwrap_or(0);
    let (all, none) = (dice.chance(0.25), dice.chance(0.25));
    if dice.chance(0.25) && end > image.len() {
        // The length came to the disk before the pages.
        image.resize(end, 0);
    }
    for page in 0..end.div_ceil(PAGE_BYTES) {
        let pages = page * PAGE_BYTES..(page + 1) * PAGE_BYTES;
        let within: Vec<(usize, &[u8])> =
            writes.iter().filter_map(|op| part_within(op, pages.clone())).collect();
        if within.is_empty() {
            continue;
        }
        let kept = match (all, none) {
            (true, _) => within.len(),
            (_, true) => 0,
            _ => dice.pick(0..within.len() + 1),
        };
        for (at, bytes) in &within[..kept] {
            write(image, *at, bytes);
        }
    }
}

fn end_of(op: &Op) -> usize {
    match op {
        Op::Write { at, bytes } => at + bytes.len(),
        Op::Cut(_) => 0,
    }
}

fn part_within(op: &Op, page: std::ops::Range<usize>) -> Option<(usize, &[u8])> {
    let Op::Write { at, bytes } = op else { return None };
    let (from, to) = (page.start.max(*at), page.end.min(at + bytes.len()));
    (from < to).then(|| (from, &bytes[from - at..to - at]))
}

fn apply(image: &mut Vec<u8>, op: &Op) {
    match op {
        Op::Write { at, bytes } => write(image, *at, bytes),
        Op::Cut(length) => image.resize(*length, 0),
    }
}

fn write(image: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    if image.len() < end {
        image.resize(end, 0);
    }
    image[at..end].copy_from_slice(bytes);
}

fn index(position: u64) -> usize {
    usize::try_from(position).expect("simulated files are small")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dice(seed: u64) -> Dice {
        Dice::new(seed, "test")
    }

    #[test]
    fn what_is_flushed_stays() {
        let mut content = Content::default();
        content.write(0, Bytes::from_static(b"flushed"));
        content.flush();
        content.write(7, Bytes::from_static(b" and not"));
        let mut lengths = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let left = content.after_power_cut(&dice(seed));
            assert!(left.starts_with(b"flushed"), "seed {seed}");
            lengths.insert((left.len(), left.last() == Some(&0)));
        }
        // Lost, kept, and a length without its bytes.
        assert_eq!(lengths.into_iter().collect::<Vec<_>>(), [(7, false), (15, false), (15, true)]);
    }

    #[test]
    fn pages_come_in_any_order_and_writes_of_a_page_in_theirs() {
        let mut content = Content::flushed(vec![b'.'; 2 * PAGE_BYTES]);
        content.write(0, Bytes::from_static(b"1"));
        content.write(1, Bytes::from_static(b"2"));
        content.write(PAGE_BYTES as u64, Bytes::from_static(b"3"));
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..200 {
            let left = content.after_power_cut(&dice(seed));
            seen.insert((left[0], left[1], left[PAGE_BYTES]));
        }
        assert!(seen.contains(&(b'.', b'.', b'3')) && seen.contains(&(b'1', b'.', b'3')));
        assert!(!seen.iter().any(|(one, two, _)| *one == b'.' && *two == b'2'));
    }
}

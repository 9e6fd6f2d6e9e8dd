//! The partitions of a store as one sequence, in the order of time. Neither input nor output.
//!
//! Each partition's log is in the order of its Redis' clock. So the earliest of what stands first in the partitions comes
//! next; and a partition of which nothing is left can bring nothing that is older than its clock when it was last read.

use std::{collections::VecDeque, time::Duration};

/// How far an event may be ahead of the clock of a partition that is waited for, in ms. What is further ahead was stored by
/// a clock that has been set back since, and would wait for as long.
const AHEAD_MAX: u64 = 1_000;

/// What was read of a partition.
pub struct Page<T> {
    /// In the order of its log; each with when it was stored, in ms since 1970, where that is still known.
    pub entries: Vec<(Option<u64>, T)>,
    /// If there was no more: its clock before it was read, in ms since 1970.
    pub end: Option<u64>,
}

/// What was read of several partitions and not yet taken.
pub struct Merge<T> {
    queues: Vec<Queue<T>>,
}

struct Queue<T> {
    entries: VecDeque<(u64, T)>,
    /// When the last entry was stored, or one before it if the clock was set back in between.
    newest: u64,
    end: Option<u64>,
}

impl<T> Queue<T> {
    /// Whether something may still come that goes before what was stored at `time`.
    fn may_precede(&self, time: u64) -> bool {
        self.entries.is_empty() && self.end.is_none_or(|end| (end..=end + AHEAD_MAX).contains(&time))
    }
}

impl<T> Merge<T> {
    /// Of so many partitions, none of which was read.
    pub fn new(partitions: u16) -> Self {
        let queue = || Queue { entries: VecDeque::new(), newest: 0, end: None };
        Self { queues: (0..partitions).map(|_| queue()).collect() }
    }

    /// Whether nothing of a partition is left, so that it is to be read.
    pub fn is_empty(&self, partition: usize) -> bool {
        self.queues[partition].entries.is_empty()
    }

    /// Adds what was read of a partition.
    pub fn add(&mut self, partition: usize, page: Page<T>) {
        let Queue { entries, newest, end } = &mut self.queues[partition];
        *end = page.end;
        for (time, entry) in page.entries {
            *newest = time.map_or(*newest, |time| time.max(*newest));
            entries.push_back((*newest, entry));
        }
    }

    /// Takes the earliest, with its partition; `None` if something that goes before it may still come, or nothing is left.
    pub fn next(&mut self) -> Option<(usize, T)> {
        let (time, partition) = self.earliest()?;
        if self.queues.iter().any(|queue| queue.may_precede(time)) {
            return None;
        }
        self.queues[partition].entries.pop_front().map(|(_, entry)| (partition, entry))
    }

    /// How long a partition's clock takes to get past the earliest; `None` if that waits for no clock.
    pub fn wait(&self) -> Option<Duration> {
        let (time, _) = self.earliest()?;
        let ends = self.queues.iter().filter(|queue| queue.may_precede(time)).map(|queue| queue.end);
        // None comes first: of such a partition it is not the clock that is missing.
        let first = ends.min()??;
        Some(Duration::from_millis(time - first + 1))
    }

    /// Whether each partition had no more when it was last read.
    pub fn is_at_end(&self) -> bool {
        self.queues.iter().all(|queue| queue.end.is_some())
    }

    /// Whether that is so, and nothing is left.
    pub fn is_done(&self) -> bool {
        self.is_at_end() && self.earliest().is_none()
    }

    fn earliest(&self) -> Option<(u64, usize)> {
        let first = |(partition, queue): (usize, &Queue<T>)| Some((queue.entries.front()?.0, partition));
        self.queues.iter().enumerate().filter_map(first).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries that are their times.
    fn page(times: &[u64], end: Option<u64>) -> Page<u64> {
        Page { entries: times.iter().map(|time| (Some(*time), *time)).collect(), end }
    }

    fn merge(pages: impl IntoIterator<Item = Page<u64>>) -> Merge<u64> {
        let pages: Vec<_> = pages.into_iter().collect();
        let mut merge = Merge::new(u16::try_from(pages.len()).expect("a few"));
        for (partition, page) in pages.into_iter().enumerate() {
            merge.add(partition, page);
        }
        merge
    }

    fn all(merge: &mut Merge<u64>) -> Vec<u64> {
        std::iter::from_fn(|| merge.next()).map(|(_, time)| time).collect()
    }

    #[test]
    fn the_earliest_comes_first_as_far_as_every_partition_was_read() {
        let mut merge = merge([page(&[1, 4, 9], Some(20)), page(&[2, 3], None), page(&[], Some(20))]);
        assert_eq!(all(&mut merge), [1, 2, 3]);
        assert!(!merge.is_at_end());
        assert_eq!(merge.wait(), None, "the second is to be read");
        assert_eq!([0, 1, 2].map(|partition| merge.is_empty(partition)), [false, true, true]);
        merge.add(1, page(&[5], Some(20)));
        assert_eq!(all(&mut merge), [4, 5, 9]);
        assert!(merge.is_done());
    }

    #[test]
    fn what_a_clock_has_not_passed_waits_for_it() {
        let mut merge = merge([page(&[10, 12], Some(13)), page(&[], Some(11))]);
        assert_eq!(all(&mut merge), [10], "at 11 the second may still get one, that goes before 12");
        assert_eq!(merge.wait(), Some(Duration::from_millis(2)));
        assert!(merge.is_at_end() && !merge.is_done());
        merge.add(1, page(&[11], Some(13)));
        assert_eq!(all(&mut merge), [11, 12]);
        assert_eq!(merge.wait(), None);
    }

    #[test]
    fn of_those_stored_at_once_the_first_partition_goes_first() {
        let mut merge = merge([page(&[7, 7], Some(7)), page(&[7], Some(8)), page(&[8], None)]);
        let taken: Vec<_> = std::iter::from_fn(|| merge.next()).collect();
        assert_eq!(taken, [(0, 7), (0, 7)], "the first may get another one at 7");
        assert_eq!(merge.wait(), Some(Duration::from_millis(1)));
        merge.add(0, page(&[7], Some(9)));
        assert_eq!(merge.next(), Some((0, 7)));
        assert_eq!(merge.next(), Some((1, 7)));
        assert_eq!(merge.next(), None, "the second may get another one at 8");
    }

    #[test]
    fn a_clock_that_was_set_back_holds_nothing_up() {
        let mut merge = merge([page(&[5_000], Some(3_000)), page(&[], Some(3_999)), page(&[], Some(3_999))]);
        assert_eq!(all(&mut merge), [5_000]);
        merge.add(0, page(&[4_999, 3_100], Some(3_200)));
        merge.add(1, page(&[4_500], Some(3_200)));
        assert_eq!(all(&mut merge), [0; 0], "the third may still get an earlier one");
        merge.add(2, page(&[], Some(3_200)));
        assert_eq!(all(&mut merge), [4_500, 4_999, 3_100], "the order of a partition stays");
    }

    #[test]
    fn what_was_removed_stays_where_it_stood() {
        let mut merge = Merge::new(2);
        merge.add(0, Page { entries: vec![(None, "a"), (Some(5), "b"), (None, "c")], end: Some(9) });
        merge.add(1, Page { entries: vec![(Some(4), "d"), (Some(6), "e")], end: Some(9) });
        let taken: Vec<_> = std::iter::from_fn(|| merge.next()).map(|(_, entry)| entry).collect();
        assert_eq!(taken, ["a", "d", "b", "c", "e"]);
    }
}

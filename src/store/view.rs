//! Which server has which slots: what servers say of it, and what is believed.
//!
//! A server that was away tells of a cluster as it was. So each says with which config epoch an owner has its slots, and of
//! two owners the one with the higher epoch is believed, as servers do among themselves.

use std::{
    collections::BTreeSet,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use redis::ConnectionAddr;

/// Slots of a cluster.
pub(super) const SLOTS: u16 = 16_384;
/// For how long a view is kept that whoever answers does not confirm. Twice the `cluster-node-timeout` that Redis has unless
/// told otherwise: after that a server that is cut off from the others says so, and is not heard. What is left are epochs
/// that began anew.
const LAPSE: Duration = Duration::from_secs(30);

/// That a server has some slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub slots: RangeInclusive<u16>,
    pub owner: ConnectionAddr,
    /// The owner's config epoch.
    pub epoch: u64,
    /// That the owner with this epoch has said MOVED, and this is where to: the epoch of this one is higher, and not known.
    pub moved: bool,
}

impl Claim {
    /// Of two claims to a slot the one that ranks higher holds.
    fn rank(&self) -> (u64, bool) {
        (self.epoch, self.moved)
    }
}

/// Which server is the primary of which slots.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    /// In the order of their slots, of which no two have the same.
    claims: Vec<Claim>,
    /// Who else may be asked.
    others: Vec<ConnectionAddr>,
    /// Since when those that answer do not confirm all of it.
    unconfirmed: Option<Instant>,
}

impl View {
    /// One primary of everything.
    pub(super) fn of_one(owner: ConnectionAddr) -> Self {
        Self::new(&[Claim { slots: 0..=SLOTS - 1, owner, epoch: 0, moved: false }], Vec::new())
    }

    /// As one server says.
    pub(super) fn new(claims: &[Claim], others: Vec<ConnectionAddr>) -> Self {
        Self { claims: join(&[claims], |slot| find(claims, slot)), others, unconfirmed: None }
    }

    /// The primaries, in an order of its own, so that the same view is always the same.
    pub(super) fn primaries(&self) -> Vec<ConnectionAddr> {
        let mut primaries: Vec<_> = self.claims.iter().map(|claim| claim.owner.clone()).collect();
        sort(&mut primaries);
        primaries
    }

    /// All servers that may be asked.
    pub(super) fn servers(&self) -> Vec<ConnectionAddr> {
        let mut servers = self.primaries();
        servers.extend(self.others.iter().cloned());
        sort(&mut servers);
        servers
    }

    /// Who has a slot; `None` where nobody has.
    pub(super) fn owner(&self, slot: u16) -> Option<&ConnectionAddr> {
        find(&self.claims, slot).map(|claim| &claim.owner)
    }

    /// Whether those that answer confirm all of it.
    pub(super) fn is_confirmed(&self) -> bool {
        self.unconfirmed.is_none()
    }

    /// What is believed after some servers said this, at the same time. An owner gives way to one with the same epoch that
    /// is said in its place, or a higher one; to one with a lower epoch, or to none, only when those that answer have not
    /// confirmed the view for as long as `LAPSE`.
    pub(super) fn after(&self, said: &[Self], now: Instant) -> Self {
        let said_of = |slot| {
            let held = self.owner(slot);
            let claims = said.iter().filter_map(|view| find(&view.claims, slot));
            claims.max_by_key(|claim| (claim.rank(), held == Some(&claim.owner)))
        };
        let kept = |slot| {
            let held = find(&self.claims, slot);
            held.filter(|held| said_of(slot).is_none_or(|said| said.rank() < held.rank()))
        };
        let claims: Vec<&[Claim]> = said.iter().chain([self]).map(|view| view.claims.as_slice()).collect();
        let unconfirmed = cuts(&claims).into_iter().any(|slot| kept(slot).is_some());
        let unconfirmed = unconfirmed.then(|| self.unconfirmed.unwrap_or(now));
        let has_lapsed = unconfirmed.is_some_and(|since| now.duration_since(since) >= LAPSE);
        let claims = join(&claims, |slot| kept(slot).filter(|_| !has_lapsed).or_else(|| said_of(slot)));
        let mut others: Vec<_> = said.iter().flat_map(|view| view.others.iter().cloned()).collect();
        sort(&mut others);
        Self { claims, others, unconfirmed: unconfirmed.filter(|_| !has_lapsed) }
    }

    /// What is believed after a server said that a slot is with another one. `None`, so nothing new, where somebody else
    /// has it than that server: it speaks of what was before.
    pub(super) fn moved(&self, slot: u16, by: &ConnectionAddr, to: ConnectionAddr) -> Option<Self> {
        let held = find(&self.claims, slot);
        if held.is_some_and(|held| held.owner != *by) {
            return None;
        }
        let word = [Claim { slots: slot..=slot, owner: to, epoch: held.map_or(0, |held| held.epoch), moved: true }];
        let claims = join(&[&self.claims, &word], |at| find(&word, at).or_else(|| find(&self.claims, at)));
        Some(Self { claims, ..self.clone() })
    }

    /// Whether another view has the same owners.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        self.claims == other.claims
    }
}

fn find(claims: &[Claim], slot: u16) -> Option<&Claim> {
    claims.iter().find(|claim| claim.slots.contains(&slot))
}

/// Where claims begin, and what comes behind them.
fn cuts(claims: &[&[Claim]]) -> BTreeSet<u16> {
    let claims = claims.iter().copied().flatten();
    claims.flat_map(|claim| [*claim.slots.start(), claim.slots.end() + 1]).filter(|slot| *slot < SLOTS).collect()
}

/// New claims: for the slots between two cuts that which is chosen for the first of them.
fn join<'a>(claims: &[&[Claim]], choose: impl Fn(u16) -> Option<&'a Claim>) -> Vec<Claim> {
    let cuts = cuts(claims);
    let ends = cuts.iter().skip(1).copied().chain([SLOTS]).map(|next| next - 1);
    let mut joined: Vec<Claim> = Vec::new();
    for (first, last) in cuts.iter().copied().zip(ends) {
        let Some(claim) = choose(first) else { continue };
        match joined.last_mut() {
            Some(before)
                if *before.slots.end() + 1 == first
                    && (&before.owner, before.rank()) == (&claim.owner, claim.rank()) =>
            {
                before.slots = *before.slots.start()..=last;
            }
            _ => joined.push(Claim { slots: first..=last, ..claim.clone() }),
        }
    }
    joined
}

fn sort(servers: &mut Vec<ConnectionAddr>) {
    servers.sort_by_key(ToString::to_string);
    servers.dedup();
}

#[cfg(test)]
mod tests {
    use std::slice::from_ref;

    use super::*;

    fn at(port: u16) -> ConnectionAddr {
        ConnectionAddr::Tcp("a".to_owned(), port)
    }

    /// Slots, the owner's port, its epoch.
    fn view(claims: &[(RangeInclusive<u16>, u16, u64)]) -> View {
        let claim = |(slots, port, epoch): &(RangeInclusive<u16>, u16, u64)| Claim {
            slots: slots.clone(),
            owner: at(*port),
            epoch: *epoch,
            moved: false,
        };
        View::new(&claims.iter().map(claim).collect::<Vec<_>>(), Vec::new())
    }

    /// The ports of those that have these slots; 0 where nobody has.
    fn owners<const N: usize>(view: &View, slots: [u16; N]) -> [u16; N] {
        slots.map(|slot| match view.owner(slot) {
            Some(ConnectionAddr::Tcp(_, port)) => *port,
            _ => 0,
        })
    }

    const LAST: u16 = SLOTS - 1;

    #[test]
    fn neighbours_of_one_owner_are_one_claim() {
        let joined =
            view(&[(10..=LAST, 1, 1), (0..=4, 1, 1), (5..=9, 2, 2)]).moved(7, &at(2), at(1)).expect("believed");
        let slots: Vec<_> = joined.claims.iter().map(|claim| claim.slots.clone()).collect();
        assert_eq!(slots, [0..=4, 5..=6, 7..=7, 8..=9, 10..=LAST], "at a MOVED its rank is another");
        let later = joined.after(&[view(&[(0..=LAST, 1, 3)])], Instant::now());
        assert_eq!(later.claims, view(&[(0..=LAST, 1, 3)]).claims);
        assert_eq!((later.primaries(), later.is_confirmed()), (vec![at(1)], true));
    }

    #[test]
    fn an_old_view_changes_nothing() {
        let now = Instant::now();
        let old = view(&[(0..=9, 1, 1), (10..=LAST, 2, 2)]);
        let new = view(&[(0..=9, 3, 4), (10..=LAST, 2, 2)]);
        let view = View::default().after(from_ref(&old), now).after(from_ref(&new), now);
        assert_eq!((owners(&view, [0, 9, 10, LAST]), view.is_confirmed()), ([3, 3, 2, 2], true));
        let told = view.after(from_ref(&old), now);
        assert_eq!((owners(&told, [0, 9, 10, LAST]), told.is_confirmed()), ([3, 3, 2, 2], false));
        // Nor beside the new one, in whatever order.
        for said in [[old.clone(), new.clone()], [new, old]] {
            let told = told.after(&said, now + LAPSE);
            assert_eq!((owners(&told, [0, 9, 10, LAST]), told.is_confirmed()), ([3, 3, 2, 2], true));
            assert_eq!(owners(&View::default().after(&said, now), [0, 9, 10, LAST]), [3, 3, 2, 2]);
        }
    }

    #[test]
    fn slots_move_there_and_back() {
        let now = Instant::now();
        let views = [
            view(&[(0..=9, 1, 1), (10..=LAST, 2, 2)]),
            view(&[(0..=4, 1, 1), (5..=LAST, 2, 3)]),
            view(&[(0..=9, 1, 4), (10..=LAST, 2, 3)]),
        ];
        let after = |order: &[usize]| {
            let all = order.iter().fold(View::default(), |view, at| view.after(from_ref(&views[*at]), now));
            owners(&all, [0, 4, 5, 9, 10, LAST])
        };
        assert_eq!(after(&[0, 1]), [1, 1, 2, 2, 2, 2]);
        assert_eq!(after(&[1, 0]), [1, 1, 2, 2, 2, 2]);
        for order in [[0, 1, 2], [0, 2, 1], [1, 2, 0], [2, 1, 0]] {
            assert_eq!(after(&order), [1, 1, 1, 1, 2, 2], "{order:?}");
        }
    }

    #[test]
    fn what_nobody_confirms_lapses() {
        let now = Instant::now();
        let (before, anew) = (view(&[(0..=9, 1, 7), (10..=LAST, 2, 8)]), view(&[(0..=9, 3, 1), (10..=19, 2, 2)]));
        let said = [anew.clone()];
        let view = before.after(&said, now).after(&said, now + LAPSE / 2);
        assert_eq!((owners(&view, [0, 10, 20]), view.is_confirmed()), ([1, 2, 2], false));
        let given_up = view.after(&said, now + LAPSE);
        assert_eq!((owners(&given_up, [0, 10, 20]), given_up.is_confirmed()), ([3, 2, 0], true));
        assert_eq!(given_up.after(from_ref(&before), now + LAPSE).claims, before.claims, "a higher epoch");
        // Unless it is confirmed meanwhile.
        let confirmed = view.after(&[before.clone(), anew], now + LAPSE / 2);
        assert_eq!(confirmed.after(&said, now + LAPSE).claims, before.claims);
    }

    #[test]
    fn with_the_same_epoch_who_has_a_slot_keeps_it_while_somebody_says_so() {
        let now = Instant::now();
        let (one, other) = (view(&[(0..=LAST, 1, 0)]), view(&[(0..=LAST, 2, 0)]));
        for said in [[one.clone(), other.clone()], [other.clone(), one.clone()]] {
            assert_eq!(owners(&one.after(&said, now), [0]), [1]);
            assert_eq!(owners(&other.after(&said, now), [0]), [2]);
        }
        // A server that has another address now.
        assert_eq!(owners(&one.after(&[other], now), [0]), [2]);
    }

    #[test]
    fn a_move_is_believed_until_a_newer_view_knows_better() {
        let now = Instant::now();
        let before = view(&[(0..=9, 1, 1), (10..=LAST, 2, 2)]);
        let moved = before.moved(5, &at(1), at(3)).expect("believed");
        assert_eq!(owners(&moved, [4, 5, 6, 10]), [1, 3, 1, 2]);
        assert_eq!(moved.primaries(), [at(1), at(2), at(3)]);
        let told = moved.after(from_ref(&before), now);
        assert_eq!((owners(&told, [4, 5, 6, 10]), told.is_confirmed()), ([1, 3, 1, 2], false));
        let newer = view(&[(0..=4, 1, 1), (5..=5, 3, 3), (6..=9, 1, 1), (10..=LAST, 2, 2)]);
        assert_eq!(told.after(from_ref(&newer), now).claims, newer.claims);
        let back = view(&[(0..=9, 1, 4), (10..=LAST, 2, 2)]);
        assert_eq!(told.after(from_ref(&back), now).claims, back.claims);
        // Back by a MOVED: its rank does not grow, or no view would be believed any more.
        let returned = moved.moved(5, &at(3), at(1)).expect("believed");
        assert_eq!(returned.after(from_ref(&newer), now).claims, newer.claims);
        // All slots of a server that is none any more.
        let all = (0..=9).fold(before.clone(), |view, slot| view.moved(slot, &at(1), at(2)).expect("believed"));
        assert_eq!((all.primaries(), owners(&all, [0, 9])), (vec![at(2)], [2, 2]));
    }

    #[test]
    fn a_server_that_does_not_have_a_slot_moves_nothing() {
        let view = view(&[(0..=9, 1, 1)]);
        assert!(view.moved(5, &at(2), at(3)).is_none());
        let known = view.moved(10, &at(1), at(3)).expect("nobody has it");
        assert_eq!(owners(&known, [9, 10, 11]), [1, 3, 0]);
    }
}

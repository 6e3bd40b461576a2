//! Which host next, and when again: pure decisions, without clocks and sockets.
//!
//! One host is used as long as it works, since an insert that is repeated there is recognised soonest. One that fails
//! rests, longer each time, and the next in order takes its place; when all of them rest, the one that may wake first.

use std::time::Duration;

/// After the first failure a host, or a statement, waits about this long, then twice as long each time…
pub const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// …up to this.
pub const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// How long to wait after so many failures in a row: doubling, and a random half of it off, so that many writers that
/// failed together do not come again together. `random` is any number.
#[must_use]
pub fn backoff(failures: u32, random: u64) -> Duration {
    let full = BACKOFF_MIN.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1)).unwrap_or(u32::MAX));
    let full = full.min(BACKOFF_MAX);
    let half = full / 2;
    let nanos = u64::try_from(half.as_nanos()).unwrap_or(u64::MAX).max(1);
    half + Duration::from_nanos(random % nanos)
}

#[derive(Clone, Copy, Debug, Default)]
struct Host {
    failures: u32,
    /// Since a start of the caller's choice.
    rests_until: Duration,
}

/// The hosts of one cluster. Times are since a start of the caller's choice.
#[derive(Clone, Debug)]
pub struct Hosts {
    hosts: Vec<Host>,
    current: usize,
}

impl Hosts {
    /// So many hosts, at least one.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self { hosts: vec![Host::default(); count.max(1)], current: 0 }
    }

    /// The host to use now, and how long to wait before.
    #[must_use]
    pub fn pick(&self, now: Duration) -> (usize, Duration) {
        let count = self.hosts.len();
        let in_order = || (0..count).map(|step| (self.current + step) % count);
        let awake = in_order().find(|index| self.hosts[*index].rests_until <= now);
        let index = awake.or_else(|| in_order().min_by_key(|index| self.hosts[*index].rests_until));
        let index = index.unwrap_or(self.current);
        (index, self.hosts[index].rests_until.saturating_sub(now))
    }

    /// A host did what it was asked.
    pub fn succeeded(&mut self, index: usize) {
        self.hosts[index] = Host::default();
        self.current = index;
    }

    /// A host failed in a way that may pass.
    pub fn failed(&mut self, index: usize, now: Duration, random: u64) {
        let host = &mut self.hosts[index];
        // Several statements at once fail together; that is one failure of the host.
        if host.rests_until > now {
            return;
        }
        host.failures = host.failures.saturating_add(1);
        host.rests_until = now + backoff(host.failures, random);
        if self.current == index {
            self.current = (index + 1) % self.hosts.len();
        }
    }

    /// How many hosts rest.
    #[must_use]
    pub fn resting(&self, now: Duration) -> usize {
        self.hosts.iter().filter(|host| host.rests_until > now).count()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn one_that_fails_is_replaced_and_comes_back_when_all_others_fail() {
        let mut hosts = Hosts::new(3);
        assert_eq!(hosts.pick(MS(0)), (0, MS(0)));
        hosts.failed(0, MS(0), 0);
        assert_eq!(hosts.pick(MS(0)), (1, MS(0)), "the next in order");
        hosts.succeeded(1);
        assert_eq!(hosts.pick(MS(60_000)), (1, MS(0)), "one that works stays");
        hosts.failed(1, MS(60_000), 0);
        hosts.failed(2, MS(60_001), 0);
        assert_eq!(hosts.pick(MS(60_001)), (0, MS(0)), "the first has rested");
        hosts.failed(0, MS(60_001), 0);
        // All rest: the second the shortest, and the first twice as long, for it failed twice.
        assert_eq!(hosts.pick(MS(60_010)), (1, MS(40)));
        assert_eq!(hosts.resting(MS(60_010)), 3);
        hosts.failed(1, MS(60_020), 0);
        assert_eq!(hosts.pick(MS(60_050)), (1, MS(0)), "failures together are one");
    }

    proptest! {
        #[test]
        fn backoff_grows_is_bounded_and_spreads(failures in 1..200_u32, random: u64) {
            let wait = backoff(failures, random);
            prop_assert!(wait >= BACKOFF_MIN / 2 && wait <= BACKOFF_MAX);
            prop_assert!(backoff(failures, 0) <= backoff(failures + 1, 0));
            prop_assert_ne!(backoff(failures, 0), backoff(failures, 1));
        }

        #[test]
        fn there_is_always_a_host(count in 1..5_usize, events in prop::collection::vec((any::<bool>(), 0..500_u64), 0..50)) {
            let (mut hosts, mut now) = (Hosts::new(count), MS(0));
            for (works, passed) in events {
                now += MS(passed);
                let (index, wait) = hosts.pick(now);
                prop_assert!(index < count && wait <= BACKOFF_MAX);
                now += wait;
                if works { hosts.succeeded(index) } else { hosts.failed(index, now, passed) }
                prop_assert!(hosts.resting(now) <= count);
            }
        }
    }
}

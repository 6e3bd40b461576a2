//! Silences: matchers that keep alerts from being told for a time.
//!
//! Pure rules of what a silence is now and how it may be changed. Not here: where they are kept, and
//! how their ids are made.

use model::time::Timestamp;

use crate::labels::LabelSet;
use crate::matcher::{self, Matcher};

/// Matchers of one silence.
const MATCHERS_MAX: usize = 128;

/// Bytes of who and why.
const TEXT_BYTES_MAX: usize = 8 * 1024;

/// What a silence is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SilenceState {
    /// Its start is to come.
    Pending,
    /// It holds.
    Active,
    /// It is over.
    Expired,
}

impl SilenceState {
    /// The word of the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Expired => "expired",
        }
    }
}

/// A silence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Silence {
    /// A UUID; empty for one that is to be made.
    pub id: String,
    /// What is silenced: alerts that match all of these.
    pub matchers: Vec<Matcher>,
    /// From when.
    pub starts_at: Timestamp,
    /// Until when.
    pub ends_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// Who made it.
    pub created_by: String,
    /// Why.
    pub comment: String,
}

/// How a silence that was sent comes to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The one that is there is changed and keeps its id.
    Update(Silence),
    /// A new one is made, and the one it replaces, if there is one, ends now.
    Create {
        /// The new one, without an id.
        new: Silence,
        /// The old one, ended.
        ended: Option<Silence>,
    },
}

impl Silence {
    /// What it is at a time.
    #[must_use]
    pub fn state(&self, now: Timestamp) -> SilenceState {
        if now < self.starts_at {
            SilenceState::Pending
        } else if now < self.ends_at {
            SilenceState::Active
        } else {
            SilenceState::Expired
        }
    }

    /// Whether it silences these labels at a time.
    #[must_use]
    pub fn mutes(&self, labels: &LabelSet, now: Timestamp) -> bool {
        self.state(now) == SilenceState::Active && matcher::all_match(&self.matchers, labels)
    }

    /// Why it cannot be kept, if it cannot.
    ///
    /// # Errors
    ///
    /// Names the rule that is broken.
    pub fn check(&self, now: Timestamp) -> Result<(), String> {
        if self.starts_at >= self.ends_at {
            return Err("failed to create silence: start time must be before end time".to_owned());
        }
        if self.ends_at < now {
            return Err("failed to create silence: end time can't be in the past".to_owned());
        }
        if self.matchers.is_empty() {
            return Err("invalid silence: at least one matcher required".to_owned());
        }
        if self.matchers.len() > MATCHERS_MAX {
            return Err(format!("invalid silence: at most {MATCHERS_MAX} matchers"));
        }
        if self.created_by.len() + self.comment.len() > TEXT_BYTES_MAX {
            return Err(format!("invalid silence: createdBy and comment have at most {TEXT_BYTES_MAX} bytes"));
        }
        // One that matches alerts without any of its labels would silence everything.
        if self.matchers.iter().all(|matcher| matcher.accepts("")) {
            return Err("invalid silence: at least one matcher must not match the empty string".to_owned());
        }
        Ok(())
    }

    /// The silence ended now; one that has not begun never begins.
    #[must_use]
    pub fn expired(&self, now: Timestamp) -> Self {
        let mut ended = self.clone();
        ended.starts_at = ended.starts_at.min(now);
        ended.ends_at = now;
        ended.updated_at = now;
        ended
    }

    /// How `sent` changes the silence of its id that is there, or makes a new one. A silence's meaning
    /// does not change under its id: other matchers, or another start of one that has begun, are a new
    /// silence.
    #[must_use]
    pub fn change(present: Option<&Self>, mut sent: Self, now: Timestamp) -> Change {
        sent.updated_at = now;
        if let Some(present) = present {
            let same_matchers = {
                let sorted = |silence: &Self| {
                    let mut matchers = silence.matchers.clone();
                    matcher::sort(&mut matchers);
                    matchers
                };
                sorted(present) == sorted(&sent)
            };
            let second = Timestamp::NANOS_PER_SECOND;
            let same_time = match present.state(now) {
                SilenceState::Active => {
                    present.starts_at.0.div_euclid(second) == sent.starts_at.0.div_euclid(second) && sent.ends_at >= now
                }
                SilenceState::Pending => sent.starts_at >= now,
                SilenceState::Expired => false,
            };
            if same_matchers && same_time {
                if present.state(now) == SilenceState::Active {
                    sent.starts_at = present.starts_at;
                }
                return Change::Update(sent);
            }
        }
        let ended = present.filter(|silence| silence.state(now) != SilenceState::Expired).map(|s| s.expired(now));
        sent.id.clear();
        sent.starts_at = sent.starts_at.max(now);
        Change::Create { new: sent, ended }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp(seconds * Timestamp::NANOS_PER_SECOND)
    }

    fn silence(matchers: &str, starts: i64, ends: i64) -> Silence {
        Silence {
            id: "id".to_owned(),
            matchers: matcher::parse_all(matchers).unwrap(),
            starts_at: at(starts),
            ends_at: at(ends),
            updated_at: at(0),
            created_by: "me".to_owned(),
            comment: "why".to_owned(),
        }
    }

    #[test]
    fn a_silence_is_pending_then_active_then_expired() {
        let silence = silence("a=b", 10, 20);
        let labels: LabelSet = [("a", "b")].into_iter().collect();
        for (now, state, mutes) in [
            (9, SilenceState::Pending, false),
            (10, SilenceState::Active, true),
            (19, SilenceState::Active, true),
            (20, SilenceState::Expired, false),
        ] {
            assert_eq!(silence.state(at(now)), state, "{now}");
            assert_eq!(silence.mutes(&labels, at(now)), mutes, "{now}");
        }
        assert!(!silence.mutes(&LabelSet::default(), at(15)));
    }

    #[test]
    fn a_silence_of_everything_is_refused() {
        for (matchers, starts, ends, good) in [
            ("a=b", 10, 20, true),
            ("a=b,c=~\".*\"", 10, 20, true),
            ("", 10, 20, false),
            ("a=", 10, 20, false),
            ("a=~\".*\"", 10, 20, false),
            ("a!=b", 10, 20, false),
            ("a=b", 20, 20, false),
            ("a=b", 1, 2, false),
        ] {
            assert_eq!(silence(matchers, starts, ends).check(at(5)).is_ok(), good, "{matchers} {starts} {ends}");
        }
    }

    #[test]
    fn the_meaning_of_a_silence_does_not_change_under_its_id() {
        // The one that is there, the one that is sent, at second 15: whether the id stays.
        let rows = [
            (("a=b", 10, 20), ("a=b", 10, 30), true),
            (("a=b,c=d", 10, 20), ("c=d,a=b", 10, 16), true),
            (("a=b", 10, 20), ("a=c", 10, 20), false),
            (("a=b", 10, 20), ("a=b", 12, 20), false),
            (("a=b", 18, 20), ("a=b", 19, 30), true),
            (("a=b", 18, 20), ("a=b", 14, 30), false),
            (("a=b", 1, 2), ("a=b", 1, 30), false),
        ];
        for (present, sent, stays) in rows {
            let present = silence(present.0, present.1, present.2);
            let sent = silence(sent.0, sent.1, sent.2);
            match Silence::change(Some(&present), sent.clone(), at(15)) {
                Change::Update(updated) => {
                    assert!(stays, "{present:?} {sent:?}");
                    assert_eq!(updated.id, "id");
                }
                Change::Create { new, ended } => {
                    assert!(!stays, "{present:?} {sent:?}");
                    assert!(new.id.is_empty() && new.starts_at >= at(15));
                    assert_eq!(ended.is_some(), present.state(at(15)) != SilenceState::Expired);
                    assert!(ended.is_none_or(|ended| ended.state(at(15)) == SilenceState::Expired));
                }
            }
        }
    }
}

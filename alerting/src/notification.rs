//! A message about a group of alerts, before it has the form of any channel.
//!
//! It is what the outbox keeps, so its JSON is a stored format: fields are added, never changed (I12).
//! Not here: templates and payloads.

use model::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::alert::Alert;
use crate::labels::LabelSet;

/// Whether something fires or is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It fires.
    Firing,
    /// It is over.
    Resolved,
}

impl Status {
    /// The word of payloads and templates.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Firing => "firing",
            Self::Resolved => "resolved",
        }
    }
}

/// Why a message is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Nothing was firing when the receiver was last told.
    First,
    /// Alerts fire that the receiver does not know.
    NewAlerts,
    /// Everything the receiver knows of is over.
    AllResolved,
    /// Some of what the receiver knows of is over.
    NewResolved,
    /// Nothing changed for the repeat interval.
    Repeat,
    /// The time of a digest has come.
    Digest,
}

impl Reason {
    /// The word stored and shown.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::NewAlerts => "new_alerts",
            Self::AllResolved => "all_resolved",
            Self::NewResolved => "new_resolved",
            Self::Repeat => "repeat",
            Self::Digest => "digest",
        }
    }
}

/// An alert as it is told: its end only if it is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToldAlert {
    /// Whether it fires.
    pub status: Status,
    /// What it is about.
    pub labels: LabelSet,
    /// What is said about it.
    pub annotations: LabelSet,
    /// Since when, nanoseconds since the epoch.
    pub starts_at: i64,
    /// When it ended, nanoseconds since the epoch.
    pub ends_at: Option<i64>,
    /// Where it comes from.
    pub generator_url: String,
}

impl ToldAlert {
    /// The alert as it is at a time.
    #[must_use]
    pub fn new(alert: &Alert, now: Timestamp) -> Self {
        let resolved = alert.is_resolved(now);
        Self {
            status: if resolved { Status::Resolved } else { Status::Firing },
            labels: alert.labels.clone(),
            annotations: alert.annotations.clone(),
            starts_at: alert.starts_at.0,
            ends_at: resolved.then_some(alert.ends_at.0),
            generator_url: alert.generator_url.clone(),
        }
    }
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notification {
    /// Names this message for ever: the same in every attempt to send it (I7).
    pub key: String,
    /// `RECEIVER/KIND/NUMBER`.
    pub channel: String,
    /// The receiver's name.
    pub receiver: String,
    /// The group's name: the route's matchers and the group's labels.
    pub group_key: String,
    /// The labels all of the group's alerts share by definition.
    pub group_labels: LabelSet,
    /// The alerts, in the order they are told. Not empty.
    pub alerts: Vec<ToldAlert>,
    /// Why it is sent.
    pub reason: Reason,
    /// Alerts that are not among them, and only counted.
    #[serde(default)]
    pub left_out: u64,
    /// When it was decided, nanoseconds since the epoch.
    pub at: i64,
}

impl Notification {
    /// Firing as long as one of the alerts is.
    #[must_use]
    pub fn status(&self) -> Status {
        let firing = self.alerts.iter().any(|alert| alert.status == Status::Firing);
        if firing { Status::Firing } else { Status::Resolved }
    }

    /// The labels that all of the alerts have.
    #[must_use]
    pub fn common_labels(&self) -> LabelSet {
        LabelSet::common(self.alerts.iter().map(|alert| &alert.labels))
    }

    /// The annotations that all of the alerts have.
    #[must_use]
    pub fn common_annotations(&self) -> LabelSet {
        LabelSet::common(self.alerts.iter().map(|alert| &alert.annotations))
    }
}

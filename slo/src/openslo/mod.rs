//! OpenSLO v1: documents of every kind, read with every error at once, and the objectives they make.
//!
//! Reading resolves every reference, so an [`Slo`] stands on its own. What OpenSLO cannot say is said
//! in annotations under `godseye/`, which other tools pass over. Not here: what an SLI's source means
//! ([`crate::sli`]), and evaluating anything.

mod read;
#[cfg(test)]
mod tests;

use crate::sli::Indicator;
use crate::window::Window;

pub use read::read;

/// A part of a whole, in billionths: targets are exact, not floating (I9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Share(pub u32);

impl Share {
    /// The whole.
    pub const WHOLE: u64 = 1_000_000_000;

    /// As a ratio of 0 to 1, for display.
    #[must_use]
    pub fn ratio(self) -> f64 {
        f64::from(self.0) / 1e9
    }

    /// What is left of the whole: of a target, the error budget.
    #[must_use]
    pub fn rest(self) -> u64 {
        Self::WHOLE - u64::from(self.0)
    }
}

/// How a budget is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Good events of all events.
    Occurrences,
    /// Good slices of all slices; a slice is good when enough of its events are.
    Timeslices,
    /// The average of the slices' ratios.
    RatioTimeslices,
}

/// A slice of time that is judged as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Its length in milliseconds.
    pub width_ms: i64,
    /// The share of good events that makes it good. Whole for [`Method::RatioTimeslices`], which does
    /// not use it.
    pub target: Share,
}

/// One objective of an SLO.
#[derive(Clone, Debug, PartialEq)]
pub struct Objective {
    /// Its display name; its number from 1 when it has none.
    pub name: String,
    /// How much must be good.
    pub target: Share,
    /// What is counted.
    pub indicator: Indicator,
    /// The slices, unless the method is [`Method::Occurrences`].
    pub slice: Option<Slice>,
    /// Its weight in a composite SLO, in thousandths; 1000 by default.
    pub weight_milli: u64,
}

/// Where an alert policy wants its alerts to go; a routing label for the alerting part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotificationTarget {
    /// The name of the document.
    pub name: String,
    /// What it is, such as `slack`.
    pub target: String,
    /// What it is for.
    pub description: String,
}

/// When to alert about an SLO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// Its name.
    pub name: String,
    /// The severity it has.
    pub severity: String,
    /// The burn rate that has to be exceeded, in thousandths.
    pub threshold_milli: u64,
    /// Whether the very threshold is enough.
    pub or_equal: bool,
    /// The window over which it is, in milliseconds.
    pub long_ms: i64,
    /// The extension `godseye/short-window`: a second window in which it must be exceeded, too.
    pub short_ms: Option<i64>,
    /// For how long it must be so, in milliseconds.
    pub after_ms: i64,
    /// The extension `godseye/min-bad-events`: how many bad events in the window are worth an alert.
    pub min_bad_events: Option<u64>,
}

/// An alert policy with its one condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// Its display name, else its name.
    pub title: String,
    /// Alert when the condition holds.
    pub when_breaching: bool,
    /// Tell when it no longer does.
    pub when_resolved: bool,
    /// Alert when there is no data.
    pub when_no_data: bool,
    /// The condition.
    pub condition: Condition,
    /// Where to.
    pub targets: Vec<NotificationTarget>,
}

/// Which alerts an SLO has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Alerts {
    /// The SRE Workbook's burn-rate table, as configured: SLOs without policies of their own.
    Table,
    /// Those of its policies.
    Policies(Vec<Policy>),
    /// None, by `godseye/alerts: none`.
    None,
}

/// A service level objective with everything it refers to.
#[derive(Clone, Debug, PartialEq)]
pub struct Slo {
    /// Its name.
    pub name: String,
    /// Its display name, else its name.
    pub title: String,
    /// What it is about.
    pub description: String,
    /// The service it belongs to.
    pub service: String,
    /// Labels; a label with several values has several entries.
    pub labels: Vec<(String, String)>,
    /// Annotations.
    pub annotations: Vec<(String, String)>,
    /// The period of the budget.
    pub window: Window,
    /// How the budget is counted.
    pub method: Method,
    /// The objectives, at least one.
    pub objectives: Vec<Objective>,
    /// Whether each objective has an indicator of its own, and all together are one budget.
    pub composite: bool,
    /// The alerts.
    pub alerts: Alerts,
    /// Where it is defined, as `file:line`.
    pub defined_at: String,
}

/// A service that SLOs belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// Its display name, else its name.
    pub title: String,
    /// What it does.
    pub description: String,
    /// Labels.
    pub labels: Vec<(String, String)>,
    /// Annotations.
    pub annotations: Vec<(String, String)>,
}

/// Everything that was read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Documents {
    /// The SLOs, by name.
    pub slos: Vec<Slo>,
    /// The services, by name.
    pub services: Vec<Service>,
    /// The notification targets, by name.
    pub targets: Vec<NotificationTarget>,
}

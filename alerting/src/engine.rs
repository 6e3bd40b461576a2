//! The state of alerting and everything that changes it, one step at a time.
//!
//! An engine is what the database holds, in memory. Each call is one step: it decides (by the pure
//! parts), commits what it decided in one transaction, and only then is it true. If the commit fails the
//! state is read back, so memory never runs ahead of the disk. Every call takes `now` (I5). Not here:
//! threads, clocks and sending (`service.rs`).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use model::time::Timestamp;
use sha2::{Digest as _, Sha256};

use crate::alert::{Alert, PostedAlert};
use crate::config::{Config, Integration};
use crate::digest::{self, Collected, DailyTime};
use crate::dispatch::{self, ChannelState, Group, LogEntry, Member};
use crate::error::AlertingError;
use crate::inhibition::Inhibitor;
use crate::instant::nanos;
use crate::labels::{ALERT_NAME, Fingerprint, LabelSet};
use crate::matcher::{self, Matcher};
use crate::notification::{Notification, Reason};
use crate::notify::channel_name;
use crate::outbox::{self, AfterFailure, SendFailure};
use crate::repository::{Changes, Delivery, DigestRow, GroupRow, HistoryEvent, OutboxCounts, OutboxRow, Repository};
use crate::routing::Tree;
use crate::silence::{Change, Silence, SilenceState};

const SECOND: i64 = Timestamp::NANOS_PER_SECOND;

/// How often the engine notes that it runs, and so the error of the time it thinks it was down.
pub const ALIVE_INTERVAL_NANOS: i64 = 10 * SECOND;

/// A step that comes so much later than the one before, or at all earlier by more than a second, means
/// that the process stood still or the clock was set.
const JUMP_MIN_NANOS: i64 = 60 * SECOND;

/// An end to come is written only when it moved so far: clients send every alert every minute, and most of
/// that changes nothing else. What is read back from the disk lasts so much longer.
const END_SLACK_NANOS: i64 = 150 * SECOND;

/// Alerts held. At the two kilobytes of a large one they fit into half a gigabyte.
pub const ALERTS_MAX: usize = 250_000;

/// Silences held, expired ones included.
pub const SILENCES_MAX: usize = 10_000;

/// How long what is over can still be seen: silences, history, sent messages, the log of groups that
/// are gone. Alertmanager's default.
const RETENTION_NANOS: i64 = 120 * 3_600 * SECOND;

/// How often what is older is deleted.
const CLEANING_INTERVAL_NANOS: i64 = 15 * 60 * SECOND;

/// How long the meta-alert about a dead letter lasts unless another one renews it.
const META_ALERT_NANOS: i64 = 3_600 * SECOND;

/// Groups looked at in one transaction: a commit waits for the disk, and ten thousand groups may be due
/// at once.
const GROUPS_PER_COMMIT: usize = 256;

/// The name of the alert that says a message could not be delivered.
pub const META_ALERT: &str = "GodsEyeNotificationFailed";

/// A group's identity: its node in the tree and its labels.
type GroupId = (usize, LabelSet);

/// A channel of a receiver.
#[derive(Clone, Debug)]
struct Channel {
    name: String,
    send_resolved: bool,
    digest: Option<DailyTime>,
}

/// An alert as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlertView {
    /// The alert.
    pub alert: Alert,
    /// The receivers of the nodes it reaches.
    pub receivers: Vec<String>,
    /// Silences that hold it.
    pub silenced_by: Vec<String>,
    /// The alert that inhibits it.
    pub inhibited_by: Vec<Fingerprint>,
    /// Time intervals of the routes that are silent now.
    pub muted_by: Vec<String>,
}

impl AlertView {
    /// Whether anything keeps it from being told.
    #[must_use]
    pub fn is_suppressed(&self) -> bool {
        !self.silenced_by.is_empty() || !self.inhibited_by.is_empty()
    }
}

/// A group as the API shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupView {
    /// The group's labels.
    pub labels: LabelSet,
    /// The receiver's name.
    pub receiver: String,
    /// Its alerts.
    pub alerts: Vec<AlertView>,
}

/// Which alerts are asked for.
#[derive(Clone, Debug)]
pub struct AlertFilter {
    /// Those that are not suppressed.
    pub active: bool,
    /// Those that are silenced.
    pub silenced: bool,
    /// Those that are inhibited.
    pub inhibited: bool,
    /// Those of routes that are silent at this time.
    pub muted: bool,
    /// Conditions on labels.
    pub matchers: Vec<Matcher>,
    /// A condition on the receivers' names, anchored.
    pub receiver: Option<regex::Regex>,
}

impl Default for AlertFilter {
    fn default() -> Self {
        Self { active: true, silenced: true, inhibited: true, muted: true, matchers: Vec::new(), receiver: None }
    }
}

/// What came of posting alerts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Posted {
    /// How many were taken.
    pub accepted: usize,
    /// Why others were not.
    pub refused: Vec<String>,
}

/// Numbers about the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Alerts held, those that are over and not yet told included.
    pub alerts: usize,
    /// Alerts that fire and of which people are told.
    pub active: usize,
    /// Alerts that fire and are silenced or inhibited.
    pub suppressed: usize,
    /// Groups.
    pub groups: usize,
    /// Silences that hold.
    pub silences_active: usize,
    /// Messages.
    pub outbox: OutboxCounts,
}

/// The state.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    tree: Tree,
    channels: HashMap<String, Vec<Channel>>,
    repository: Repository,
    alerts: HashMap<Fingerprint, Alert>,
    /// The end of each alert whose end on disk is an older one.
    stored_ends: HashMap<Fingerprint, Timestamp>,
    groups: HashMap<GroupId, Group>,
    schedule: BTreeSet<(Timestamp, usize, LabelSet)>,
    inhibitor: Inhibitor,
    silences: BTreeMap<String, Silence>,
    log: HashMap<(String, String), LogEntry>,
    /// What channels have collected for their digests.
    digests: BTreeMap<String, Collected>,
    last_step: Timestamp,
    alive_written: Timestamp,
    cleaned_at: Timestamp,
    /// Since when nothing could be committed.
    failing_since: Option<Timestamp>,
}

fn channels_of(config: &Config) -> HashMap<String, Vec<Channel>> {
    let channel = |receiver: &str, index: usize, integration: &Integration| Channel {
        name: channel_name(receiver, integration, index),
        send_resolved: integration.send_resolved(),
        digest: integration.digest().cloned(),
    };
    config
        .receivers
        .iter()
        .map(|receiver| {
            let integrations = receiver.integrations.iter().enumerate();
            (receiver.name.clone(), integrations.map(|(index, one)| channel(&receiver.name, index, one)).collect())
        })
        .collect()
}

impl Engine {
    /// Reads the state and places every alert in its groups. The time since the last process ran does
    /// not count: alerts that nobody could send again meanwhile have not timed out (I10), and groups go
    /// on where they stood.
    ///
    /// # Errors
    ///
    /// When the database cannot be read.
    pub fn open(config: Config, repository: Repository, now: Timestamp) -> Result<Self, AlertingError> {
        let mut engine = Self {
            tree: Tree::new(&config),
            channels: channels_of(&config),
            inhibitor: Inhibitor::new(&config.inhibit_rules),
            config,
            repository,
            alerts: HashMap::new(),
            stored_ends: HashMap::new(),
            groups: HashMap::new(),
            schedule: BTreeSet::new(),
            silences: BTreeMap::new(),
            log: HashMap::new(),
            digests: BTreeMap::new(),
            last_step: now,
            alive_written: now,
            cleaned_at: now,
            failing_since: None,
        };
        let alive_at = engine.reload(now)?;
        let mut changes = Changes { alive_at: Some(now), ..Changes::default() };
        if let Some(alive_at) = alive_at {
            // Ends on disk may be older than those that held by the slack, and `alive_at` by its interval.
            let down = now.0.saturating_sub(alive_at.0);
            if down > 0 {
                engine.shift_ends(alive_at, down.saturating_add(END_SLACK_NANOS), &mut changes);
            }
        }
        engine.commit(changes, now)?;
        Ok(engine)
    }

    /// Fills the memory from the database. Returns when the last process was known to run.
    fn reload(&mut self, now: Timestamp) -> Result<Option<Timestamp>, AlertingError> {
        let loaded = self.repository.load()?;
        self.inhibitor = Inhibitor::new(&self.config.inhibit_rules);
        self.alerts.clear();
        self.stored_ends.clear();
        for alert in loaded.alerts {
            let fingerprint = alert.fingerprint();
            self.inhibitor.put(fingerprint, &alert);
            self.alerts.insert(fingerprint, alert);
        }
        self.silences = loaded.silences.into_iter().map(|silence| (silence.id.clone(), silence)).collect();
        self.log = loaded.log.into_iter().map(|(group, channel, entry)| ((group, channel), entry)).collect();
        self.digests = loaded.digests;
        self.clamp_digests(now);
        let known: HashMap<(String, LabelSet), (Timestamp, bool)> =
            loaded.groups.into_iter().map(|row| ((row.route, row.labels), (row.next_flush_at, row.flushed))).collect();
        self.place_alerts(&known, now);
        Ok(loaded.alive_at)
    }

    /// Puts every alert into its groups; a group that was known keeps its place in time.
    fn place_alerts(&mut self, known: &HashMap<(String, LabelSet), (Timestamp, bool)>, now: Timestamp) {
        self.groups.clear();
        self.schedule.clear();
        for (fingerprint, alert) in &self.alerts {
            for node in self.tree.matching(&alert.labels) {
                let route = self.tree.node(node);
                let labels = route.group_labels(&alert.labels);
                let group = self.groups.entry((node, labels.clone())).or_insert_with(|| {
                    let group = Group::new(now, route.group_wait);
                    match known.get(&(route.id.clone(), labels)) {
                        Some((next_flush_at, flushed)) => {
                            // A clock that was set back must not make a group wait for ever.
                            let latest = now.plus_nanos(nanos(route.group_interval.max(route.group_wait)));
                            Group { next_flush_at: (*next_flush_at).min(latest), flushed: *flushed, ..group }
                        }
                        None => group,
                    }
                });
                group.members.insert(*fingerprint);
            }
        }
        self.schedule =
            self.groups.iter().map(|((node, labels), g)| (g.next_flush_at, *node, labels.clone())).collect();
    }

    /// Takes another configuration. Groups whose route is still there keep their place in time.
    ///
    /// # Errors
    ///
    /// When the change cannot be committed; the new configuration holds all the same.
    pub fn reconfigure(&mut self, config: Config, now: Timestamp) -> Result<(), AlertingError> {
        let known: HashMap<(String, LabelSet), (Timestamp, bool)> = self
            .groups
            .iter()
            .map(|((node, labels), group)| {
                ((self.tree.node(*node).id.clone(), labels.clone()), (group.next_flush_at, group.flushed))
            })
            .collect();
        self.tree = Tree::new(&config);
        self.channels = channels_of(&config);
        self.inhibitor = Inhibitor::new(&config.inhibit_rules);
        for (fingerprint, alert) in &self.alerts {
            self.inhibitor.put(*fingerprint, alert);
        }
        self.config = config;
        self.place_alerts(&known, now);
        let groups_gone = known
            .into_keys()
            .filter(|(route, labels)| {
                self.tree.find(route).is_none_or(|node| !self.groups.contains_key(&(node, labels.clone())))
            })
            .collect();
        let groups = self.groups.iter().map(|(id, group)| self.group_row(id, group)).collect();
        let changes = Changes { groups_gone, groups, ..Changes::default() };
        self.commit(changes, now)
    }

    /// The configuration that holds.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    fn group_row(&self, (node, labels): &GroupId, group: &Group) -> GroupRow {
        GroupRow {
            route: self.tree.node(*node).id.clone(),
            labels: labels.clone(),
            next_flush_at: group.next_flush_at,
            flushed: group.flushed,
        }
    }

    fn commit(&mut self, mut changes: Changes, now: Timestamp) -> Result<(), AlertingError> {
        if !changes.is_empty() {
            changes.alive_at = Some(now);
        }
        match self.repository.commit(&changes) {
            Ok(()) => {
                if changes.alive_at.is_some() {
                    self.alive_written = now;
                }
                Ok(())
            }
            Err(error) => {
                self.failing_since.get_or_insert(now);
                // What was decided did not happen.
                self.reload(now)?;
                self.shift_ends(now, END_SLACK_NANOS, &mut Changes::default());
                Err(error)
            }
        }
    }

    /// Moves the ends that nobody reported, of alerts that were active at `since`, by `by`.
    fn shift_ends(&mut self, since: Timestamp, by: i64, changes: &mut Changes) {
        for (fingerprint, alert) in &mut self.alerts {
            if alert.ends_unreported() && alert.ends_at.plus_nanos(END_SLACK_NANOS) > since {
                alert.ends_at = alert.ends_at.plus_nanos(by);
                self.inhibitor.put(*fingerprint, alert);
                self.stored_ends.remove(fingerprint);
                changes.alerts.push(alert.clone());
            }
        }
    }

    /// What a clock that was set, or a process that stood still, means: no alert times out for it, and
    /// groups wait as long as they would have.
    fn absorb_jump(&mut self, now: Timestamp, changes: &mut Changes) {
        let jump = now.0.saturating_sub(self.last_step.0);
        let since = self.last_step;
        self.last_step = now;
        if (-SECOND..JUMP_MIN_NANOS).contains(&jump) {
            return;
        }
        tracing::warn!(
            seconds = jump / SECOND,
            "the clock jumped or the process stood still: timeouts are moved by it"
        );
        self.shift_ends(since, jump, changes);
        if jump < 0 {
            changes.alive_at = Some(now);
            self.cleaned_at = self.cleaned_at.min(now);
            self.clamp_digests(now);
            let nodes = &self.tree;
            for ((node, labels), group) in &mut self.groups {
                let route = nodes.node(*node);
                let latest = now.plus_nanos(nanos(route.group_interval.max(route.group_wait)));
                group.next_flush_at = group.next_flush_at.plus_nanos(jump).min(latest);
                changes.groups.push(GroupRow {
                    route: route.id.clone(),
                    labels: labels.clone(),
                    next_flush_at: group.next_flush_at,
                    flushed: group.flushed,
                });
            }
            self.schedule =
                self.groups.iter().map(|((node, labels), g)| (g.next_flush_at, *node, labels.clone())).collect();
        }
    }

    /// Takes reports about alerts. Good ones are taken even if others are refused.
    ///
    /// # Errors
    ///
    /// When the change cannot be committed; nothing of it holds then.
    pub fn post_alerts(&mut self, posted: Vec<PostedAlert>, now: Timestamp) -> Result<Posted, AlertingError> {
        let mut outcome = Posted::default();
        let mut changes = Changes::default();
        self.absorb_jump(now, &mut changes);
        let resolve_timeout = self.config.global.resolve_timeout;
        for one in posted {
            let alert = match one.accept(now, resolve_timeout) {
                Ok(alert) => alert,
                Err(reason) => {
                    outcome.refused.push(reason);
                    continue;
                }
            };
            if self.alerts.len() >= ALERTS_MAX && !self.alerts.contains_key(&alert.fingerprint()) {
                outcome.refused.push(AlertingError::Full { what: "alerts", max: ALERTS_MAX }.to_string());
                continue;
            }
            self.take(alert, now, &mut changes);
            outcome.accepted += 1;
        }
        self.commit(changes, now)?;
        Ok(outcome)
    }

    fn take(&mut self, alert: Alert, now: Timestamp, changes: &mut Changes) {
        let fingerprint = alert.fingerprint();
        let before = self.alerts.get(&fingerprint);
        let after = match before {
            Some(before) => before.updated_by(alert, now),
            None => alert,
        };
        let was_firing = before.is_some_and(|before| !before.is_resolved(now));
        let is_firing = !after.is_resolved(now);
        if was_firing != is_firing {
            let event = if is_firing { HistoryEvent::Firing } else { HistoryEvent::Resolved };
            changes.history.push((now, event, after.labels.clone()));
        }
        // What a report moved is only the end to come, and not far: the disk need not know.
        let stored_end = self.stored_ends.get(&fingerprint).copied().or(before.map(|before| before.ends_at));
        let only_moved = before.is_some_and(|before| {
            let moved = Alert { ends_at: after.ends_at, updated_at: after.updated_at, ..before.clone() };
            moved == after && after.ends_unreported() && is_firing
        });
        match stored_end {
            Some(end) if only_moved && (after.ends_at.0 - end.0).abs() < END_SLACK_NANOS => {
                self.stored_ends.insert(fingerprint, end);
            }
            _ => {
                self.stored_ends.remove(&fingerprint);
                changes.alerts.push(after.clone());
            }
        }
        self.inhibitor.put(fingerprint, &after);
        for node in self.tree.matching(&after.labels) {
            let route = self.tree.node(node);
            let labels = route.group_labels(&after.labels);
            let id = (node, labels.clone());
            let is_new = !self.groups.contains_key(&id);
            let group = self.groups.entry(id).or_insert_with(|| Group::new(now, route.group_wait));
            let earlier = group.next_flush_at;
            group.join(fingerprint, after.starts_at, route.group_wait, now);
            if is_new || group.next_flush_at != earlier {
                self.schedule.remove(&(earlier, node, labels.clone()));
                self.schedule.insert((group.next_flush_at, node, labels.clone()));
                let (next_flush_at, flushed) = (group.next_flush_at, group.flushed);
                changes.groups.push(GroupRow { route: route.id.clone(), labels, next_flush_at, flushed });
            }
        }
        self.alerts.insert(fingerprint, after);
    }

    /// When the engine has something to do next: a group to look at, a digest to send, or to note that it runs.
    #[must_use]
    pub fn next_step_at(&self) -> Timestamp {
        let alive = self.alive_written.plus_nanos(ALIVE_INTERVAL_NANOS);
        let digests = self.digests.iter().map(|(channel, collected)| self.digest_due(channel, collected));
        let group = self.schedule.first().map(|(at, ..)| *at);
        digests.chain(group).min().map_or(alive, |at| at.min(alive))
    }

    /// A clock that was set back must not make a digest wait for ever.
    fn clamp_digests(&mut self, now: Timestamp) {
        for collected in self.digests.values_mut() {
            collected.since = collected.since.min(now);
        }
    }

    fn digest_due(&self, channel: &str, collected: &Collected) -> Timestamp {
        let known = self.channels.values().flatten().find(|known| known.name == channel);
        digest::due(collected, known.and_then(|known| known.digest.as_ref()))
    }

    /// Makes a message of what each channel has collected whose time has come.
    fn send_digests(&mut self, now: Timestamp) -> Result<(), AlertingError> {
        let due: Vec<String> = self
            .digests
            .iter()
            .filter(|(channel, collected)| self.digest_due(channel, collected) <= now)
            .map(|(channel, _)| channel.clone())
            .collect();
        for channel in due {
            let (receiver, alerts) = self.repository.digest(&channel)?;
            let (alerts, left_out) = digest::told(alerts);
            let group_key = format!("digest:{channel}");
            let message = Notification {
                key: message_key(&group_key, &channel, now),
                channel: channel.clone(),
                receiver,
                group_key,
                group_labels: LabelSet::default(),
                alerts,
                reason: Reason::Digest,
                left_out,
                at: now.0,
            };
            self.digests.remove(&channel);
            let changes = Changes { outbox: vec![message], digests_gone: vec![channel], ..Changes::default() };
            self.commit(changes, now)?;
        }
        Ok(())
    }

    /// Looks at every group whose time has come.
    ///
    /// # Errors
    ///
    /// When a change cannot be committed; what was committed before it holds.
    pub fn tick(&mut self, now: Timestamp) -> Result<(), AlertingError> {
        let mut changes = Changes::default();
        self.absorb_jump(now, &mut changes);
        if now.0 - self.alive_written.0 >= ALIVE_INTERVAL_NANOS {
            changes.alive_at = Some(now);
        }
        let failing_since = self.failing_since;
        if let Some(since) = failing_since {
            // Nothing ends before the disk takes writes again, and the time in which it took none, and no
            // report either, does not count.
            self.commit(Changes { alive_at: Some(now), ..Changes::default() }, now)?;
            self.shift_ends(since, now.0.saturating_sub(since.0).max(0), &mut changes);
        }
        let mut looked_at = 0;
        while let Some((at, node, labels)) = self.schedule.first().cloned() {
            if at > now {
                break;
            }
            self.flush(&(node, labels), now, &mut changes);
            looked_at += 1;
            if looked_at % GROUPS_PER_COMMIT == 0 {
                self.commit(std::mem::take(&mut changes), now)?;
            }
        }
        self.commit(changes, now)?;
        self.send_digests(now)?;
        if failing_since.is_some() {
            self.failing_since = None;
        }
        if now.0 - self.cleaned_at.0 >= CLEANING_INTERVAL_NANOS {
            self.clean(now)?;
        }
        Ok(())
    }

    /// The names of the route's intervals that make it silent now; empty if it speaks.
    fn silent_intervals(&self, node: usize, now: Timestamp) -> Vec<String> {
        let route = self.tree.node(node);
        let holds = |name: &String| {
            self.config.time_intervals.iter().any(|interval| interval.name == *name && interval.contains(now))
        };
        let active = &route.active_time_intervals;
        if !active.is_empty() && !active.iter().any(holds) {
            return active.clone();
        }
        route.mute_time_intervals.iter().filter(|name| holds(name)).cloned().collect()
    }

    fn silenced_by(&self, labels: &LabelSet, now: Timestamp) -> Vec<String> {
        self.silences.values().filter(|silence| silence.mutes(labels, now)).map(|silence| silence.id.clone()).collect()
    }

    /// Looks at one group. The memory changes at once; the caller commits, and reads it back if that fails.
    fn flush(&mut self, id: &GroupId, now: Timestamp, batch: &mut Changes) {
        let Some(group) = self.groups.get(id) else {
            self.schedule.retain(|(_, node, labels)| (*node, labels) != (id.0, &id.1));
            return;
        };
        let route = self.tree.node(id.0);
        let group_key = format!("{}:{}", route.key, id.1);
        let no_channels = Vec::new();
        let channels = self.channels.get(&route.receiver).unwrap_or(&no_channels);
        let members: Vec<Member<'_>> = group
            .members
            .iter()
            .filter_map(|fingerprint| {
                let alert = self.alerts.get(fingerprint)?;
                let muted = self.inhibitor.inhibited_by(&alert.labels, now).is_some()
                    || self.silences.values().any(|silence| silence.mutes(&alert.labels, now));
                Some(Member { fingerprint: *fingerprint, alert, muted })
            })
            .collect();
        let entry_of = |channel: &Channel| self.log.get(&(group_key.clone(), channel.name.clone()));
        let states: Vec<ChannelState<'_>> = channels
            .iter()
            .map(|channel| ChannelState { send_resolved: channel.send_resolved, entry: entry_of(channel) })
            .collect();
        let silent = !self.silent_intervals(id.0, now).is_empty();
        let decisions = dispatch::flush(&members, silent, &states, route.repeat_interval, now);

        let mut changes = Changes::default();
        for decision in decisions {
            let Channel { name: channel, digest, .. } = &channels[decision.channel];
            changes.log.push((group_key.clone(), channel.clone(), decision.entry));
            if digest.is_some() {
                let (channel, receiver) = (channel.clone(), route.receiver.clone());
                let row = |alert| DigestRow { channel: channel.clone(), receiver: receiver.clone(), since: now, alert };
                changes.digests.extend(decision.alerts.into_iter().map(row));
            } else if !decision.alerts.is_empty() {
                changes.outbox.push(Notification {
                    key: message_key(&group_key, channel, now),
                    channel: channel.clone(),
                    receiver: route.receiver.clone(),
                    group_key: group_key.clone(),
                    group_labels: id.1.clone(),
                    alerts: decision.alerts,
                    reason: decision.reason,
                    left_out: 0,
                    at: now.0,
                });
            }
        }
        // What is over has been told, or is not to be told.
        let over: Vec<Fingerprint> =
            members.iter().filter(|member| member.alert.is_resolved(now)).map(|member| member.fingerprint).collect();
        let remaining: BTreeSet<Fingerprint> = group
            .members
            .iter()
            .filter(|member| !over.contains(member) && self.alerts.contains_key(member))
            .copied()
            .collect();
        let next_flush_at = now.plus_nanos(nanos(route.group_interval));
        let earlier = group.next_flush_at;
        let after = Group { members: remaining, next_flush_at, flushed: true };
        if after.members.is_empty() {
            changes.groups_gone.push((route.id.clone(), id.1.clone()));
        } else {
            changes.groups.push(self.group_row(id, &after));
        }
        for fingerprint in over {
            let Some(alert) = self.alerts.get(&fingerprint) else { continue };
            let unreported = alert.ends_unreported();
            if unreported {
                changes.history.push((now, HistoryEvent::Resolved, alert.labels.clone()));
            }
            let elsewhere = self.tree.matching(&alert.labels).into_iter().any(|node| {
                let other = (node, self.tree.node(node).group_labels(&alert.labels));
                other != *id && self.groups.get(&other).is_some_and(|group| group.members.contains(&fingerprint))
            });
            if !elsewhere {
                changes.alerts_gone.push(fingerprint);
            } else if unreported {
                // The history has it now; the other groups must not put it there again.
                changes.alerts.push(Alert { updated_at: alert.ends_at, ..alert.clone() });
            }
        }
        for (group_key, channel, entry) in &changes.log {
            self.log.insert((group_key.clone(), channel.clone()), entry.clone());
        }
        for row in &changes.digests {
            let new = || Collected { since: now, alerts: BTreeSet::new() };
            let collected = self.digests.entry(row.channel.clone()).or_insert_with(new);
            collected.alerts.insert(row.alert.labels.fingerprint());
        }
        self.schedule.remove(&(earlier, id.0, id.1.clone()));
        if after.members.is_empty() {
            self.groups.remove(id);
        } else {
            self.schedule.insert((after.next_flush_at, id.0, id.1.clone()));
            self.groups.insert(id.clone(), after);
        }
        for alert in &changes.alerts {
            self.alerts.insert(alert.fingerprint(), alert.clone());
        }
        for fingerprint in &changes.alerts_gone {
            self.stored_ends.remove(fingerprint);
            if let Some(alert) = self.alerts.remove(fingerprint) {
                self.inhibitor.remove(*fingerprint, &alert.labels);
            }
        }
        batch.append(changes);
    }

    fn clean(&mut self, now: Timestamp) -> Result<(), AlertingError> {
        let before = now.plus_nanos(-RETENTION_NANOS);
        let old = self.silences.values().filter(|silence| silence.ends_at < before);
        let silences_gone = old.map(|silence| silence.id.clone()).collect();
        // The log of a group that is still there is never forgotten, or it would be told as new.
        let present: HashSet<String> =
            self.groups.keys().map(|(node, labels)| format!("{}:{labels}", self.tree.node(*node).key)).collect();
        let log_gone = self
            .log
            .iter()
            .filter(|((group_key, _), entry)| entry.at < before && !present.contains(group_key))
            .map(|(key, _)| key.clone())
            .collect();
        let changes = Changes { silences_gone, log_gone, ..Changes::default() };
        for id in &changes.silences_gone {
            self.silences.remove(id);
        }
        for key in &changes.log_gone {
            self.log.remove(key);
        }
        self.commit(changes, now)?;
        self.repository.forget_before(before)?;
        self.cleaned_at = now;
        Ok(())
    }

    /// Makes or changes a silence. `new_id` becomes its id if it is a new one. Returns its id.
    ///
    /// # Errors
    ///
    /// When it breaks a rule, there is none of the id that was sent, or it cannot be committed.
    pub fn put_silence(&mut self, sent: Silence, new_id: String, now: Timestamp) -> Result<String, AlertingError> {
        sent.check(now).map_err(|reason| AlertingError::Invalid { reason })?;
        let present = match sent.id.as_str() {
            "" => None,
            id => Some(self.silences.get(id).ok_or_else(|| AlertingError::NotFound { what: format!("silence {id}") })?),
        };
        let mut changes = Changes::default();
        match Silence::change(present, sent, now) {
            Change::Update(silence) => changes.silences.push(silence),
            Change::Create { mut new, ended } => {
                if self.silences.len() >= SILENCES_MAX {
                    return Err(AlertingError::Full { what: "silences", max: SILENCES_MAX });
                }
                new.id = new_id;
                changes.silences.extend(ended);
                changes.silences.push(new);
            }
        }
        let id = changes.silences.last().map(|silence| silence.id.clone()).unwrap_or_default();
        let silences = changes.silences.clone();
        self.commit(changes, now)?;
        self.silences.extend(silences.into_iter().map(|silence| (silence.id.clone(), silence)));
        Ok(id)
    }

    /// Ends a silence now.
    ///
    /// # Errors
    ///
    /// When there is none, it is over already, or the change cannot be committed.
    pub fn expire_silence(&mut self, id: &str, now: Timestamp) -> Result<(), AlertingError> {
        let silence = self.silences.get(id).ok_or_else(|| AlertingError::NotFound { what: format!("silence {id}") })?;
        if silence.state(now) == SilenceState::Expired {
            return Err(AlertingError::Invalid { reason: format!("silence {id} already expired") });
        }
        let ended = silence.expired(now);
        self.commit(Changes { silences: vec![ended.clone()], ..Changes::default() }, now)?;
        self.silences.insert(id.to_owned(), ended);
        Ok(())
    }

    /// A silence by its id.
    #[must_use]
    pub fn silence(&self, id: &str) -> Option<&Silence> {
        self.silences.get(id)
    }

    /// Silences whose matchers satisfy the filter, as Alertmanager sorts them: active by end, pending by
    /// start, expired by end, the latest first.
    #[must_use]
    pub fn silences(&self, filter: &[Matcher], now: Timestamp) -> Vec<Silence> {
        let wanted = |silence: &&Silence| {
            filter.iter().all(|wanted| {
                silence
                    .matchers
                    .iter()
                    .any(|matcher| matcher.name() == wanted.name() && wanted.accepts(matcher.value()))
            })
        };
        let mut silences: Vec<Silence> = self.silences.values().filter(wanted).cloned().collect();
        silences.sort_by_key(|silence| match silence.state(now) {
            SilenceState::Active => (0, silence.ends_at.0),
            SilenceState::Pending => (1, silence.starts_at.0),
            SilenceState::Expired => (2, silence.ends_at.0.saturating_neg()),
        });
        silences
    }

    fn view(&self, alert: &Alert, nodes: &[usize], now: Timestamp) -> AlertView {
        let mut receivers: Vec<String> = Vec::new();
        let mut muted_by = Vec::new();
        for node in nodes {
            receivers.push(self.tree.node(*node).receiver.clone());
            muted_by.extend(self.silent_intervals(*node, now));
        }
        AlertView {
            alert: alert.clone(),
            receivers,
            silenced_by: self.silenced_by(&alert.labels, now),
            inhibited_by: self.inhibitor.inhibited_by(&alert.labels, now).into_iter().collect(),
            muted_by,
        }
    }

    fn wanted(view: &AlertView, filter: &AlertFilter) -> bool {
        let receiver = filter.receiver.as_ref();
        matcher::all_match(&filter.matchers, &view.alert.labels)
            && receiver.is_none_or(|regex| view.receivers.iter().any(|receiver| regex.is_match(receiver)))
            && (filter.active || view.is_suppressed())
            && (filter.silenced || view.silenced_by.is_empty())
            && (filter.inhibited || view.inhibited_by.is_empty())
            && (filter.muted || view.muted_by.is_empty())
    }

    /// Alerts that fire, in the order of their fingerprints.
    #[must_use]
    pub fn alerts(&self, filter: &AlertFilter, now: Timestamp) -> Vec<AlertView> {
        let mut views: Vec<(Fingerprint, AlertView)> = self
            .alerts
            .iter()
            .filter(|(_, alert)| !alert.is_resolved(now) && matcher::all_match(&filter.matchers, &alert.labels))
            .map(|(fingerprint, alert)| (*fingerprint, self.view(alert, &self.tree.matching(&alert.labels), now)))
            .filter(|(_, view)| Self::wanted(view, filter))
            .collect();
        views.sort_by_key(|(fingerprint, _)| *fingerprint);
        views.into_iter().map(|(_, view)| view).collect()
    }

    /// Groups with alerts that fire, by their labels and receivers.
    #[must_use]
    pub fn groups(&self, filter: &AlertFilter, now: Timestamp) -> Vec<GroupView> {
        let mut views: Vec<GroupView> = self
            .groups
            .iter()
            .filter_map(|((node, labels), group)| {
                let receiver = self.tree.node(*node).receiver.clone();
                if filter.receiver.as_ref().is_some_and(|regex| !regex.is_match(&receiver)) {
                    return None;
                }
                let alerts = group.members.iter().filter_map(|fingerprint| self.alerts.get(fingerprint));
                let alerts: Vec<AlertView> = alerts
                    .filter(|alert| !alert.is_resolved(now))
                    .map(|alert| self.view(alert, &self.tree.matching(&alert.labels), now))
                    .filter(|view| Self::wanted(view, filter))
                    .collect();
                (!alerts.is_empty()).then(|| GroupView { labels: labels.clone(), receiver, alerts })
            })
            .collect();
        views.sort_by(|a, b| (&a.labels, &a.receiver).cmp(&(&b.labels, &b.receiver)));
        views
    }

    /// What all alerts of a group that fire have in common, by the name that [`crate::slack_action::group_name`] gives
    /// the group; `None` when nothing of it fires any more.
    #[must_use]
    pub fn common_labels_of(&self, name: &str, now: Timestamp) -> Option<LabelSet> {
        let (_, group) = self.groups.iter().find(|((node, labels), _)| {
            crate::slack_action::group_name(&format!("{}:{labels}", self.tree.node(*node).key)) == name
        })?;
        let alerts = group.members.iter().filter_map(|fingerprint| self.alerts.get(fingerprint));
        let mut firing = alerts.filter(|alert| !alert.is_resolved(now)).map(|alert| &alert.labels).peekable();
        firing.peek()?;
        Some(LabelSet::common(firing))
    }

    /// Messages that are to be sent now, at most `limit`, none for a busy channel.
    ///
    /// # Errors
    ///
    /// When the database cannot be read.
    pub fn ready_deliveries(
        &self,
        busy: &HashSet<String>,
        limit: usize,
        now: Timestamp,
    ) -> Result<(Vec<Delivery>, Option<Timestamp>), AlertingError> {
        let waiting = self.repository.waiting()?;
        let ids = outbox::ready(&waiting, busy, now);
        let mut deliveries = Vec::new();
        for id in ids.into_iter().take(limit) {
            deliveries.extend(self.repository.delivery(id)?);
        }
        Ok((deliveries, outbox::next_attempt(&waiting, now)))
    }

    /// Notes that a message was taken.
    ///
    /// # Errors
    ///
    /// When the change cannot be committed; the message is then sent once more, under the same key.
    pub fn delivered(
        &mut self,
        delivery: &Delivery,
        reference: Option<&str>,
        now: Timestamp,
    ) -> Result<(), AlertingError> {
        self.repository.sent(delivery, reference, now)?;
        // If this channel was reported as failing, it is well again.
        let meta = meta_labels(delivery);
        if self.alerts.get(&meta.fingerprint()).is_some_and(|alert| !alert.is_resolved(now)) {
            let over = PostedAlert { labels: meta, ends_at: Some(now), ..PostedAlert::default() };
            self.post_alerts(vec![over], now)?;
        }
        Ok(())
    }

    /// Notes that sending a message failed: it is tried again, or given up and reported as an alert.
    ///
    /// # Errors
    ///
    /// When the change cannot be committed; the message is then tried again at once.
    pub fn failed(
        &mut self,
        delivery: &Delivery,
        failure: &SendFailure,
        dice: u32,
        now: Timestamp,
    ) -> Result<AfterFailure, AlertingError> {
        let after = outbox::after_failure(failure, delivery.attempts + 1, delivery.created_at, dice, now);
        let notification = &delivery.notification;
        match after {
            AfterFailure::Retry(next) => self.repository.retry(delivery.id, next, &failure.message)?,
            AfterFailure::Dead => {
                self.repository.dead(delivery, &failure.message, now)?;
                let key = (notification.group_key.clone(), notification.channel.clone());
                if self.log.get(&key).is_some_and(|entry| entry.at.0 == notification.at) {
                    self.log.remove(&key);
                }
                let meta = PostedAlert {
                    labels: meta_labels(delivery),
                    annotations: [
                        ("summary", format!("A message of {} could not be delivered", notification.channel)),
                        ("description", failure.message.clone()),
                    ]
                    .into_iter()
                    .collect(),
                    starts_at: Some(now),
                    ends_at: Some(now.plus_nanos(META_ALERT_NANOS)),
                    generator_url: String::new(),
                };
                self.post_alerts(vec![meta], now)?;
            }
        }
        Ok(after)
    }

    /// Numbers about the state.
    ///
    /// # Errors
    ///
    /// When the database cannot be read.
    pub fn counts(&self, now: Timestamp) -> Result<Counts, AlertingError> {
        let firing = self.alerts.values().filter(|alert| !alert.is_resolved(now));
        let (mut active, mut suppressed) = (0, 0);
        for alert in firing {
            let view = self.view(alert, &self.tree.matching(&alert.labels), now);
            *if view.is_suppressed() { &mut suppressed } else { &mut active } += 1;
        }
        Ok(Counts {
            alerts: self.alerts.len(),
            active,
            suppressed,
            groups: self.groups.len(),
            silences_active: self.silences.values().filter(|s| s.state(now) == SilenceState::Active).count(),
            outbox: self.repository.outbox_counts()?,
        })
    }

    /// What began and ended since a time, oldest first.
    ///
    /// # Errors
    ///
    /// When the database cannot be read.
    pub fn history(
        &self,
        since: Timestamp,
        limit: u32,
    ) -> Result<Vec<(Timestamp, HistoryEvent, LabelSet)>, AlertingError> {
        self.repository.history(since, limit)
    }

    /// The newest entries of the history, newest first.
    ///
    /// # Errors
    ///
    /// When the database cannot be read.
    pub fn latest_history(&self, limit: u32) -> Result<Vec<(Timestamp, HistoryEvent, LabelSet)>, AlertingError> {
        self.repository.latest_history(limit)
    }

    /// Messages with what became of them, newest first.
    ///
    /// # Errors
    ///
    /// When the database cannot be read.
    pub fn messages(&self, limit: u32) -> Result<Vec<OutboxRow>, AlertingError> {
        self.repository.messages(limit)
    }
}

/// A message's name: the same for the same decision, whoever asks.
fn message_key(group_key: &str, channel: &str, at: Timestamp) -> String {
    let mut hash = Sha256::new();
    for part in [group_key, channel] {
        hash.update(part.len().to_le_bytes());
        hash.update(part);
    }
    hash.update(at.0.to_le_bytes());
    hex::encode(&hash.finalize()[..16])
}

fn meta_labels(delivery: &Delivery) -> LabelSet {
    [
        (ALERT_NAME, META_ALERT),
        ("severity", "warning"),
        ("receiver", delivery.notification.receiver.as_str()),
        ("channel", delivery.notification.channel.as_str()),
    ]
    .into_iter()
    .collect()
}

//! The running service: one thread that owns the engine, tasks that send, and a handle for everybody else.
//!
//! SQLite waits for the disk, so the engine has a thread of its own; callers reach it through a bounded
//! queue and wait for their turn (I6). Sending never holds the engine up, and a slow channel no other.
//! Not here: decisions (`engine.rs`), HTTP (`api.rs`).

use std::collections::HashSet;
use std::fmt;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use model::time::{Clock, Timestamp};
use rand::{RngCore as _, SeedableRng as _};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::alert::PostedAlert;
use crate::config::Config;
use crate::engine::{AlertFilter, AlertView, Counts, Engine, GroupView, Posted};
use crate::error::AlertingError;
use crate::labels::LabelSet;
use crate::matcher::Matcher;
use crate::notify::http::NetworkPolicy;
use crate::notify::{Notifier, Sender, Sent};
use crate::outbox::SendFailure;
use crate::repository::{Delivery, HistoryEvent, OutboxRow, Repository};
use crate::silence::Silence;
use crate::slack_action::Press;

/// Calls that wait for the engine. Each costs what its arguments cost; more than this many callers wait
/// outside.
const CALLS_MAX: usize = 256;

/// Messages being sent at the same time, one a channel. More channels than this take turns.
const SENDS_MAX: usize = 64;

/// Calls taken between two looks at the clock.
const CALLS_PER_TURN: usize = 64;

/// Longest sleep: what the engine does by itself is never later than this, whatever the clock does.
const SLEEP_MAX: Duration = Duration::from_millis(500);

/// Pause after a step or a note that could not be committed, such as on a full disk.
const FAILED_STEP_PAUSE_NANOS: i64 = Timestamp::NANOS_PER_SECOND;

/// How long messages that are being sent may take when the process ends. What is cut off is sent again
/// at the next start, under the same key.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// What the service is besides Alertmanager's configuration.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Where people reach this program, for links in messages.
    pub external_url: String,
    /// Name and text of the files that `templates` names, read by the caller.
    pub templates: Vec<(String, String)>,
    /// Which addresses messages may go to.
    pub network: NetworkPolicy,
    /// Whether messages to Slack get buttons: only where somebody listens to them.
    pub slack_buttons: bool,
}

/// What the service needs from outside.
pub struct Dependencies {
    /// The database.
    pub repository: Repository,
    /// The time.
    pub clock: Clock,
    /// What sends; the receivers of the configuration if it is `None`.
    pub sender: Option<Arc<dyn Sender>>,
}

impl fmt::Debug for Dependencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dependencies").field("repository", &self.repository).finish_non_exhaustive()
    }
}

type Call = Box<dyn FnOnce(&mut Engine, Timestamp) + Send>;

enum Message {
    Call(Call),
    Done(Box<Delivery>, Result<Sent, SendFailure>),
    Stop,
}

type SharedSender = Arc<RwLock<Arc<dyn Sender>>>;

/// The service, ready to run.
pub struct Alerting {
    engine: Engine,
    clock: Clock,
    sender: SharedSender,
    messages: Receiver<Message>,
    handle: AlertingHandle,
}

impl fmt::Debug for Alerting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Alerting").field("engine", &self.engine).finish_non_exhaustive()
    }
}

/// Reaches the running service. Cheap to clone.
#[derive(Clone)]
pub struct AlertingHandle {
    messages: SyncSender<Message>,
    turns: Arc<Semaphore>,
    sender: SharedSender,
    started_at: Timestamp,
}

impl fmt::Debug for AlertingHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlertingHandle").field("started_at", &self.started_at).finish_non_exhaustive()
    }
}

impl Alerting {
    /// Reads the state and builds the senders. Nothing runs yet.
    ///
    /// # Errors
    ///
    /// When the state cannot be read or a template is none.
    pub fn build(
        config: Config,
        settings: &Settings,
        dependencies: Dependencies,
    ) -> Result<(Self, AlertingHandle), AlertingError> {
        let Dependencies { repository, clock, sender } = dependencies;
        let sender = match sender {
            Some(sender) => sender,
            None => notifier(&config, settings)?,
        };
        let sender: SharedSender = Arc::new(RwLock::new(sender));
        let started_at = clock.now();
        let engine = Engine::open(config, repository, started_at)?;
        // Room for every call and every result at once: putting one in never waits.
        let (send, messages) = sync_channel(CALLS_MAX + SENDS_MAX + 1);
        let turns = Arc::new(Semaphore::new(CALLS_MAX));
        let handle = AlertingHandle { messages: send, turns, sender: Arc::clone(&sender), started_at };
        Ok((Self { engine, clock, sender, messages, handle: handle.clone() }, handle))
    }

    /// Runs until the token is cancelled, then lets messages that are being sent finish for a moment.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { engine, clock, sender, messages, handle } = self;
        let (start_send, mut to_send) = mpsc::channel::<Delivery>(SENDS_MAX);
        let (ended, engine_ended) = oneshot::channel::<()>();
        let engine_clock = clock.clone();
        let thread = std::thread::Builder::new().name("alerting".to_owned()).spawn(move || {
            own_engine(engine, &engine_clock, &messages, &start_send);
            drop(ended);
        });
        if let Err(error) = thread {
            tracing::error!(%error, "the thread of alerting cannot be started");
            return;
        }
        let mut sends = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => break,
                delivery = to_send.recv() => {
                    let Some(delivery) = delivery else { break };
                    let sender = Arc::clone(&sender.read().unwrap_or_else(PoisonError::into_inner));
                    let (clock, results) = (clock.clone(), handle.messages.clone());
                    sends.spawn(async move {
                        let sent = delivery.clone();
                        let one = tokio::spawn(async move { sender.send(&sent, clock.now()).await });
                        let outcome = one.await.unwrap_or_else(|error| {
                            Err(SendFailure::permanent(format!("sending it failed inside of GodsEye: {error}")))
                        });
                        // There is room: each send has its place in the queue.
                        if results.try_send(Message::Done(Box::new(delivery), outcome)).is_err() {
                            tracing::error!("a result found no place: the message is sent again after a restart");
                        }
                    });
                }
                Some(_) = sends.join_next(), if !sends.is_empty() => {}
            }
        }
        let drained = tokio::time::timeout(DRAIN_TIMEOUT, async { while sends.join_next().await.is_some() {} });
        if drained.await.is_err() {
            tracing::warn!(
                count = sends.len(),
                "messages being sent were cut off: they are sent again at the next start"
            );
        }
        handle.turns.close();
        if handle.messages.try_send(Message::Stop).is_err() {
            tracing::error!("alerting's queue is full at the end");
        }
        _ = engine_ended.await;
    }
}

fn notifier(config: &Config, settings: &Settings) -> Result<Arc<dyn Sender>, AlertingError> {
    Ok(Arc::new(
        Notifier::new(config, &settings.templates, &settings.external_url, settings.network)?
            .with_slack_buttons(settings.slack_buttons),
    ))
}

/// The engine's thread.
fn own_engine(mut engine: Engine, clock: &Clock, messages: &Receiver<Message>, start_send: &mpsc::Sender<Delivery>) {
    let mut busy: HashSet<String> = HashSet::new();
    let mut dice = rand::rngs::SmallRng::from_os_rng();
    // Results that could not be noted. Their channels stay busy: sending again would double the message.
    let mut unnoted: Vec<(Box<Delivery>, Result<Sent, SendFailure>)> = Vec::new();
    let mut note_again_at = Timestamp(i64::MIN);
    loop {
        let now = clock.now();
        let pause = now.plus_nanos(FAILED_STEP_PAUSE_NANOS);
        let ticked = engine.tick(now);
        if let Err(error) = &ticked {
            tracing::error!(%error, "alerting could not make a step: it is tried again");
        }
        if note_again_at <= now {
            note_again_at = pause;
            let mut results = std::mem::take(&mut unnoted);
            results.retain(|(delivery, outcome)| {
                let noted = note(&mut engine, delivery, outcome, dice.next_u32(), now);
                if noted {
                    busy.remove(&delivery.notification.channel);
                }
                !noted
            });
            unnoted = results;
        }
        let mut wake_at = if ticked.is_ok() { engine.next_step_at() } else { pause };
        match engine.ready_deliveries(&busy, SENDS_MAX.saturating_sub(busy.len()), now) {
            Ok((ready, next)) => {
                wake_at = next.map_or(wake_at, |next| next.min(wake_at));
                for delivery in ready {
                    let channel = delivery.notification.channel.clone();
                    // There is room: at most as many are under way as the queue holds.
                    if start_send.try_send(delivery).is_ok() {
                        busy.insert(channel);
                    }
                }
            }
            Err(error) => tracing::error!(%error, "the outbox cannot be read: it is tried again"),
        }
        let sleep = Duration::from_nanos(u64::try_from(wake_at.0.saturating_sub(now.0)).unwrap_or(0));
        let mut next = messages.recv_timeout(sleep.clamp(Duration::from_millis(1), SLEEP_MAX));
        for taken in 1.. {
            match next {
                Ok(Message::Call(call)) => call(&mut engine, clock.now()),
                Ok(Message::Done(delivery, outcome)) => {
                    if note(&mut engine, &delivery, &outcome, dice.next_u32(), clock.now()) {
                        busy.remove(&delivery.notification.channel);
                    } else {
                        note_again_at = clock.now().plus_nanos(FAILED_STEP_PAUSE_NANOS);
                        unnoted.push((delivery, outcome));
                    }
                }
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => break,
            }
            if taken == CALLS_PER_TURN {
                break;
            }
            next = messages.try_recv().map_err(|error| match error {
                TryRecvError::Empty => RecvTimeoutError::Timeout,
                TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
            });
        }
    }
}

/// Notes what became of a message. Returns whether that could be committed.
fn note(
    engine: &mut Engine,
    delivery: &Delivery,
    outcome: &Result<Sent, SendFailure>,
    dice: u32,
    now: Timestamp,
) -> bool {
    let channel = &delivery.notification.channel;
    let noted = match outcome {
        Ok(sent) => engine.delivered(delivery, sent.reference.as_deref(), now),
        Err(failure) => {
            tracing::warn!(%channel, reason = %failure.message, retryable = failure.retryable, "a message was not taken");
            engine.failed(delivery, failure, dice, now).map(|_| ())
        }
    };
    if let Err(error) = &noted {
        tracing::error!(%channel, %error, "what became of a message cannot be noted: it is tried again");
    }
    noted.is_ok()
}

impl AlertingHandle {
    /// Runs a function on the engine, when its turn has come.
    async fn call<T: Send + 'static>(
        &self,
        function: impl FnOnce(&mut Engine, Timestamp) -> T + Send + 'static,
    ) -> Result<T, AlertingError> {
        let turn = Arc::clone(&self.turns).acquire_owned().await.map_err(|_| AlertingError::Closed)?;
        let (answer, answered) = oneshot::channel();
        let call: Call = Box::new(move |engine, now| {
            // Who does not wait any more needs no answer.
            drop(answer.send(function(engine, now)));
            drop(turn);
        });
        self.messages.try_send(Message::Call(call)).map_err(|_| AlertingError::Closed)?;
        answered.await.map_err(|_| AlertingError::Closed)
    }

    /// Calls that wait for the engine or are at it.
    #[must_use]
    pub fn waiting(&self) -> usize {
        CALLS_MAX.saturating_sub(self.turns.available_permits())
    }

    /// When the service started.
    #[must_use]
    pub fn started_at(&self) -> Timestamp {
        self.started_at
    }

    /// Takes reports about alerts: committed when this returns.
    ///
    /// # Errors
    ///
    /// When they cannot be committed, or the service has ended.
    pub async fn post_alerts(&self, alerts: Vec<PostedAlert>) -> Result<Posted, AlertingError> {
        self.call(move |engine, now| engine.post_alerts(alerts, now)).await?
    }

    /// Alerts that fire.
    ///
    /// # Errors
    ///
    /// When the service has ended.
    pub async fn alerts(&self, filter: AlertFilter) -> Result<Vec<AlertView>, AlertingError> {
        self.call(move |engine, now| engine.alerts(&filter, now)).await
    }

    /// Groups with alerts that fire.
    ///
    /// # Errors
    ///
    /// When the service has ended.
    pub async fn groups(&self, filter: AlertFilter) -> Result<Vec<GroupView>, AlertingError> {
        self.call(move |engine, now| engine.groups(&filter, now)).await
    }

    /// Silences, and the time at which they were looked at.
    ///
    /// # Errors
    ///
    /// When the service has ended.
    pub async fn silences(&self, filter: Vec<Matcher>) -> Result<(Vec<Silence>, Timestamp), AlertingError> {
        self.call(move |engine, now| (engine.silences(&filter, now), now)).await
    }

    /// One silence, and the time at which it was looked at.
    ///
    /// # Errors
    ///
    /// When there is none, or the service has ended.
    pub async fn silence(&self, id: String) -> Result<(Silence, Timestamp), AlertingError> {
        self.call(move |engine, now| {
            let silence = engine.silence(&id).cloned();
            silence
                .map(|silence| (silence, now))
                .ok_or_else(|| AlertingError::NotFound { what: format!("silence {id}") })
        })
        .await?
    }

    /// Makes or changes a silence; returns its id.
    ///
    /// # Errors
    ///
    /// When it breaks a rule, there is none of its id, it cannot be committed, or the service has ended.
    pub async fn put_silence(&self, silence: Silence) -> Result<String, AlertingError> {
        let id = uuid::Uuid::new_v4().to_string();
        self.call(move |engine, now| engine.put_silence(silence, id, now)).await?
    }

    /// Silences what the alerts of a group share, as somebody wants who pressed a button in Slack; returns its end, or `None`
    /// when nothing of the group fires, or its alerts share nothing. What fires and the silence are looked at in one turn.
    ///
    /// # Errors
    ///
    /// When it cannot be committed, or the service has ended.
    pub async fn silence_group(&self, press: Press) -> Result<Option<Timestamp>, AlertingError> {
        let id = uuid::Uuid::new_v4().to_string();
        self.call(move |engine, now| {
            let common = engine.common_labels_of(&press.group, now);
            let Some(silence) = common.and_then(|common| press.silence(&common, now)) else { return Ok(None) };
            let ends_at = silence.ends_at;
            engine.put_silence(silence, id, now).map(|_| Some(ends_at))
        })
        .await?
    }

    /// Ends a silence.
    ///
    /// # Errors
    ///
    /// When there is none, it is over, it cannot be committed, or the service has ended.
    pub async fn expire_silence(&self, id: String) -> Result<(), AlertingError> {
        self.call(move |engine, now| engine.expire_silence(&id, now)).await?
    }

    /// The configuration that holds.
    ///
    /// # Errors
    ///
    /// When the service has ended.
    pub async fn config(&self) -> Result<Config, AlertingError> {
        self.call(|engine, _| engine.config().clone()).await
    }

    /// Takes another configuration, senders included. What is being sent is not disturbed.
    ///
    /// # Errors
    ///
    /// When a template is none, the change cannot be committed, or the service has ended.
    pub async fn reconfigure(&self, config: Config, settings: &Settings) -> Result<(), AlertingError> {
        let sender = notifier(&config, settings)?;
        let shared = Arc::clone(&self.sender);
        self.call(move |engine, now| {
            *shared.write().unwrap_or_else(PoisonError::into_inner) = sender;
            engine.reconfigure(config, now)
        })
        .await?
    }

    /// Numbers about the state.
    ///
    /// # Errors
    ///
    /// When the database cannot be read, or the service has ended.
    pub async fn counts(&self) -> Result<Counts, AlertingError> {
        self.call(|engine, now| engine.counts(now)).await?
    }

    /// What began and ended since a time, oldest first.
    ///
    /// # Errors
    ///
    /// When the database cannot be read, or the service has ended.
    pub async fn history(
        &self,
        since: Timestamp,
        limit: u32,
    ) -> Result<Vec<(Timestamp, HistoryEvent, LabelSet)>, AlertingError> {
        self.call(move |engine, _| engine.history(since, limit)).await?
    }

    /// The newest entries of the history, newest first, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the database cannot be read, or the service has ended.
    pub async fn latest_history(&self, limit: u32) -> Result<Vec<(Timestamp, HistoryEvent, LabelSet)>, AlertingError> {
        self.call(move |engine, _| engine.latest_history(limit)).await?
    }

    /// Messages with what became of them, newest first, at most `limit`.
    ///
    /// # Errors
    ///
    /// When the database cannot be read, or the service has ended.
    pub async fn messages(&self, limit: u32) -> Result<Vec<OutboxRow>, AlertingError> {
        self.call(move |engine, _| engine.messages(limit)).await?
    }
}

//! Who runs next: permits for running queries, shared fairly among clients, and the bounded queue before them.
//!
//! A client may hold [`QueueConfig::per_client_max`] permits at once, so that one with many slow queries leaves room for
//! everybody else's. A permit that comes back goes to the waiting client with the fewest queries running; among those
//! to the one that has gone longest without a start. When the queue is full, a client with more queries in it than the
//! newcomer loses its newest. [`Fair`] decides, and is a pure function of what happened; [`Queue`] waits. Not here: what
//! a query may cost once it runs ([`crate::engine`]).

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use model::tenant::TenantId;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::oneshot;

use crate::error::{ErrorKind, QueryError};

/// Bounds of admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueConfig {
    /// Queries running at once.
    pub(crate) running_max: usize,
    /// Queries of one client running at once.
    pub(crate) per_client_max: usize,
    /// Queries waiting; one more is refused, or the newest of the client that has most.
    pub(crate) waiting_max: usize,
    /// How long one waits before it is refused.
    pub(crate) wait_max: Duration,
}

/// Who asks, for fairness: a tenant, and one of those who ask for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    /// Whose data is asked for.
    pub tenant: TenantId,
    /// A digest of what tells the client from others of its tenant. Two with the same are treated as one.
    digest: u64,
}

impl Client {
    /// A client of a tenant; `credential` is what it showed, and is not kept.
    #[must_use]
    pub fn new(tenant: TenantId, credential: Option<&str>) -> Self {
        let mut hasher = DefaultHasher::new();
        credential.hash(&mut hasher);
        Self { tenant, digest: hasher.finish() }
    }
}

type Ticket = u64;

/// What becomes of a query that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrival {
    Runs,
    Waits,
    /// It waits in place of another one, which is refused.
    Displaces(Ticket),
    Refused,
}

/// The state of admission.
#[derive(Debug, Default)]
struct Fair {
    /// Clients with queries running: how many.
    running: HashMap<Client, usize>,
    /// In the order of their arrival.
    waiting: Vec<(Ticket, Client)>,
    /// When clients last started a query, in starts; only of those that run or wait.
    last_start: HashMap<Client, u64>,
    starts: u64,
}

impl Fair {
    fn running(&self) -> usize {
        self.running.values().sum()
    }

    fn running_of(&self, client: &Client) -> usize {
        self.running.get(client).copied().unwrap_or(0)
    }

    fn waiting_of(&self, client: &Client) -> usize {
        self.waiting.iter().filter(|(_, waiting)| waiting == client).count()
    }

    fn start(&mut self, client: &Client) {
        self.starts += 1;
        *self.running.entry(client.clone()).or_default() += 1;
        self.last_start.insert(client.clone(), self.starts);
    }

    fn arrive(&mut self, ticket: Ticket, client: &Client, config: &QueueConfig) -> Arrival {
        if self.running() < config.running_max && self.running_of(client) < config.per_client_max {
            self.start(client);
            return Arrival::Runs;
        }
        let mut arrival = Arrival::Waits;
        if self.waiting.len() >= config.waiting_max {
            let of_all = self.waiting.iter().map(|(_, waiting)| self.waiting_of(waiting));
            let most = of_all.max().unwrap_or(0);
            let newest = self.waiting.iter().rposition(|(_, waiting)| self.waiting_of(waiting) == most);
            match newest {
                // Only where that makes it fairer: at equal shares whoever was first stays.
                Some(newest) if most > self.waiting_of(client) + 1 => {
                    let (displaced, _) = self.waiting.remove(newest);
                    arrival = Arrival::Displaces(displaced);
                }
                _ => return Arrival::Refused,
            }
        }
        self.waiting.push((ticket, client.clone()));
        arrival
    }

    /// Takes the next query out of the queue and starts it, if there is a permit for it.
    fn next(&mut self, config: &QueueConfig) -> Option<(Ticket, Client)> {
        if self.running() >= config.running_max {
            return None;
        }
        let eligible = self.waiting.iter().enumerate().filter_map(|(place, (_, client))| {
            let running = self.running_of(client);
            let last_start = self.last_start.get(client).copied().unwrap_or(0);
            (running < config.per_client_max).then_some((running, last_start, place))
        });
        let (.., place) = eligible.min()?;
        let (ticket, client) = self.waiting.remove(place);
        self.start(&client);
        Some((ticket, client))
    }

    fn give_up(&mut self, ticket: Ticket) {
        self.waiting.retain(|(waiting, _)| *waiting != ticket);
        self.forget();
    }

    fn end(&mut self, client: &Client) {
        if let Some(running) = self.running.get_mut(client) {
            *running -= 1;
            if *running == 0 {
                self.running.remove(client);
            }
        }
        self.forget();
    }

    /// What is known of clients that neither run nor wait would grow for ever.
    fn forget(&mut self) {
        let (running, waiting) = (&self.running, &self.waiting);
        self.last_start
            .retain(|client, _| running.contains_key(client) || waiting.iter().any(|(_, waiting)| waiting == client));
    }
}

#[derive(Debug, Default)]
struct State {
    fair: Fair,
    tickets: Ticket,
    /// How each query that waits is told that it may run.
    wakers: HashMap<Ticket, oneshot::Sender<Permit>>,
}

/// The queue in front of the query threads.
#[derive(Debug)]
pub(crate) struct Queue {
    config: QueueConfig,
    state: Mutex<State>,
    waiting: Gauge,
}

/// The right to run one query; dropping it lets the next one run.
#[derive(Debug)]
pub(crate) struct Permit {
    queue: Arc<Queue>,
    client: Client,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.queue.state().fair.end(&self.client);
        self.queue.start_waiting();
    }
}

/// A place in the queue, for as long as somebody waits there.
struct Place<'a> {
    queue: &'a Queue,
    ticket: Ticket,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.queue.waiting.dec();
        let mut state = self.queue.state();
        state.wakers.remove(&self.ticket);
        state.fair.give_up(self.ticket);
    }
}

impl Queue {
    /// A queue that tells in `waiting` how many wait.
    pub(crate) fn new(config: QueueConfig, waiting: Gauge) -> Arc<Self> {
        Arc::new(Self { config, state: Mutex::default(), waiting })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a permit.
    ///
    /// # Errors
    /// [`ErrorKind::Busy`] when the queue is full, when somebody with fewer queries took the place, or when the wait
    /// was too long.
    pub(crate) async fn admit(self: &Arc<Self>, client: &Client) -> Result<Permit, QueryError> {
        let (place, granted) = {
            let mut state = self.state();
            state.tickets += 1;
            let ticket = state.tickets;
            match state.fair.arrive(ticket, client, &self.config) {
                Arrival::Runs => return Ok(Permit { queue: Arc::clone(self), client: client.clone() }),
                Arrival::Refused => return Err(self.full()),
                // Without its waker the displaced one sees that its place is gone.
                Arrival::Displaces(other) => drop(state.wakers.remove(&other)),
                Arrival::Waits => {}
            }
            let (waker, granted) = oneshot::channel();
            state.wakers.insert(ticket, waker);
            self.waiting.inc();
            (Place { queue: self, ticket }, granted)
        };
        let waited = tokio::time::timeout(self.config.wait_max, granted).await;
        drop(place);
        match waited {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_displaced)) => Err(self.full()),
            Err(_elapsed) => {
                let waited = self.config.wait_max.as_millis();
                Err(busy(format!("the query's turn did not come within {waited} ms, the limit of query.queue_wait")))
            }
        }
    }

    fn full(&self) -> QueryError {
        let QueueConfig { running_max, waiting_max, .. } = self.config;
        busy(format!("{running_max} queries are running and {waiting_max} are waiting, the limit of query.queue"))
    }

    fn start_waiting(self: &Arc<Self>) {
        loop {
            let mut state = self.state();
            let Some((ticket, client)) = state.fair.next(&self.config) else { return };
            let waker = state.wakers.remove(&ticket);
            drop(state);
            let permit = Permit { queue: Arc::clone(self), client };
            // Whoever has gone away meanwhile gives the permit back by dropping it, which comes here again.
            if let Some(waker) = waker {
                drop(waker.send(permit));
            }
        }
    }
}

fn busy(why: String) -> QueryError {
    QueryError::new(ErrorKind::Busy, why).hint("try again in a few seconds, or raise query.concurrency")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: QueueConfig =
        QueueConfig { running_max: 3, per_client_max: 2, waiting_max: 4, wait_max: Duration::from_secs(60) };

    fn client(name: &str) -> Client {
        Client::new(TenantId::default_tenant(), Some(name))
    }

    #[test]
    fn permits_and_places_go_round() {
        // Who arrives (`a`) or ends (`-a`), and what is said to it, or who starts then; tickets count arrivals.
        for (what, events) in [
            ("one client leaves a permit to others", "a:runs a:runs a:waits b:runs b:waits -b:b5 -b: -a:a3"),
            (
                "with many waiting, each in turn",
                "a:runs a:runs b:runs a:waits a:waits b:waits c:waits -b:c7 -a:b6 -a:a4",
            ),
            (
                "the one who fills the queue makes room",
                "a:runs a:runs b:runs a:waits a:waits a:waits a:waits c:displaces7 a:refused b:displaces6 c:refused",
            ),
            ("equal shares are kept", "a:runs a:runs b:runs a:waits a:waits b:waits b:waits a:refused c:displaces7"),
        ] {
            let mut fair = Fair::default();
            let mut ticket = 0;
            for event in events.split(' ') {
                let (who, expected) = event.split_once(':').unwrap();
                let found = match who.strip_prefix('-') {
                    Some(who) => {
                        fair.end(&client(who));
                        let next = fair.next(&CONFIG);
                        let name = |found: &Client| ["a", "b", "c"].into_iter().find(|name| client(name) == *found);
                        next.map_or_else(String::new, |(ticket, next)| format!("{}{ticket}", name(&next).unwrap()))
                    }
                    None => {
                        ticket += 1;
                        match fair.arrive(ticket, &client(who), &CONFIG) {
                            Arrival::Runs => "runs".to_owned(),
                            Arrival::Waits => "waits".to_owned(),
                            Arrival::Displaces(other) => format!("displaces{other}"),
                            Arrival::Refused => "refused".to_owned(),
                        }
                    }
                };
                assert_eq!(found, expected, "{what}: {event} of {events}");
                assert!(fair.running() <= CONFIG.running_max && fair.waiting.len() <= CONFIG.waiting_max, "{what}");
            }
        }
    }

    #[test]
    fn nothing_is_remembered_of_clients_that_are_gone() {
        let mut fair = Fair::default();
        for n in 0..1_000 {
            let client = client(&n.to_string());
            assert_eq!(fair.arrive(n, &client, &CONFIG), Arrival::Runs);
            fair.end(&client);
        }
        assert!(fair.running.is_empty() && fair.waiting.is_empty() && fair.last_start.is_empty());
    }

    #[tokio::test]
    async fn a_heavy_client_starves_nobody_and_who_goes_away_leaves_its_place() {
        let waiting = Gauge::default();
        let queue = Queue::new(CONFIG, waiting.clone());
        let (heavy_client, light_client) = (client("heavy"), client("light"));
        let heavy = [queue.admit(&heavy_client).await.unwrap(), queue.admit(&heavy_client).await.unwrap()];
        let third = queue.admit(&heavy_client);
        tokio::pin!(third);
        assert!(futures::poll!(third.as_mut()).is_pending());
        let light = queue.admit(&light_client).await.unwrap();
        {
            let gone = queue.admit(&light_client);
            tokio::pin!(gone);
            assert!(futures::poll!(gone.as_mut()).is_pending());
            assert_eq!(waiting.get(), 2);
        }
        assert_eq!(waiting.get(), 1);
        drop(light);
        assert!(futures::poll!(third.as_mut()).is_pending(), "a free permit is not for who has its share");
        drop(heavy);
        drop(third.await.unwrap());
        assert_eq!(waiting.get(), 0);
        assert_eq!(queue.state().fair.running(), 0);
        assert!(queue.state().wakers.is_empty());
    }
}

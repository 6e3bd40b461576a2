//! The service as a program has it: real time, real sockets, a database in a folder.
//!
//! Not here: what it is to do.

use std::path::Path;
use std::time::Duration;

use alerting::alert::PostedAlert;
use alerting::config;
use alerting::engine::{AlertFilter, META_ALERT};
use alerting::repository::Repository;
use alerting::service::{Alerting, AlertingHandle, Dependencies, Settings};
use model::time::Clock;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Nothing here takes so long; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// The service on a database in a folder, with its real senders.
pub(crate) struct Running {
    pub(crate) handle: AlertingHandle,
    end: CancellationToken,
    task: JoinHandle<()>,
}

impl Running {
    pub(crate) fn start(folder: &Path, text: &str) -> Self {
        let parsed = config::parse(text);
        let config = parsed.config.unwrap_or_else(|| panic!("{:?}", parsed.problems));
        let repository = Repository::open(&folder.join("alerting.sqlite"), "default").unwrap();
        let dependencies = Dependencies { repository, clock: Clock::System, sender: None };
        let (service, handle) = Alerting::build(config, &Settings::default(), dependencies).unwrap();
        let end = CancellationToken::new();
        let task = tokio::spawn(service.run(end.clone()));
        Self { handle, end, task }
    }

    pub(crate) async fn post(&self, alert: PostedAlert) {
        assert_eq!(self.handle.post_alerts(vec![alert]).await.unwrap().accepted, 1);
    }

    pub(crate) async fn fire(&self, name: &str) {
        self.post(PostedAlert { labels: [("alertname", name)].into_iter().collect(), ..PostedAlert::default() }).await;
    }

    /// What the alert about dead letters says, once it is there.
    pub(crate) async fn dead_letter(&self) -> String {
        let mut said = None;
        until("a message is given up", async || {
            let alerts = self.handle.alerts(AlertFilter::default()).await.unwrap();
            let meta = alerts.into_iter().find(|view| view.alert.labels.get("alertname") == META_ALERT);
            said = meta.map(|view| view.alert.annotations.get("description").to_owned());
            said.is_some()
        })
        .await;
        said.unwrap()
    }

    pub(crate) async fn stop(self) {
        self.end.cancel();
        self.task.await.unwrap();
        assert!(self.handle.counts().await.is_err(), "an ended service answers so");
    }
}

pub(crate) async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, waiting).await.is_ok(), "{what}");
}

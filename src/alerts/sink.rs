//! From what rules and SLOs notice to alerts that are routed: a bounded queue and one task that posts.
//!
//! What finds the queue full is refused, and whoever noticed it tells it again. Not here: who is told.

use alerting::alert::PostedAlert;
use alerting::error::AlertingError;
use alerting::service::AlertingHandle;
use model::time::Timestamp;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use slo::engine::Sink;
use slo::rules::state::{Labels, Notice};
use tokio::sync::mpsc;

/// Deliveries that wait to be posted; each is what one group or one round of SLOs noticed.
const QUEUE_MAX: usize = 64;

/// Pause before a post is tried again, such as on a full disk.
const RETRY_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

type Queue = mpsc::Sender<Vec<PostedAlert>>;

/// Where rules and SLOs put what they notice. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Notices {
    queue: Queue,
    external_url: String,
}

impl Notices {
    pub(super) fn new(external_url: String) -> (Self, mpsc::Receiver<Vec<PostedAlert>>) {
        let (queue, posts) = mpsc::channel(QUEUE_MAX);
        (Self { queue, external_url }, posts)
    }

    /// Deliveries that wait.
    pub(super) fn waiting(&self) -> usize {
        self.queue.max_capacity() - self.queue.capacity()
    }
}

/// The page that shows what an alert comes from: its SLO, or all alerts of its rule.
fn generator_url(external_url: &str, labels: &Labels) -> String {
    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    if let (Some(slo), true) = (labels.get("slo"), labels.contains_key("burn")) {
        return format!("{external_url}/api/v1/slos/{}", encoded(slo));
    }
    let name = labels.get("alertname").map_or("", String::as_str);
    let filter = format!("alertname={}", alerting::labels::quoted(name));
    format!("{external_url}/api/v1/alerts?filter={}", encoded(&filter))
}

fn posted(notice: Notice, external_url: &str) -> PostedAlert {
    PostedAlert {
        generator_url: generator_url(external_url, &notice.labels),
        labels: notice.labels.into_iter().collect(),
        annotations: notice.annotations.into_iter().collect(),
        starts_at: Some(Timestamp(notice.starts_at)),
        ends_at: Some(Timestamp(notice.ends_at)),
    }
}

impl Sink for Notices {
    fn take(&mut self, notices: Vec<Notice>, _now: Timestamp) -> Result<(), String> {
        let alerts = notices.into_iter().map(|notice| posted(notice, &self.external_url)).collect();
        self.queue.try_send(alerts).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => format!("{QUEUE_MAX} deliveries wait already"),
            mpsc::error::TrySendError::Closed(_) => "alerting has ended".to_owned(),
        })
    }
}

/// Posts until every sender is gone, in order: an end must not overtake its beginning.
pub(super) async fn post(mut posts: mpsc::Receiver<Vec<PostedAlert>>, handle: AlertingHandle) {
    while let Some(alerts) = posts.recv().await {
        loop {
            match handle.post_alerts(alerts.clone()).await {
                Ok(posted) => {
                    for reason in posted.refused {
                        tracing::warn!(reason, "an alert of a rule or an SLO was refused");
                    }
                    break;
                }
                Err(AlertingError::Closed) => return,
                Err(error) if error.is_retryable() => {
                    tracing::warn!(%error, "alerts could not be kept: they are posted again");
                    tokio::time::sleep(RETRY_PAUSE).await;
                }
                Err(error) => {
                    tracing::error!(%error, "alerts could not be posted");
                    break;
                }
            }
        }
    }
}

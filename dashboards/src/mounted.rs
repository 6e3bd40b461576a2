//! Routes that other parts bring along, behind the same tokens as everything else.
//!
//! Alerting starts after the store, so its paths are known before its routes are there. Its state is one tenant's: a
//! token of another is refused, whatever it may do otherwise. Not here: what the routes answer.

use axum::Router;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use http::{Method, StatusCode};
use model::tenant::TenantId;
use tower::ServiceExt as _;

use crate::auth::Scope;
use crate::{Doors, error};

/// Where senders of alerts post them.
const POST_ALERTS: &str = "/alertmanager/api/v2/alerts";

/// Where Slack says that a button was pressed. Its requests carry no token: their signature says whose they are, and the
/// route looks at that before anything else.
pub(crate) const SLACK: &str = "/api/v1/slack/interactions";

/// Routes and whose state they show.
pub(crate) struct Mounted {
    pub(crate) router: Router,
    pub(crate) tenant: TenantId,
}

/// What a request needs: alerts are sent as telemetry is, everything else is asked or operated.
fn scope(method: &Method, path: &str) -> Scope {
    if *method == Method::POST && path == POST_ALERTS { Scope::Ingest } else { Scope::Query }
}

/// Hands a request on, if its token allows it.
pub(crate) async fn alerting(State(doors): State<Doors>, request: Request) -> Response {
    let tenant = match request.uri().path() {
        SLACK => None,
        path => match doors.tenant(request.headers(), scope(request.method(), path)) {
            Ok(tenant) => Some(tenant),
            Err(response) => return *response,
        },
    };
    if let Err(response) = doors.opened() {
        return *response;
    }
    let Some(mounted) = doors.0.alerting.get() else {
        let hint = Some("start it with --alertmanager-config, --rules or --slos");
        return error(StatusCode::NOT_FOUND, "not_found", "this server watches nothing", hint);
    };
    if tenant.is_some_and(|tenant| tenant != mounted.tenant) {
        let message = "alerts and SLOs of this server are another tenant's";
        return error(StatusCode::FORBIDDEN, "permission_denied", message, None);
    }
    // What this router found in the path is not for the other one, which has names of its own for it.
    let (mut parts, body) = request.into_parts();
    parts.extensions.clear();
    let answered = mounted.router.clone().oneshot(Request::from_parts(parts, body)).await;
    answered.into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_are_posted_as_telemetry_is() {
        for (method, path, want) in [
            (Method::POST, "/alertmanager/api/v2/alerts", Scope::Ingest),
            (Method::GET, "/alertmanager/api/v2/alerts", Scope::Query),
            (Method::POST, "/alertmanager/api/v2/silences", Scope::Query),
            (Method::DELETE, "/alertmanager/api/v2/silence/x", Scope::Query),
            (Method::GET, "/api/v1/slos", Scope::Query),
        ] {
            assert_eq!(scope(&method, path), want, "{method} {path}");
        }
    }
}

//! The routes, without a socket.

use std::sync::Arc;

use axum::body::Body;
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use model::tenant::TenantId;
use tower::ServiceExt as _;

use crate::auth::{Authenticator, Token};
use crate::{Deps, Doors, Export, Readiness, ReadyState};

struct Fixed(ReadyState);

impl Readiness for Fixed {
    fn state(&self) -> ReadyState {
        self.0
    }
}

fn doors(state: ReadyState, tokens: Vec<Token>) -> Doors {
    Doors::new(Deps {
        readiness: Arc::new(Fixed(state)),
        authenticator: Arc::new(Authenticator::new(tokens)),
        limits: query::Limits::default(),
        export: Export::default(),
        send_timeout: std::time::Duration::from_secs(60),
        reload: Arc::new(|| Err("godseye.yaml:3:5: unknown key".to_owned())),
    })
}

async fn ask(doors: &Doors, method: &str, path: &str, token: Option<&str>) -> (StatusCode, String) {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    let response = doors.router().oneshot(request.body(Body::from("SELECT 1")).unwrap()).await.unwrap();
    assert_eq!(response.headers()["x-content-type-options"], "nosniff", "{path}");
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn before_the_store_is_open_probes_answer_and_nothing_else() {
    let doors = doors(ReadyState::Replaying { bytes_done: 5, bytes_total: 10 }, Vec::new());
    for (method, path, status, part) in [
        ("GET", "/healthz", 200, "ok"),
        ("GET", "/readyz", 503, "\"replayed_bytes\":5"),
        ("GET", "/metrics", 503, "replaying"),
        ("POST", "/api/v1/sql", 503, "replaying"),
        ("GET", "/api/v1/tables", 503, "replaying"),
        ("GET", "/api/v1/attributes?table=spans", 503, "replaying"),
        ("GET", "/api/v1/tail?table=spans", 503, "replaying"),
        ("GET", "/api/v1/sql", 405, ""),
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/", 200, "/api/v1/sql"),
        ("POST", "/-/reload", 422, "godseye.yaml:3:5"),
        ("POST", "/-/rebuild-derived", 503, "replaying"),
    ] {
        let (found, body) = ask(&doors, method, path, None).await;
        assert_eq!(found.as_u16(), status, "{method} {path}: {body}");
        assert!(body.contains(part), "{method} {path}: {body}");
    }
}

#[tokio::test]
async fn a_token_is_asked_for_before_anything_else() {
    let token = |secret: &str, query| Token {
        secret: secret.to_owned(),
        tenant: TenantId::new("acme").unwrap(),
        ingest: true,
        query,
    };
    let doors = doors(ReadyState::Draining, vec![token("reader", true), token("writer", false)]);
    for (method, path, token, status) in [
        ("POST", "/api/v1/sql", None, 401),
        ("POST", "/api/v1/sql", Some("wrong"), 401),
        ("POST", "/api/v1/sql", Some("writer"), 403),
        ("POST", "/api/v1/sql", Some("reader"), 503),
        ("POST", "/-/reload", None, 401),
        ("POST", "/-/reload", Some("writer"), 403),
        ("POST", "/-/reload", Some("reader"), 422),
        ("POST", "/-/rebuild-derived", None, 401),
        ("POST", "/-/rebuild-derived", Some("writer"), 403),
        ("POST", "/-/rebuild-derived", Some("reader"), 503),
        ("GET", "/metrics", None, 401),
        ("GET", "/metrics", Some("wrong"), 401),
        ("GET", "/metrics", Some("writer"), 403),
        ("GET", "/metrics", Some("reader"), 503),
        // Probes have no credential.
        ("GET", "/healthz", None, 200),
        ("GET", "/readyz", None, 503),
    ] {
        let (found, body) = ask(&doors, method, path, token).await;
        assert_eq!(found.as_u16(), status, "{path} {token:?}: {body}");
    }
    for path in ["/api/v1/tables", "/api/v1/attributes?table=spans", "/api/v1/tail?table=spans"] {
        for (token, status) in [(None, 401), (Some("writer"), 403), (Some("reader"), 503)] {
            assert_eq!(ask(&doors, "GET", path, token).await.0.as_u16(), status, "{path} {token:?}");
        }
    }
}

//! Alerting: from alerts to the people who should know, as Alertmanager's users expect it.
//!
//! Configuration, matchers, routing, grouping, inhibition, silences, the notification log, templates,
//! senders and the Alertmanager API, over state that survives a restart. Not here: what makes an alert
//! (rules and SLOs post theirs like any client), and telemetry.

pub mod alert;
pub mod api;
pub mod config;
pub mod digest;
pub mod dispatch;
pub mod engine;
pub mod error;
pub mod inhibition;
pub mod instant;
pub mod interval;
pub mod labels;
pub mod matcher;
pub mod notification;
pub mod notify;
pub mod outbox;
pub mod repository;
pub mod routing;
pub mod secret;
pub mod service;
pub mod silence;
pub mod slack_action;
pub mod template;

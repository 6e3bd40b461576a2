//! Rules in Prometheus' files: what is asked when, and the life of the alerts that the answers make.
//!
//! A rule file is read with every error at once ([`file`]), a group runs in slots of its interval
//! ([`group`]), and an answer moves alerts between inactive, pending and firing ([`state`]) as Prometheus
//! does. [`unit`] are tests of rules, in promtool's format. Asking, expanding templates and storing recorded series are traits. Not here: where alerts go.

pub mod file;
pub mod group;
pub mod state;
pub mod unit;

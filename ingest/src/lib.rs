//! The write path: receive → admit → decode to Arrow → log → acknowledge.
//!
//! See this folder's README for the flow with its queues. Not here: storage (crate `store`) and
//! anything that reads.
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test fails by panicking"))]

pub mod admission;
pub mod decode;
pub mod encode;
pub mod export;
pub mod group;
pub mod json;
pub mod pipeline;
pub mod receiver;
pub mod series;

#[cfg(test)]
mod identity_tests;

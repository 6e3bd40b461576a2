//! The arithmetic against an independent implementation, over many targets and counts.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::cast_precision_loss, reason = "the other implementation counts in doubles")]

use proptest::prelude::*;
use slo::burn::{budget, rate_milli, workbook};
use slo::counts::Events;
use slo::duration::Shorthand;
use slo::openslo::{Method, Share};
use slo::window::Window;
use slokit::{BurnRate, MwmbrConfig, Objective, Slo, Window as Other};

#[test]
fn the_tables_are_the_same() {
    let theirs = MwmbrConfig::sre_default();
    let windows: Vec<_> = theirs.lookback_windows();
    assert!(!windows.is_empty());
    let mut found: Vec<(i64, i64, u64)> = Vec::new();
    for severity in [slokit::Severity::Page, slokit::Severity::Ticket] {
        for window in theirs.for_severity(severity) {
            let ms = |window: Other| i64::try_from(window.as_secs()).unwrap() * 1_000;
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small positive number")]
            found.push((ms(window.long), ms(window.short), (window.factor * 1e3).round() as u64));
        }
    }
    found.sort_unstable();
    let mut ours: Vec<(i64, i64, u64)> =
        workbook().iter().map(|rung| (rung.long_ms, rung.short_ms.unwrap(), rung.threshold_milli)).collect();
    ours.sort_unstable();
    assert_eq!(ours, found);
}

proptest! {
    #[test]
    fn burn_rates_and_budgets_agree(percent in 500_000_u32..999_999, bad in 0_u64..1_000_000, good in 0_u64..1_000_000) {
        let total = bad + good;
        prop_assume!(total > 0);
        let target = Share(percent * 1_000);
        let theirs = Slo::new(Objective::ratio(target.ratio()).unwrap(), Other::days(30));
        let events = Events { good, total };

        let rate = BurnRate::from_error_ratio(bad as f64 / total as f64, &theirs).value();
        let ours = rate_milli(events, target).unwrap() as f64 / 1e3;
        prop_assert!((ours - rate).abs() <= 0.001 + rate * 1e-6, "{ours} {rate}");

        let window = Window::rolling(Shorthand::parse("30d").unwrap()).unwrap();
        let period = window.period(model::time::Timestamp(0));
        let found = budget(target, Method::Occurrences, period, None, events);
        let allowed = theirs.error_budget(total as f64).allowed_bad_events();
        prop_assert!((found.allowed as f64 - allowed).abs() <= 1.0 + 1e-6, "{} {allowed}", found.allowed);
        prop_assert!(found.allowed as f64 <= allowed + 1e-3, "rounded down");
    }
}

//! Templates and what they print.

use super::*;
use crate::labels::LabelSet;
use crate::notification::{Reason, Status, ToldAlert};

fn labels(text: &str) -> LabelSet {
    text.split(',').filter_map(|pair| pair.split_once('=')).collect()
}

/// One alert that fires and one that is over.
fn notification() -> Notification {
    let alert = |text: &str, status, ends_at| ToldAlert {
        status,
        labels: labels(text),
        annotations: labels("summary=It <b>burns</b>,runbook_url=https://example.com/r?a=1&b=2"),
        starts_at: 1_772_694_489_000_000_000,
        ends_at,
        generator_url: "http://prometheus/graph".to_owned(),
    };
    Notification {
        key: "k".to_owned(),
        channel: "c/slack/0".to_owned(),
        receiver: "team x".to_owned(),
        group_key: "{}:{alertname=\"Burn\"}".to_owned(),
        group_labels: labels("alertname=Burn"),
        alerts: vec![
            alert("alertname=Burn,job=a,severity=critical", Status::Firing, None),
            alert("alertname=Burn,job=b,severity=critical", Status::Resolved, Some(1_772_694_549_000_000_000)),
        ],
        reason: Reason::First,
        left_out: 0,
        at: 0,
    }
}

#[test]
fn fields_methods_and_functions_are_those_of_alertmanager() {
    let templates = Templates::new(&[]).unwrap();
    let data = Data::new(&notification(), "http://godseye");
    let rows = [
        ("plain { text }", "plain { text }"),
        ("{{ .Status | toUpper }} {{ .Receiver | title }}", "FIRING Team X"),
        ("{{ .Alerts | len }} {{ .Alerts.Firing | len }} {{ len .Alerts.Resolved }}", "2 1 1"),
        ("{{ range .Alerts }}{{ .Labels.job }}:{{ .Status }} {{ end }}", "a:firing b:resolved "),
        ("{{ range .Alerts.Resolved }}{{ .Labels.job }}{{ end }}", "b"),
        ("{{ range $i, $a := .Alerts.Firing }}{{ $i }}{{ $a.Labels.job }}{{ end }}", "0a"),
        ("{{ .GroupLabels.alertname }}|{{ .CommonLabels.nothing }}|", "Burn||"),
        ("{{ if .CommonLabels.nothing }}yes{{ else }}no{{ end }}", "no"),
        ("{{ .CommonLabels.SortedPairs.Names | join \",\" }}", "alertname,severity"),
        ("{{ .CommonLabels.Values | join \",\" }}", "Burn,critical"),
        (
            "{{ range .CommonLabels.SortedPairs }}{{ .Name }}={{ .Value }};{{ end }}",
            "alertname=Burn;severity=critical;",
        ),
        ("{{ (.CommonLabels.Remove (stringSlice \"alertname\")).Names | join \",\" }}", "severity"),
        ("{{ with .CommonLabels.Remove .GroupLabels.Names }}{{ .Values | join \" \" }}{{ end }}", "critical"),
        ("{{ range $k, $v := .GroupLabels }}{{ $k }}:{{ $v }}{{ end }}", "alertname:Burn"),
        ("{{ (index .Alerts 0).StartsAt.Format \"15:04\" }}", "07:08"),
        ("{{ (index .Alerts 0).StartsAt.Unix }}", "1772694489"),
        ("{{ (index .Alerts 0).EndsAt.IsZero }}", "true"),
        (
            "{{ with index .Alerts 1 }}{{ .EndsAt.Sub .StartsAt }} {{ humanizeDuration (.EndsAt.Sub .StartsAt) }}{{ end }}",
            "1m0s 1m 0s",
        ),
        ("{{ (index .Alerts 0).StartsAt | tz \"Europe/Berlin\" | date \"15:04 MST\" }}", "08:08 CET"),
        ("{{ $a := .Alerts }}{{ len $a.Firing }}", "1"),
        ("{{ $ := .CommonLabels }}{{ $.severity }}", "critical"),
        ("{{ reReplaceAll \"(cri)(t)\" \"$2-${1}x\" .CommonLabels.severity }}", "t-crixical"),
        ("{{ match \"^crit\" .CommonLabels.severity }}", "true"),
        ("{{ .GroupLabels | toJson }}", "{\"alertname\":\"Burn\"}"),
        ("{{ \"a b\" | urlEncode | urlUnescape }}", "a b"),
        ("{{ humanizeDuration 93784 }} {{ humanizeDuration 0.0015 }} {{ humanizeDuration 0 }}", "1d 2h 3m 4s 1.5ms 0s"),
        ("{{ define \"mine\" }}[{{ .Status }}]{{ end }}{{ template \"mine\" . }}", "[firing]"),
        ("{{ template \"__subject\" . }}", "[FIRING:1] Burn (critical)"),
        ("{{ template \"slack.default.title\" . }}", "[FIRING:1] Burn (critical)"),
        ("{{ template \"slack.default.color\" . }}", "danger"),
        ("{{ template \"pagerduty.default.severity\" . }}", "critical"),
        ("{{ template \"slack.default.titlelink\" . }}", "http://godseye/api/v1/alerts"),
        ("{{ safeHtml \"<b>\" }}", "<b>"),
    ];
    for (source, want) in rows {
        let got = templates.expand(source, &data).unwrap_or_else(|error| panic!("{source}: {error}"));
        assert_eq!(got, want, "{source}");
    }
}

#[test]
fn what_fails_is_an_error_and_what_never_ends_does() {
    let templates = Templates::new(&[(
        "user.tmpl".to_owned(),
        "{{ define \"loop\" }}{{ template \"loop\" . }}{{ end }}".to_owned(),
    )])
    .unwrap();
    let data = Data::new(&notification(), "");
    for source in [
        "{{",
        "{{ .Nonsense }}",
        "{{ (index .Alerts 0).Nonsense }}",
        "{{ nonsense }}",
        "{{ template \"nowhere\" . }}",
        "{{ template \"loop\" . }}",
        "{{ range 1000000000 }}x{{ end }}",
        "{{ range 90000 }}{{ printf \"%100s\" \"x\" }}{{ end }}",
        "{{ match \"(\" \"x\" }}",
        "{{ index .Alerts 7 }}",
    ] {
        assert!(templates.expand(source, &data).is_err(), "{source}");
        assert!(templates.expand_html(source, &data).is_err(), "{source}");
    }
    let error = Templates::new(&[("bad.tmpl".to_owned(), "\n{{ if }}".to_owned())]).unwrap_err().to_string();
    assert!(error.contains("bad.tmpl"), "{error}");
}

#[test]
fn html_escapes_what_comes_from_telemetry() {
    let templates = Templates::new(&[]).unwrap();
    let mut hostile = notification();
    hostile.alerts[0].labels.insert("job", "<script>alert(1)</script>");
    for alert in &mut hostile.alerts {
        alert.labels.insert("quote", "it's; reboot");
    }
    hostile.alerts[0].annotations.insert("runbook_url", "javascript:alert(1)");
    let data = Data::new(&hostile, "http://godseye");
    let html = templates.expand_html("{{ template \"email.default.html\" . }}", &data).unwrap();
    assert!(html.contains("&lt;script&gt;alert(1)") && !html.contains("<script>"), "{html}");
    assert!(!html.contains("javascript:"), "{html}");
    assert!(html.contains("It &lt;b&gt;burns&lt;/b&gt;"), "{html}");
    let text = templates.expand("{{ template \"email.default.text\" . }}", &data).unwrap();
    assert!(text.contains(r#"'quote="it'\''s; reboot"'"#), "one argument for a shell: {text}");
    assert!(
        text.contains("Silence: godseye silence add --server 'http://godseye' --duration 2h --comment WHY '")
            && text.contains("Since 2026-03-05"),
        "{text}"
    );
}

#[test]
fn later_templates_replace_earlier_ones() {
    let mine = ("mine.tmpl".to_owned(), "{{ define \"__subject\" }}mine{{ end }}".to_owned());
    let templates = Templates::new(&[mine]).unwrap();
    let data = Data::new(&notification(), "");
    assert_eq!(templates.expand("{{ template \"slack.default.title\" . }}", &data).unwrap(), "mine");
}

//! Configurations and what is said about them.

use super::*;
use crate::secret::SecretSource;

const FULL: &str = r#"
global:
  resolve_timeout: 3m
  smtp_from: 'am@example.com'
  smtp_smarthost: 'mail.example.com:587'
  smtp_auth_password: "pa55-one"
  slack_api_url: 'https://hooks.slack.com/services/pa55-two'
  opsgenie_api_key: pa55-three
templates: ['templates/*.tmpl']
route:
  receiver: default
  group_by: ['alertname', cluster]
  group_wait: 1s
  group_interval: 1m30s
  repeat_interval: 4h
  routes:
    - matchers: ['severity="critical"', team=~"a|b"]
      receiver: page
      continue: true
      mute_time_intervals: [weekend]
      routes:
        - match: {owner: x}
          match_re: {service: 'db|cache'}
          group_by: ['...']
    - matchers: severity="info"
      active_time_intervals: [office]
inhibit_rules:
  - source_match: {severity: critical}
    target_match_re: {severity: warning|info}
    equal: [alertname]
  - name: named
    source_matchers: [a="b"]
    target_matchers: [c!="d"]
time_intervals:
  - name: office
    time_intervals:
      - times: [{start_time: '09:00', end_time: '17:00'}]
        weekdays: ['monday:friday']
        location: Europe/Berlin
mute_time_intervals:
  - name: weekend
    time_intervals: [{weekdays: [saturday, sunday]}]
receivers:
  - name: default
    slack_configs:
      - channel: '#alerts'
        fields: [{title: a, value: b, short: true}]
    webhook_configs:
      - url: http://127.0.0.1:5001/hook?token=pa55-four
        max_alerts: 3
        signing_secret: pa55-five
        http_config:
          basic_auth: {username: u, password: pa55-six}
  - name: page
    pagerduty_configs:
      - routing_key: pa55-seven
    email_configs:
      - to: 'a@example.com, b@example.com'
        headers: {Subject: hello}
        auth_password_file: /run/secrets/smtp
    opsgenie_configs:
      - api_key: pa55-eight
"#;

#[test]
fn a_full_file_is_read_and_its_secrets_show_nowhere() {
    let parsed = parse(FULL);
    let config = parsed.config.clone().unwrap_or_else(|| panic!("{:#?}", parsed.problems));
    let said: Vec<String> = parsed.problems.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 1, "{said:#?}");
    assert!(said[0].contains("receivers[1].opsgenie_configs: GodsEye does not send to opsgenie"), "{said:?}");

    assert_eq!(config.global.resolve_timeout, Duration::from_secs(180));
    assert_eq!(config.route.group_interval, Some(Duration::from_secs(90)));
    let page = &config.route.routes[0];
    assert_eq!(crate::matcher::format_all(&page.matchers), r#"{severity="critical",team=~"a|b"}"#);
    assert_eq!(crate::matcher::format_all(&page.routes[0].matchers), r#"{owner="x",service=~"^(?:db|cache)$"}"#);
    assert!(page.continues && page.routes[0].group_by_all);
    assert_eq!(config.time_intervals.len(), 2);
    assert_eq!(config.inhibit_rules[1].name, "named");
    let kinds: Vec<&str> =
        config.receivers.iter().flat_map(|receiver| receiver.integrations.iter().map(Integration::kind)).collect();
    assert_eq!(kinds, ["webhook", "slack", "email", "pagerduty", "opsgenie"]);
    let Integration::Email(email) = &config.receivers[1].integrations[0] else { panic!("an email") };
    assert_eq!(email.auth_password, Some(SecretSource::File("/run/secrets/smtp".into())));
    assert_eq!(email.smarthost, "mail.example.com:587");

    let shown = format!("{parsed:?}");
    assert!(!shown.contains("pa55"), "{shown}");
    assert!(config.masked.contains("channel: '#alerts'") && !config.masked.contains("pa55"), "{}", config.masked);
    let again = parse(&config.masked.replace("<secret>", "http://x"));
    // The unsupported receivers' lists are masked whole, so they are no lists any more.
    let wrong: Vec<&Problem> = again.problems.iter().filter(|one| !one.path.ends_with("opsgenie_configs")).collect();
    assert!(wrong.is_empty(), "what is shown is YAML still: {wrong:?} {}", config.masked);
}

#[test]
fn everything_wrong_is_said_at_once_with_its_place() {
    let text = "global:
  resolve_timout: 5m
  smtp_require_tls: maybe
route:
  receiver: nobody
  group_by: [a, a, '...']
  group_interval: 0s
  repeat_interval: soon
  matchers: [a=b]
  mute_time_intervals: [never]
  routes:
    - match_re: {a: '('}
    - matchers: ['a=\"b']
      recever: default
receivers:
  - name: default
    webhook_configs:
      - send_resolved: true
      - url: ftp://example.com/pa55
    slack_configs: [{title: '{{ if }}'}]
  - name: default
  - email_configs:
      - to: a
inhibit_rules:
  - equal: x
time_intervals:
  - name: t
    time_intervals:
      - times: [{start_time: '17:00', end_time: '09:00'}]
        location: Mars
        months: [13]
mystery: 1
";
    let parsed = parse(text);
    assert!(parsed.config.is_none());
    let said: Vec<String> = parsed.problems.iter().map(ToString::to_string).collect();
    let said = said.join("\n");
    for want in [
        "2:3: error: global.resolve_timout: unknown key `resolve_timout`, did you mean `resolve_timeout`?",
        "3:21: error: global.smtp_require_tls: expected true or false",
        "5:13: error: route.receiver: there is no receiver of the name `nobody`",
        "6:13: error: route.group_by: `...` means every label, so it must stand alone",
        "6:13: error: route.group_by: label `a` stands here twice",
        "7:19: error: route.group_interval: must be longer than zero",
        "8:20: error: route.repeat_interval: expected a duration such as",
        "error: route: the root route must match every alert: it has no matchers",
        "10:24: error: route.mute_time_intervals: there is no time interval of the name `never`",
        "error: route.routes[0].match_re: \"^(?:()$\" is not a regular expression",
        "13:18: error: route.routes[1].matchers[0]:",
        "14:7: error: route.routes[1].recever: unknown key `recever`, did you mean `receiver`?",
        "error: receivers[0].webhook_configs[0]: `url` or `url_file` is missing",
        "19:14: error: receivers[0].webhook_configs[1].url: expected an address such as https://example.com/path",
        "error: receivers[0].slack_configs[0]: `api_url` is missing, and so is `global.slack_api_url`",
        "error: receivers[0].slack_configs[0].title: template title: ",
        "error: receivers[1]: there are two receivers of the name `default`",
        "error: receivers[2]: `name` is missing",
        "error: receivers[2].email_configs[0]: `from` is missing, and so is `global.smtp_from`",
        "error: inhibit_rules[0].equal: expected a list, found a single value",
        "error: time_intervals[0].time_intervals[0].times[0]: 17:00 is not before 09:00",
        "error: time_intervals[0].time_intervals[0].location: there is no time zone \"Mars\"",
        "error: time_intervals[0].time_intervals[0].months[0]: \"13\" is no month",
        "32:1: error: mystery: unknown key `mystery`",
    ] {
        assert!(said.contains(want), "missing: {want}\n{said}");
    }
    assert!(!said.contains("pa55"), "{said}");
}

#[test]
fn a_file_without_route_routes_by_severity_if_its_receivers_say_so() {
    let config = |names: &[&str]| {
        let receivers: Vec<String> =
            names.iter().map(|name| format!("{{name: {name}, webhook_configs: [{{url: 'http://x/pa55'}}]}}")).collect();
        parse(&format!("receivers: [{}]", receivers.join(", ")))
    };
    for (names, want) in [
        (&["team"][..], &[][..]),
        (&["page", "team"], &[("severity=\"critical\"", "page")]),
        (&["digest", "team", "other", "page"], &[("severity=\"critical\"", "page"), ("severity=\"info\"", "digest")]),
    ] {
        let parsed = config(names);
        let config = parsed.config.unwrap_or_else(|| panic!("{:?}", parsed.problems));
        assert_eq!(config.route.receiver.as_deref(), Some("team"));
        let routes: Vec<(String, &str)> = config
            .route
            .routes
            .iter()
            .map(|route| (route.matchers[0].to_string(), route.receiver.as_deref().unwrap()))
            .collect();
        let routes: Vec<(&str, &str)> =
            routes.iter().map(|(matcher, receiver)| (matcher.as_str(), *receiver)).collect();
        assert_eq!(routes, want, "{names:?}");
        assert!(config.masked.contains("receiver: team") && !config.masked.contains("pa55"), "{}", config.masked);
        // What is shown is a whole configuration, and the same one.
        assert_eq!(parse(&config.masked.replace("<secret>", "http://x/")).config.unwrap().route, config.route);
    }
    let said = config(&["page", "digest"]).problems[0].to_string();
    assert!(said.contains("`route` is missing") && said.contains("`team`"), "{said}");
}

#[test]
fn a_digest_has_a_time_of_the_day() {
    let of = |digest: &str| {
        parse(&format!(
            "route: {{receiver: r}}\nreceivers: [{{name: r, email_configs: [{{to: a@b.c, from: d@e.f, smarthost: 'g:25', digest: {digest}}}]}}]"
        ))
    };
    for (digest, minute, zone) in [
        ("08:00", 480, "UTC"),
        ("{at: '23:59', location: Europe/Berlin}", 1_439, "Europe/Berlin"),
        ("'24:00'", 0, "UTC"),
    ] {
        let config = of(digest).config.unwrap();
        let Integration::Email(email) = &config.receivers[0].integrations[0] else { panic!() };
        let daily = email.digest.as_ref().unwrap();
        assert_eq!((daily.minute, daily.zone.iana_name()), (minute, Some(zone)), "{digest}");
        assert!(email.send_resolved && email.html.contains("email.digest.html"), "{email:?}");
    }
    for (digest, want) in [
        ("24h", "\"24h\" is no time of the day"),
        ("{location: UTC}", "`at` is missing"),
        ("{at: '08:00', location: Mars}", "no time zone \"Mars\""),
        ("{at: '08:00', every: week}", "unknown key `every`"),
    ] {
        let parsed = of(digest);
        let said: Vec<String> = parsed.problems.iter().map(ToString::to_string).collect();
        assert!(said.iter().any(|said| said.contains(want)), "{digest}: {said:?}");
    }
}

#[test]
fn what_is_no_configuration_is_refused_without_a_crash() {
    let bomb = format!(
        "a: &a [x,x,x,x,x,x,x,x]\n{}",
        (0..9)
            .map(|i| {
                let (from, to) = ((b'a' + i) as char, (b'b' + i) as char);
                format!("{to}: &{to} [*{from},*{from},*{from},*{from},*{from},*{from},*{from},*{from}]\n")
            })
            .collect::<String>()
    );
    let deep = format!("route: {}", "[".repeat(5_000));
    for text in
        ["", "~", "[]", "x", "a: b: c", "route: {}\n---\nroute: {}", "? [a]\n: b", "a: *b", &bomb, &deep, "\u{0}"]
    {
        let parsed = parse(text);
        assert!(parsed.config.is_none() && !parsed.problems.is_empty(), "{text:.40}");
    }
}

#[test]
fn durations_are_those_of_prometheus() {
    for (text, want) in [
        ("0", Some(0)),
        ("0s", Some(0)),
        ("5m", Some(300_000)),
        ("1h30m", Some(5_400_000)),
        ("1d", Some(86_400_000)),
        ("500ms", Some(500)),
        ("1y2w", Some(32_745_600_000)),
        ("", None),
        ("5", None),
        ("1m1h", None),
        ("1m1m", None),
        ("1.5h", None),
        ("-1s", None),
        (" 1s", None),
        ("99999999999999999999s", None),
        ("5000y", None),
    ] {
        assert_eq!(parse_duration(text), want.map(Duration::from_millis), "{text:?}");
    }
}

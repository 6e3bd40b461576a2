//! Buttons of Slack messages: what Slack sends when one is pressed, from signed bytes to what is to be done.
//!
//! Slack signs each request (<https://api.slack.com/docs/verifying-requests-from-slack>): the signature is looked at
//! before anything of the body is, over the bytes as they came. A request that was signed before this process began, or more
//! than five minutes ago, or that came already, is refused, so that one that was overheard does nothing, after a restart
//! either. Pure functions of (what is remembered, request, now). Not here: HTTP (the binary's), making the silence
//! (`service.rs`), and drawing the buttons (`notify/slack.rs`), but for what they are called.

use std::collections::HashMap;
use std::time::Duration;

use hmac::{Hmac, Mac as _};
use model::time::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::labels::LabelSet;
use crate::matcher::{Matcher, Op};
use crate::silence::Silence;

/// Bytes of a request. Slack sends the whole message back, which has at most 50 blocks.
pub const BODY_BYTES_MAX: usize = 512 * 1024;

/// How old a signature may be, and how far its clock may be ahead.
const AGE_MAX_S: i64 = 300;

/// How long a signature is remembered: longer than it is good for, with a clock that is ahead.
const REMEMBERED_S: i64 = 600;

/// Signatures that are remembered. Only good ones are, so this is how often a button is pressed in ten minutes.
const REMEMBERED_MAX: usize = 4096;

/// The version of the scheme of signatures; there is one.
const VERSION: &str = "v0";

/// What buttons there are: for how long, and what they say.
pub const BUTTONS: [(Duration, &str); 2] =
    [(Duration::from_secs(3600), "Silence 1 h"), (Duration::from_secs(8 * 3600), "Silence 8 h")];

/// Characters of a user's name that are kept.
const USER_CHARS_MAX: usize = 80;

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It cannot be told who sent it.
    #[error("{0}")]
    Unsigned(&'static str),
    /// More are remembered than there is room for.
    #[error("more than {REMEMBERED_MAX} buttons were pressed in ten minutes")]
    Full,
    /// It is signed, and nothing that a button of ours sends.
    #[error("{0}")]
    Strange(&'static str),
}

/// The signatures that came, until they are too old to come again.
#[derive(Debug)]
pub struct Seen {
    began_s: i64,
    signatures: HashMap<[u8; 32], i64>,
}

impl Seen {
    /// Nothing came yet, to a process that begins now.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self { began_s: seconds(now), signatures: HashMap::new() }
    }

    /// Whether a request is Slack's, and comes for the first time. It is remembered then.
    ///
    /// # Errors
    ///
    /// [`Refused::Unsigned`] and [`Refused::Full`].
    pub fn verify(
        &mut self,
        secret: &[u8],
        timestamp: Option<&str>,
        signature: Option<&str>,
        body: &[u8],
        now: Timestamp,
    ) -> Result<(), Refused> {
        let timestamp = timestamp.ok_or(Refused::Unsigned("X-Slack-Request-Timestamp is missing"))?;
        let signature = signature.ok_or(Refused::Unsigned("X-Slack-Signature is missing"))?;
        // Digits alone: what is signed is the text, and a second spelling would be a second signature.
        let signed_s = timestamp.bytes().all(|byte| byte.is_ascii_digit()).then(|| timestamp.parse::<i64>().ok());
        let signed_s = signed_s.flatten().ok_or(Refused::Unsigned("X-Slack-Request-Timestamp is no time"))?;
        let now_s = seconds(now);
        if now_s.abs_diff(signed_s) > AGE_MAX_S.unsigned_abs() {
            return Err(Refused::Unsigned("the request was signed more than five minutes ago, or will be"));
        }
        let tag: [u8; 32] = signature
            .strip_prefix("v0=")
            .and_then(|tag| hex::decode(tag).ok())
            .and_then(|tag| tag.try_into().ok())
            .ok_or(Refused::Unsigned("X-Slack-Signature is none of version v0"))?;
        // The comparison takes the same time wherever the two differ.
        mac(secret, timestamp, body)
            .verify_slice(&tag)
            .map_err(|_| Refused::Unsigned("the signature is not that of the signing secret"))?;
        if signed_s < self.began_s {
            return Err(Refused::Unsigned("the request is from before this server began: press the button again"));
        }
        self.signatures.retain(|_, signed_s| now_s - *signed_s <= REMEMBERED_S);
        if self.signatures.contains_key(&tag) {
            return Err(Refused::Unsigned("the request came already"));
        }
        if self.signatures.len() >= REMEMBERED_MAX {
            return Err(Refused::Full);
        }
        self.signatures.insert(tag, signed_s);
        Ok(())
    }
}

fn seconds(now: Timestamp) -> i64 {
    now.0.div_euclid(Timestamp::NANOS_PER_SECOND)
}

fn mac(secret: &[u8], timestamp: &str, body: &[u8]) -> Hmac<Sha256> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
    mac.update(format!("{VERSION}:{timestamp}:").as_bytes());
    mac.update(body);
    mac
}

/// The signature Slack would send.
#[must_use]
pub fn signature(secret: &[u8], timestamp: &str, body: &[u8]) -> String {
    format!("{VERSION}={}", hex::encode(mac(secret, timestamp, body).finalize().into_bytes()))
}

/// The short name of a group, as a button's value has it: labels are longer than that may be, and somebody else's text.
#[must_use]
pub fn group_name(group_key: &str) -> String {
    hex::encode(&Sha256::digest(group_key)[..16])
}

/// The buttons of a message about a group, as a block.
#[must_use]
pub fn buttons(group_key: &str) -> Value {
    let button = |(duration, text): &(Duration, &str)| {
        json!({
            "type": "button",
            "text": {"type": "plain_text", "text": text},
            "action_id": format!("silence_{}", duration.as_secs()),
            "value": group_name(group_key),
            "confirm": {
                "title": {"type": "plain_text", "text": format!("{text}?")},
                "text": {"type": "plain_text", "text": "Nobody is told about these alerts until then, whatever happens to them."},
                "confirm": {"type": "plain_text", "text": "Silence"},
                "deny": {"type": "plain_text", "text": "Cancel"},
                "style": "danger",
            },
        })
    };
    json!({"type": "actions", "block_id": BLOCK, "elements": BUTTONS.iter().map(button).collect::<Vec<_>>()})
}

/// The name of the block of buttons, and of the line that takes its place.
const BLOCK: &str = "godseye-silence";

/// A button that was pressed.
#[derive(Clone, Debug, PartialEq)]
pub struct Press {
    /// Who pressed it: Slack's name for the person, and the id that stays when the name changes.
    pub user: String,
    /// The id alone, for a mention.
    pub user_id: String,
    /// The short name of the group.
    pub group: String,
    /// For how long it is to be silenced.
    pub duration: Duration,
    /// Where Slack takes another form of the message.
    pub response_url: String,
    /// The message as Slack has it.
    message: Value,
}

/// Reads the body of a verified request.
///
/// # Errors
///
/// [`Refused::Strange`].
pub fn press(body: &[u8]) -> Result<Press, Refused> {
    let strange = |what| Refused::Strange(what);
    let payload = url::form_urlencoded::parse(body).find(|(name, _)| name == "payload").map(|(_, payload)| payload);
    let payload = payload.ok_or(strange("the body has no payload"))?;
    let payload: Value = serde_json::from_str(&payload).map_err(|_| strange("the payload is not JSON"))?;
    if payload["type"] != "block_actions" {
        return Err(strange("expected a payload of type block_actions"));
    }
    let action = &payload["actions"][0];
    let duration = BUTTONS.iter().map(|(duration, _)| *duration).find(|duration| {
        action["action_id"].as_str().is_some_and(|id| id == format!("silence_{}", duration.as_secs()))
    });
    let text = |value: &Value| value.as_str().map(|text| text.chars().take(USER_CHARS_MAX).collect::<String>());
    let user_id = text(&payload["user"]["id"]).ok_or(strange("the payload names no user"))?;
    let is_id = user_id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let user_id = is_id.then_some(user_id).ok_or(strange("the user's id is none of Slack's"))?;
    let name = text(&payload["user"]["username"]).or_else(|| text(&payload["user"]["name"]));
    Ok(Press {
        user: name.map_or_else(|| user_id.clone(), |name| format!("{name} ({user_id}, Slack)")),
        user_id,
        group: action["value"].as_str().ok_or(strange("the button has no value"))?.to_owned(),
        duration: duration.ok_or(strange("there is no such button"))?,
        response_url: payload["response_url"].as_str().unwrap_or_default().to_owned(),
        message: payload["message"].clone(),
    })
}

impl Press {
    /// The silence that is wanted: of what all the group's alerts have in common. `None` where they have nothing in
    /// common, since that would silence everything.
    #[must_use]
    pub fn silence(&self, common: &LabelSet, now: Timestamp) -> Option<Silence> {
        let matchers = common.iter().map(|(name, value)| Matcher::new(name, Op::Equal, value).ok());
        let matchers: Vec<Matcher> = matchers.collect::<Option<_>>()?;
        let nanos = i64::try_from(self.duration.as_nanos()).unwrap_or(i64::MAX);
        (!matchers.is_empty()).then(|| Silence {
            id: String::new(),
            matchers,
            starts_at: now,
            ends_at: now.plus_nanos(nanos),
            updated_at: now,
            created_by: self.user.clone(),
            comment: "by a button in Slack".to_owned(),
        })
    }

    /// The message without its buttons, and what became of them in their place.
    #[must_use]
    pub fn update(&self, said: &str) -> Value {
        let line = json!({"type": "context", "block_id": BLOCK, "elements": [{"type": "mrkdwn", "text": said}]});
        let replace = |blocks: &Value| -> Value {
            let blocks = blocks.as_array().map(Vec::as_slice).unwrap_or_default();
            blocks.iter().map(|block| if block["block_id"] == BLOCK { &line } else { block }).cloned().collect()
        };
        let mut update = json!({"replace_original": true, "text": self.message["text"]});
        if self.message["blocks"].is_array() {
            update["blocks"] = replace(&self.message["blocks"]);
        }
        let attachments = self.message["attachments"].as_array().map(Vec::as_slice).unwrap_or_default();
        let attachments = attachments.iter().map(|attachment| {
            let kept = |name: &str| attachment[name].clone();
            json!({"color": kept("color"), "fallback": kept("fallback"), "blocks": replace(&attachment["blocks"])})
        });
        update["attachments"] = attachments.collect();
        update
    }

    /// An answer that only the one who pressed sees.
    #[must_use]
    pub fn refusal(said: &str) -> Value {
        json!({"replace_original": false, "response_type": "ephemeral", "text": said})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"8f742231b10e8888abcd99yyyzzz85a5";
    const NOW_S: i64 = 1_531_420_618;

    fn at(seconds: i64) -> Timestamp {
        Timestamp(seconds * Timestamp::NANOS_PER_SECOND)
    }

    fn body(payload: &Value) -> Vec<u8> {
        url::form_urlencoded::Serializer::new(String::new())
            .append_pair("payload", &payload.to_string())
            .finish()
            .into()
    }

    /// The example of Slack's documentation.
    #[test]
    fn the_signature_is_slacks() {
        let body = b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c";
        let expected = "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503";
        assert_eq!(signature(SECRET, "1531420618", body), expected);
        assert_eq!(Seen::new(at(NOW_S)).verify(SECRET, Some("1531420618"), Some(expected), body, at(NOW_S)), Ok(()));
    }

    #[test]
    fn only_what_slack_signed_lately_is_taken_and_once() {
        let good = |timestamp: &str| signature(SECRET, timestamp, b"payload=%7B%7D");
        let now = NOW_S.to_string();
        let (old, ahead) = ((NOW_S - 301).to_string(), (NOW_S + 301).to_string());
        let before = (NOW_S - 200).to_string();
        let text = |value: &str| Some(value.to_owned());
        for (name, timestamp, signature, body, taken) in [
            ("good", text(&now), text(&good(&now)), "payload=%7B%7D", true),
            ("another secret", text(&now), text(&signature(b"x", &now, b"payload=%7B%7D")), "payload=%7B%7D", false),
            ("301 s old", text(&old), text(&good(&old)), "payload=%7B%7D", false),
            ("301 s ahead", text(&ahead), text(&good(&ahead)), "payload=%7B%7D", false),
            ("before the process began", text(&before), text(&good(&before)), "payload=%7B%7D", false),
            (
                "another time than was signed",
                text(&(NOW_S - 1).to_string()),
                text(&good(&now)),
                "payload=%7B%7D",
                false,
            ),
            ("the same time, spelled otherwise", text(&format!("+{now}")), text(&good(&now)), "payload=%7B%7D", false),
            ("no time", None, text(&good(&now)), "payload=%7B%7D", false),
            ("no signature", text(&now), None, "payload=%7B%7D", false),
            ("of no version", text(&now), text(good(&now).trim_start_matches("v0=")), "payload=%7B%7D", false),
            ("cut", text(&now), text(&good(&now)[..20]), "payload=%7B%7D", false),
            ("encoded anew", text(&now), text(&good(&now)), "payload=%7b%7d", false),
            ("longer", text(&now), text(&good(&now)), "payload=%7B%7D&x=1", false),
        ] {
            let mut seen = Seen::new(at(NOW_S - 100));
            let verified = seen.verify(SECRET, timestamp.as_deref(), signature.as_deref(), body.as_bytes(), at(NOW_S));
            assert_eq!(verified.is_ok(), taken, "{name}: {verified:?}");
            if taken {
                let again =
                    seen.verify(SECRET, timestamp.as_deref(), signature.as_deref(), body.as_bytes(), at(NOW_S + 60));
                assert!(again.is_err(), "{name}: it came twice");
            }
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut seen = Seen::new(at(NOW_S));
        let mut come = |number: usize, now_s: i64| {
            let (time, body) = (now_s.to_string(), number.to_string());
            let tag = signature(SECRET, &time, body.as_bytes());
            seen.verify(SECRET, Some(&time), Some(&tag), body.as_bytes(), at(now_s))
        };
        for number in 0..REMEMBERED_MAX {
            assert_eq!(come(number, NOW_S), Ok(()));
        }
        assert_eq!(come(REMEMBERED_MAX, NOW_S), Err(Refused::Full));
        assert_eq!(come(REMEMBERED_MAX, NOW_S + REMEMBERED_S + 1), Ok(()));
    }

    fn payload() -> Value {
        json!({
            "type": "block_actions",
            "user": {"id": "U123", "username": "ada"},
            "response_url": "https://hooks.slack.com/actions/T/1/x",
            "actions": [{"action_id": "silence_3600", "value": group_name("{}:{a=\"b\"}")}],
            "message": {"text": "burns", "attachments": [{"color": "#c5221f", "fallback": "burns", "id": 1, "blocks": [
                {"type": "section", "text": {"type": "mrkdwn", "text": "burns"}}, buttons("{}:{a=\"b\"}"),
            ]}]},
        })
    }

    #[test]
    fn a_press_becomes_a_silence_of_what_the_alerts_share() {
        let press = press(&body(&payload())).unwrap();
        assert_eq!(press.group, group_name("{}:{a=\"b\"}"));
        let common: LabelSet = [("alertname", "Burn"), ("who", "<!channel> \"x\"")].into_iter().collect();
        let silence = press.silence(&common, at(NOW_S)).unwrap();
        assert_eq!(silence.created_by, "ada (U123, Slack)");
        assert_eq!((silence.starts_at, silence.ends_at), (at(NOW_S), at(NOW_S + 3600)));
        assert_eq!(silence.check(at(NOW_S)), Ok(()));
        assert_eq!(press.silence(&LabelSet::default(), at(NOW_S)), None, "nothing in common would be everything");
        let update = press.update("Silenced");
        assert_eq!(update["replace_original"], true);
        let blocks = &update["attachments"][0]["blocks"];
        assert_eq!(blocks[0]["text"]["text"], "burns");
        assert_eq!(blocks[1]["elements"][0]["text"], "Silenced");
        assert!(!update.to_string().contains("silence_3600"), "{update}");
    }

    #[test]
    fn what_no_button_sends_is_refused_with_its_reason() {
        let with = |path: &str, value: Value| {
            let mut payload = payload();
            *payload.pointer_mut(path).unwrap() = value;
            body(&payload)
        };
        for (body, reason) in [
            (b"".to_vec(), "no payload"),
            (b"payload=%7B".to_vec(), "not JSON"),
            (b"payload=null".to_vec(), "block_actions"),
            (with("/type", "view_submission".into()), "block_actions"),
            (with("/actions", json!([])), "no value"),
            (with("/actions/0/action_id", "silence_1".into()), "no such button"),
            (with("/user/id", "<!channel>".into()), "none of Slack's"),
            (with("/user", Value::Null), "no user"),
        ] {
            let refused = press(&body).unwrap_err().to_string();
            assert!(refused.contains(reason), "{reason}: {refused}");
        }
    }
}

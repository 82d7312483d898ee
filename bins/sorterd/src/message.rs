//! Messages of an arm: a picture behind its headers, or a command in JSON; and the names in them.
//!
//! Invariant: a name that passed here is a safe file name and nothing else: letters, digits, `_`, `-` and `.`, never `..`,
//! never a leading dot. Never: touches a file, a database or a picture.

use serde::Deserialize;
use serde_json::Value;

use crate::geometry::ArmConstants;

/// What stands between headers and picture. The first one counts: a picture may contain it.
pub const SPLIT: &[u8] = b"___SPLIT___";
/// Longest `arm_id`, `session_id` and `image_name`, in bytes.
pub const NAME_MAX: usize = 64;
/// Longest JSON headers, in bytes: what comes after that is no header.
const HEADERS_MAX: usize = 64 << 10;

/// Why a message is refused.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum Error {
    #[error(
        "a binary message has JSON headers, ___SPLIT___ and a picture; there is no ___SPLIT___ in its first 64 KiB"
    )]
    NoSplit,
    #[error("the message is no JSON as it should be: {0}")]
    Json(String),
    #[error("the headers of the picture are not as they should be: {0}")]
    Headers(String),
    #[error(
        "{key} is {value:?}: expected 1 to {NAME_MAX} letters, digits, '_', '-' or '.', without '..' and no '.' first"
    )]
    Name { key: &'static str, value: String },
    #[error("image_name is {0:?}: expected the pulse width of the arm's base and .jpg, such as \"1500.jpg\"")]
    ImageName(String),
    #[error(
        "unknown command {0:?}: expected recv_img_proc or recv_img_after with a picture, get_commands_of_session or \
         stitch_after_image in JSON"
    )]
    Command(String),
    #[error("{0}")]
    Constants(String),
}

impl Error {
    /// Whether it is about a picture, of which its sender wants to hear `true` or `false`, if the message was a binary one.
    #[must_use]
    pub fn is_of_picture(&self) -> bool {
        matches!(self, Self::Headers(_) | Self::Name { .. } | Self::ImageName(_))
    }
}

/// A session of an arm: both names are safe.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Session {
    pub arm: String,
    pub session: String,
}

impl Session {
    /// With names that were checked.
    ///
    /// # Errors
    /// A name that is not safe.
    pub fn new(arm: &str, session: &str) -> Result<Self, Error> {
        Ok(Self { arm: name("arm_id", arm)?, session: name("session_id", session)? })
    }
}

/// The name of a picture: the pulse width at which it was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageName(pub u32);

impl ImageName {
    /// Reads `<pulse width>.jpg`.
    ///
    /// # Errors
    /// It is something else.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let digits = text.strip_suffix(".jpg").filter(|d| !d.is_empty() && d.len() <= 9);
        let digits = digits.filter(|d| d.bytes().all(|b| b.is_ascii_digit()));
        // Other spellings of the same number would be other pictures of the same angle.
        let digits = digits.filter(|d| *d == "0" || !d.starts_with('0'));
        let base = digits.and_then(|d| d.parse().ok());
        base.map(Self).ok_or_else(|| Error::ImageName(shown(text)))
    }

    /// As the file is named.
    #[must_use]
    pub fn file(self) -> String {
        format!("{}.jpg", self.0)
    }

    /// As the file of a picture taken after the sorting is named.
    #[must_use]
    pub fn after_file(self) -> String {
        format!("after_{}.jpg", self.0)
    }
}

/// What an arm wants.
#[derive(Debug, PartialEq)]
pub enum Request {
    /// Find what is on the picture and keep both. Answered `true` or `false`.
    Process { session: Session, image: ImageName, picture: Vec<u8> },
    /// Keep a picture of how it looks afterwards. Answered `true` or `false`.
    After { session: Session, image: ImageName, picture: Vec<u8> },
    /// The moves that sort what was seen. Answered with a list, or `{"error": ...}`.
    Commands { session: Session, constants: ArmConstants },
    /// Put the pictures taken afterwards together. Not answered.
    StitchAfter { session: Session },
}

/// Some arms have numbers for names.
#[derive(Deserialize)]
#[serde(untagged)]
enum Id {
    Text(String),
    Number(u64),
}

impl Id {
    fn text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Number(number) => number.to_string(),
        }
    }
}

/// Headers and picture of a binary message.
///
/// # Errors
/// There is no [`SPLIT`].
pub fn split(message: &[u8]) -> Result<(&[u8], &[u8]), Error> {
    let head = &message[..message.len().min(HEADERS_MAX)];
    let at = head.windows(SPLIT.len()).position(|w| w == SPLIT).ok_or(Error::NoSplit)?;
    Ok((&message[..at], &message[at + SPLIT.len()..]))
}

/// A binary message. The command is looked at first: all that is wrong after it [is of a picture](Error::is_of_picture).
///
/// # Errors
/// What is wrong with it.
pub fn binary(message: &[u8]) -> Result<Request, Error> {
    let (headers, picture) = split(message)?;
    let headers: Value = serde_json::from_slice(headers).map_err(|e| Error::Json(e.to_string()))?;
    let after = match command(&headers)? {
        "recv_img_proc" => false,
        "recv_img_after" => true,
        other => return Err(Error::Command(shown(other))),
    };
    let id = |key| id(&headers, key).map_err(Error::Headers);
    let session = Session::new(&id("arm_id")?, &id("session_id")?)?;
    let image = headers.get("image_name").and_then(Value::as_str);
    let image = image.ok_or_else(|| Error::Headers("image_name is missing, or no text".into()))?;
    let image = ImageName::parse(image)?;
    let picture = picture.to_vec();
    Ok(if after {
        Request::After { session, image, picture }
    } else {
        Request::Process { session, image, picture }
    })
}

/// A text message.
///
/// # Errors
/// What is wrong with it.
pub fn text(message: &str) -> Result<Request, Error> {
    let value: Value = serde_json::from_str(message).map_err(|e| Error::Json(e.to_string()))?;
    let id = |value: &Value, key| id(value, key).map_err(Error::Json);
    match command(&value)? {
        "get_commands_of_session" => {
            let constants = value.get("arm_constants").unwrap_or(&Value::Null);
            let session = Session::new(&id(constants, "arm_id")?, &id(&value, "session_id")?)?;
            let constants = ArmConstants::from_json(constants).map_err(Error::Constants)?;
            Ok(Request::Commands { session, constants })
        }
        "stitch_after_image" => {
            let session = Session::new(&id(&value, "arm_id")?, &id(&value, "session_id")?)?;
            Ok(Request::StitchAfter { session })
        }
        other => Err(Error::Command(shown(other))),
    }
}

fn command(value: &Value) -> Result<&str, Error> {
    let command = value.get("command").and_then(Value::as_str);
    command.ok_or_else(|| Error::Json("\"command\" is missing".into()))
}

fn id(value: &Value, key: &'static str) -> Result<String, String> {
    let found = value.get(key).cloned().unwrap_or(Value::Null);
    let id: Id = serde_json::from_value(found)
        .map_err(|_| format!("{key} is missing, or neither a text nor a number"))?;
    Ok(id.text())
}

fn name(key: &'static str, text: &str) -> Result<String, Error> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    let good = !text.is_empty()
        && text.len() <= NAME_MAX
        && text.bytes().all(plain)
        && !text.starts_with('.')
        && !text.contains("..");
    if good { Ok(text.to_owned()) } else { Err(Error::Name { key, value: shown(text) }) }
}

/// What is repeated of a wrong name.
fn shown(text: &str) -> String {
    text.chars().take(NAME_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(headers: &str, picture: &[u8]) -> Vec<u8> {
        [headers.as_bytes(), SPLIT, picture].concat()
    }

    fn headers(command: &str, arm: &str, session: &str, image: &str) -> String {
        serde_json::json!({ "command": command, "arm_id": arm, "session_id": session, "image_name": image })
            .to_string()
    }

    #[test]
    fn the_first_split_counts() {
        let picture = [b"abc".as_slice(), SPLIT, b"def"].concat();
        let request =
            binary(&message(&headers("recv_img_proc", "arm1", "s12", "1500.jpg"), &picture)).unwrap();
        let session = Session::new("arm1", "s12").unwrap();
        assert_eq!(request, Request::Process { session, image: ImageName(1500), picture });
        assert_eq!(binary(b"abc"), Err(Error::NoSplit));
        assert_eq!(binary(&message(&" ".repeat(HEADERS_MAX), b"x")), Err(Error::NoSplit));
    }

    #[test]
    fn what_is_wrong_with_a_picture_is_told_apart_from_what_is_none() {
        let all = serde_json::json!(
            { "command": "recv_img_proc", "arm_id": "a", "session_id": "s1", "image_name": "1500.jpg" });
        for command in ["recv_img_proc", "recv_img_after"] {
            for (key, value) in [
                ("arm_id", None),
                ("session_id", None),
                ("image_name", None),
                ("arm_id", Some(serde_json::json!([1]))),
                ("session_id", Some(serde_json::json!(-1))),
                ("session_id", Some(serde_json::json!("a/b"))),
                ("image_name", Some(serde_json::json!(1500))),
                ("image_name", Some(serde_json::json!("1500.png"))),
            ] {
                let mut headers = all.clone();
                headers["command"] = command.into();
                match value {
                    Some(value) => headers[key] = value,
                    None => drop(headers.as_object_mut().unwrap().remove(key)),
                }
                let error = binary(&message(&headers.to_string(), b"x")).unwrap_err();
                assert!(error.is_of_picture() && error.to_string().contains(key), "{headers}: {error}");
            }
        }
        for none in ["{", "[]", "null", "{}", r#"{"command":5,"image_name":7}"#, r#"{"command":"dance"}"#] {
            let error = binary(&message(none, b"x")).unwrap_err();
            assert!(!error.is_of_picture(), "{none}: {error}");
        }
        let numbers = r#"{"command":"recv_img_proc","arm_id":7,"session_id":1,"image_name":"0.jpg"}"#;
        let Ok(Request::Process { session, .. }) = binary(&message(numbers, b"x")) else { panic!("numbers") };
        assert_eq!(session, Session::new("7", "1").unwrap());
    }

    #[test]
    fn names_lead_nowhere() {
        for bad in [
            "",
            "..",
            ".",
            ".x",
            "a..b",
            "a/b",
            "a\\b",
            "a b",
            "ä",
            "a\0",
            "x'; DROP TABLE objects;--",
            &"a".repeat(65),
        ] {
            let of = |arm: &str, session: &str, image: &str| {
                binary(&message(&headers("recv_img_after", arm, session, image), b"x"))
            };
            assert!(matches!(of(bad, "s1", "1.jpg"), Err(Error::Name { key: "arm_id", .. })), "{bad:?}");
            assert!(matches!(of("a", bad, "1.jpg"), Err(Error::Name { key: "session_id", .. })), "{bad:?}");
            assert!(matches!(of("a", "s1", bad), Err(Error::ImageName(_))), "{bad:?}");
            assert!(matches!(of("a", "s1", &format!("{bad}.jpg")), Err(Error::ImageName(_))), "{bad:?}");
        }
        for good in ["s12", "A-b_c.d", "0", &"a".repeat(64)] {
            assert!(Session::new(good, good).is_ok(), "{good}");
        }
        for bad in [
            "1500",
            "1500.png",
            "01500.jpg",
            "-1.jpg",
            "1.5.jpg",
            "1e3.jpg",
            "1234567890.jpg",
            "1500.jpg.jpg",
        ] {
            assert!(ImageName::parse(bad).is_err(), "{bad}");
        }
        assert_eq!(ImageName::parse("0.jpg").unwrap().after_file(), "after_0.jpg");
    }

    #[test]
    fn commands_in_json() {
        let constants = r#"{"arm_id":7,"arm_radius":230,"dist_max_as_pw":2000,"dist_min_as_pw":1000,
            "rotation_range_as_deg":180,"rotation_range_as_pw":2000,"more":[1]}"#;
        let asked = format!(
            r#"{{"command":"get_commands_of_session","session_id":"s1","arm_constants":{constants}}}"#
        );
        let Ok(Request::Commands { session, constants }) = text(&asked) else { panic!("{:?}", text(&asked)) };
        assert_eq!((session.arm.as_str(), session.session.as_str()), ("7", "s1"));
        assert_eq!(constants.arm_radius, 230.0);
        let stitch = r#"{"command":"stitch_after_image","arm_id":"a","session_id":"s1"}"#;
        assert_eq!(text(stitch), Ok(Request::StitchAfter { session: Session::new("a", "s1").unwrap() }));
        for (bad, says) in [
            ("{", "no JSON"),
            ("[]", "\"command\" is missing"),
            (r#"{"command":5}"#, "\"command\" is missing"),
            (r#"{"command":"dance"}"#, "unknown command \"dance\""),
            (r#"{"command":"stitch_after_image","arm_id":"a"}"#, "session_id is missing"),
            (r#"{"command":"get_commands_of_session","session_id":"s1"}"#, "arm_id is missing"),
            (
                r#"{"command":"get_commands_of_session","session_id":"s1","arm_constants":{"arm_id":"a"}}"#,
                "arm_radius",
            ),
        ] {
            let error = text(bad).unwrap_err().to_string();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }
}

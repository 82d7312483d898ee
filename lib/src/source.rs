//! The syntax of `source = "…"`: where pictures come from. Cameras of `faced` and streams of `spyglassd` write it alike.
//!
//! Owns: how a kind and its place are told apart, and that no password stands in an address. Never: opens anything, or
//! knows which kinds a program has.

/// Splits `text` into a kind and what follows: `v4l:/dev/video0` into `v4l` and `/dev/video0`. An address of a network
/// camera (`rtsp://…` or `rtsps://…`) is kind `rtsp` and the whole address. `expected` is what a message says is wanted;
/// `owner` is what has keys `username` and `password-file` beside this one, such as "camera".
///
/// # Errors
/// In words for the person who wrote it; an address with a password is not repeated.
pub fn split<'a>(text: &'a str, expected: &str, owner: &str) -> Result<(&'a str, &'a str), String> {
    if let Some(rest) = text.strip_prefix("rtsp://").or_else(|| text.strip_prefix("rtsps://")) {
        if rest.is_empty() || text.contains(char::is_whitespace) {
            return Err("expected rtsp://host[:port]/path without blanks".to_owned());
        }
        if rest.split('/').next().unwrap_or_default().contains('@') {
            return Err(format!(
                "a password does not belong in this file: take user:password@ out of the address, and set username \
                 and password-file of this {owner}"
            ));
        }
        return Ok(("rtsp", text));
    }
    let (kind, rest) = text.split_once(':').ok_or_else(|| format!("{expected}, found {text:?}"))?;
    if rest.trim().is_empty() {
        return Err(format!("{expected}; nothing follows {kind:?}"));
    }
    if kind == "rtsp" {
        return Err(unknown(kind, expected));
    }
    Ok((kind, rest))
}

/// What to say of a kind that the program does not have.
#[must_use]
pub fn unknown(kind: &str, expected: &str) -> String {
    format!("{expected}, found {kind:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_and_places_are_told_apart() {
        let split = |text| split(text, "expected x", "stream");
        assert_eq!(split("v4l:/dev/video0"), Ok(("v4l", "/dev/video0")));
        assert_eq!(split("rtsps://cam/s"), Ok(("rtsp", "rtsps://cam/s")));
        assert_eq!(split("rtsp:cam/s"), Err("expected x, found \"rtsp\"".to_owned()));
        assert_eq!(split("camera"), Err("expected x, found \"camera\"".to_owned()));
        assert_eq!(split("file: "), Err("expected x; nothing follows \"file\"".to_owned()));
        assert!(split("rtsp://a b").unwrap_err().contains("without blanks"));
        let error = split("rtsp://me:secret@cam/s").unwrap_err();
        assert!(error.ends_with("password-file of this stream") && !error.contains("secret"), "{error}");
    }
}

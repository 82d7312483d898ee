//! The `source = "…"` of a camera: which kind, and where.
//!
//! Owns: which kinds there are; the syntax is `edge::source`'s. Never: opens it.

use std::fmt;
use std::path::PathBuf;

use edge::source;

/// What a camera reads from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceSpec {
    /// A V4L2 device node.
    V4l(PathBuf),
    /// A video file.
    File(PathBuf),
    /// A folder of PNG and JPEG files, in the order of their names.
    Images(PathBuf),
    /// A network camera (`rtsp://` or `rtsps://`).
    Rtsp(String),
    /// A GStreamer pipeline that ends in raw video.
    Gst(String),
}

impl SourceSpec {
    /// Reads what stands in the file.
    ///
    /// # Errors
    /// In words for the person who wrote it.
    pub fn parse(text: &str) -> Result<SourceSpec, String> {
        const EXPECTED: &str = "expected v4l:/dev/videoN, file:PATH, images:FOLDER, rtsp://… or gst:PIPELINE";
        let (kind, rest) = source::split(text, EXPECTED, "camera")?;
        match kind {
            "v4l" => Ok(SourceSpec::V4l(rest.into())),
            "file" => Ok(SourceSpec::File(rest.into())),
            "images" => Ok(SourceSpec::Images(rest.into())),
            "rtsp" => Ok(SourceSpec::Rtsp(rest.to_owned())),
            "gst" => Ok(SourceSpec::Gst(rest.trim().to_owned())),
            _ => Err(source::unknown(kind, EXPECTED)),
        }
    }

    /// Whether GStreamer is needed.
    #[must_use]
    pub fn needs_gstreamer(&self) -> bool {
        matches!(self, SourceSpec::File(_) | SourceSpec::Rtsp(_) | SourceSpec::Gst(_))
    }

    /// Whether it has an end and can begin again.
    #[must_use]
    pub fn is_finite(&self) -> bool {
        matches!(self, SourceSpec::File(_) | SourceSpec::Images(_))
    }
}

impl fmt::Display for SourceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SourceSpec::V4l(path) => write!(f, "{}", path.display()),
            SourceSpec::File(path) | SourceSpec::Images(path) => write!(f, "{}", path.display()),
            SourceSpec::Rtsp(address) => f.write_str(address),
            SourceSpec::Gst(pipeline) => write!(f, "gst:{pipeline}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_read() {
        let parse = |t| SourceSpec::parse(t).unwrap();
        assert_eq!(parse("v4l:/dev/video0"), SourceSpec::V4l("/dev/video0".into()));
        assert_eq!(parse("file:a b.mp4"), SourceSpec::File("a b.mp4".into()));
        assert_eq!(parse("images:/srv/p"), SourceSpec::Images("/srv/p".into()));
        assert!(matches!(parse("rtsp://cam.local:554/s"), SourceSpec::Rtsp(_)));
        assert_eq!(parse("gst: videotestsrc ! x"), SourceSpec::Gst("videotestsrc ! x".into()));
        assert!(parse("file:x").needs_gstreamer() && !parse("images:x").needs_gstreamer());
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("/dev/video0", "expected v4l:"),
            ("v4l:", "nothing follows"),
            ("usb:/dev/video0", "found \"usb\""),
            ("rtsp://", "rtsp://host"),
            ("rtsp://me:secret@cam/s", "password-file"),
        ] {
            let error = SourceSpec::parse(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
            assert!(!error.contains("secret@"));
        }
    }
}

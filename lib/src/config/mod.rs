//! From a TOML file to a value, with errors for the person at the device.
//!
//! A daemon declares a raw struct (`#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]`), reads it with
//! [`load`] and turns it into its own configuration; what is wrong beyond the types it reports with [`Loaded::problem`],
//! which finds line and column of the key by itself. Secrets are never in the file but in files it names ([`Secret`]).
//!
//! Owns: the text of the file while it is validated. Invariant: an [`Error`] always names the path.
//! Never: applies a configuration, writes one.

mod locate;
mod secret;
mod size;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

pub use secret::{Secret, SecretError, read_secret, secret_path};
pub use size::Size;

/// The largest configuration file that is read, in bytes. A larger one is a mistake.
pub const FILE_BYTES_MAX: u64 = 1 << 20;

/// What is wrong with a configuration file, and where.
#[derive(Debug)]
pub struct Error {
    path: PathBuf,
    place: Option<Box<Place>>,
    key: String,
    message: String,
    source: Option<std::io::Error>,
}

#[derive(Debug)]
struct Place {
    line: usize,
    column: usize,
    text: String,
    width: usize,
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some(place) = &self.place {
            write!(f, ":{}:{}", place.line, place.column)?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|e| e as _)
    }
}

impl Error {
    /// An error about the file as a whole.
    pub fn file(path: &Path, message: impl Into<String>) -> Error {
        Error {
            path: path.to_owned(),
            place: None,
            key: String::new(),
            message: message.into(),
            source: None,
        }
    }

    fn read(path: &Path, source: std::io::Error) -> Error {
        let message = match source.kind() {
            std::io::ErrorKind::NotFound => "cannot read the configuration; name another one with --config",
            _ => "cannot read the configuration",
        };
        Error { source: Some(source), ..Error::file(path, message) }
    }

    /// Whether the file does not exist.
    pub fn is_not_found(&self) -> bool {
        self.source.as_ref().is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound)
    }

    /// The line in question with a caret under the place, for a terminal or a journal; ends with a newline.
    pub fn excerpt(&self) -> Option<String> {
        let Place { line, column, text, width } = self.place.as_deref()?;
        let number = line.to_string();
        let gutter = " ".repeat(number.len());
        let caret = "^".repeat((*width).max(1));
        let indent: String =
            text.chars().take(column.saturating_sub(1)).map(|c| if c == '\t' { '\t' } else { ' ' }).collect();
        Some(format!(" {gutter} |\n {number} | {text}\n {gutter} | {indent}{caret}\n"))
    }
}

/// A file that parsed, with its text, so that later findings can say where they are.
#[derive(Debug)]
pub struct Loaded<R> {
    /// What the file says, defaults filled in.
    pub raw: R,
    path: PathBuf,
    text: String,
}

impl<R> Loaded<R> {
    /// The same file seen as another value.
    pub fn map<S>(self, f: impl FnOnce(R) -> S) -> Loaded<S> {
        Loaded { raw: f(self.raw), path: self.path, text: self.text }
    }

    /// The path it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error about the value of `key`, written like `cloud.port` or `route[1].to`. Line and column are those of the
    /// key's value, or of the nearest table around it that the file has. `message` says what was expected, and what was
    /// found where that helps.
    pub fn problem(&self, key: &str, message: &str) -> Error {
        Error {
            path: self.path.clone(),
            place: locate::span_of(&self.text, key).map(|span| Box::new(place(&self.text, span))),
            key: key.to_owned(),
            message: message.to_owned(),
            source: None,
        }
    }

    /// Whether the value of `key` is within its bounds.
    ///
    /// # Errors
    /// [`Loaded::problem`] with the bounds and what was found.
    pub fn within(&self, key: &str, value: u64, min: u64, max: u64) -> Result<(), Error> {
        if (min..=max).contains(&value) {
            return Ok(());
        }
        Err(self.problem(key, &format!("expected an integer from {min} to {max}, found {value}")))
    }

    /// Whether the size that `key` gives is within its bounds.
    ///
    /// # Errors
    /// [`Loaded::problem`] with the bounds and what was found.
    pub fn size_within(&self, key: &str, value: Size, min: Size, max: Size) -> Result<(), Error> {
        if (min..=max).contains(&value) {
            return Ok(());
        }
        Err(self.problem(key, &format!("expected a size from {min} to {max}, found {value}")))
    }
}

/// Reads `path` into `R`.
///
/// # Errors
/// [`Error`] with path, line, column, key and what was expected: for a file that can't be read, is larger than
/// [`FILE_BYTES_MAX`], is not UTF-8 or not TOML, has an unknown key, or a value of the wrong type.
pub fn load<R: DeserializeOwned>(path: &Path) -> Result<Loaded<R>, Error> {
    use std::io::Read as _;
    let file = std::fs::File::open(path).map_err(|e| Error::read(path, e))?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|e| Error::read(path, e))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(Error::file(
            path,
            format!("larger than {FILE_BYTES_MAX} bytes: this is no configuration file"),
        ));
    }
    let text = String::from_utf8(bytes).map_err(|e| {
        Error::file(
            path,
            format!("byte {} is not UTF-8; save the file as UTF-8", e.utf8_error().valid_up_to()),
        )
    })?;
    parse(path, text)
}

/// Parses `text` as if it had been read from `path`. Takes any text without a panic.
///
/// # Errors
/// As [`load`], less those of reading.
pub fn parse<R: DeserializeOwned>(path: &Path, text: String) -> Result<Loaded<R>, Error> {
    match toml::from_str::<R>(&text) {
        Ok(raw) => Ok(Loaded { raw, path: path.to_owned(), text }),
        Err(error) => {
            let span = error.span();
            let key =
                span.as_ref().and_then(|s| locate::key_at(&text, s).or_else(|| locate::bare_key(&text, s)));
            let key = key.unwrap_or_default();
            Err(Error {
                path: path.to_owned(),
                place: span.map(|span| Box::new(place(&text, span))),
                message: locate::for_people(error.message(), &key),
                key,
                source: None,
            })
        }
    }
}

/// Line and column (from 1, in characters) of a byte span, with the text of its line.
fn place(text: &str, span: std::ops::Range<usize>) -> Place {
    let floor = |mut at: usize| {
        at = at.min(text.len());
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        at
    };
    let (start, end) = (floor(span.start), floor(span.end));
    let line_start = text[..start].rfind('\n').map_or(0, |n| n + 1);
    let line_end = text[start..].find('\n').map_or(text.len(), |n| start + n);
    Place {
        line: text[..line_start].matches('\n').count() + 1,
        column: text[line_start..start].chars().count() + 1,
        text: without_login(text[line_start..line_end].trim_end()),
        width: text[start..end.clamp(start, line_end)].chars().count(),
    }
}

/// A line with whatever stands between `://` and `@` starred out, as long as it was: somebody wrote a password there,
/// and an excerpt ends up in the journal.
fn without_login(line: &str) -> String {
    let mut shown = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find("://") {
        let (before, behind) = rest.split_at(at + 3);
        shown.push_str(before);
        let end = behind.find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'')).unwrap_or(behind.len());
        let (address, behind) = behind.split_at(end);
        let (login, host) = address.split_at(address.rfind('@').unwrap_or(0));
        shown.extend(login.chars().map(|_| '*'));
        shown.push_str(host);
        rest = behind;
    }
    shown.push_str(rest);
    shown
}

/// The configuration in force as TOML, for `--print-config`. `raw` must serialise to a table.
pub fn to_toml<R: serde::Serialize>(raw: &R) -> String {
    match toml::to_string(raw) {
        Ok(text) => text,
        // Only a raw struct that TOML cannot hold gets here, which is a mistake in the program, not in the file.
        Err(error) => format!("# this configuration cannot be shown as TOML: {error}\n"),
    }
}

#[cfg(test)]
mod tests;

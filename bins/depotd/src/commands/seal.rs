//! How a statement gets its signature: here, later, or not at all.

use std::path::PathBuf;

use edge::release::Statement;
use serde_json::{Value, json};

use super::args::Given;
use super::context::Context;
use super::output::{Failure, shell};
use crate::catalog::{Release, State};
use crate::sign::Signer;

/// How.
#[derive(Debug)]
pub enum How {
    /// With this key.
    Key(Signer),
    /// Elsewhere; the statement goes to this file.
    Later(Option<PathBuf>),
    /// Not at all.
    Unsigned,
}

/// A statement as it is published.
pub struct Sealed {
    /// The bytes.
    pub statement: String,
    /// Their signature.
    pub signature: Option<String>,
    /// What a new release becomes by it.
    pub state: State,
}

impl How {
    /// What the command line says.
    ///
    /// # Errors
    /// Code 64 unless it says exactly one thing; 77 for a key that can't be used.
    pub fn read(given: &Given) -> Result<Self, Failure> {
        let ways = [given.has("--key"), given.has("--sign-later"), given.has("--unsigned")];
        if ways.iter().filter(|given| **given).count() != 1 {
            return Err(Failure::usage(format!(
                "{} needs one of --key FILE, --sign-later, --unsigned",
                given.entry.name
            ))
            .fix("'depotd keygen' makes a key; devices refuse unsigned releases unless told otherwise"));
        }
        if given.has("--statement") && !given.has("--sign-later") {
            return Err(Failure::usage("--statement goes with --sign-later"));
        }
        match given.path("--key") {
            Some(key) => Ok(Self::Key(Signer::load(&key, given.path("--password-file").as_deref())?)),
            None if given.has("--sign-later") => Ok(Self::Later(given.path("--statement"))),
            None => Ok(Self::Unsigned),
        }
    }

    /// Makes the bytes, and signs them where that is done here. A signature that the server's own keys refuse is none.
    ///
    /// # Errors
    /// Code 65: the statement says what it can't; 77: the key.
    pub fn seal(&self, context: &Context, statement: &Statement) -> Result<Sealed, Failure> {
        let bytes = statement.to_bytes().map_err(|error| Failure::refused(edge::log::chain(&error)))?;
        let text = String::from_utf8(bytes).map_err(|error| Failure::bug(error.to_string()))?;
        let comment =
            format!("{} {} {} epoch {}", statement.app, statement.version, statement.env, statement.epoch);
        let (signature, state) = match self {
            Self::Key(signer) => {
                let signature = signer.sign(text.as_bytes(), &comment)?;
                if context.keys.is_empty() {
                    log::warn!(
                        "depotd.toml names no public-keys: whether devices trust this key can't be said"
                    );
                } else {
                    context.verify(text.as_bytes(), &signature)?;
                }
                (Some(signature), State::Live)
            }
            Self::Later(_) => (None, State::Pending),
            Self::Unsigned => (None, State::Live),
        };
        Ok(Sealed { statement: text, signature, state })
    }
}

/// Writes the statement for another machine; what is to be done with it, for people and for scripts.
///
/// # Errors
/// Code 74.
pub fn hand_out(
    context: &Context,
    file: Option<&PathBuf>,
    release: &Release,
    statement: &str,
) -> Result<(String, Value), Failure> {
    let usual = || PathBuf::from(format!("{}_{}_{}.statement", release.app, release.version, release.env));
    let file = file.cloned().unwrap_or_else(usual);
    edge::fs::write_durably(&file, statement.as_bytes(), 0o644)?;
    let name = shell(&file.display().to_string());
    let commands = [format!("minisign -Sm {name}"), format!("{} accept {name}", context.program())];
    let text = format!(
        "The statement is in {}. Where the secret key is (-s FILE names it), and then here:\n\n  {}\n  {}\n",
        file.display(),
        commands[0],
        commands[1]
    );
    Ok((text, json!({ "file": file, "commands": commands })))
}

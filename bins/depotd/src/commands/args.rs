//! The command line of a command, in the form of [`edge::cli::table`]; and what its values are.

use std::ffi::OsString;
use std::ops::Deref;
use std::path::PathBuf;

use edge::cli::output::Failure;
use edge::cli::table::{self, Entry};

use super::table::GRAMMAR;

/// A command and what was given with it.
pub struct Given {
    /// Which command.
    pub entry: &'static Entry,
    given: table::Given,
}

impl Deref for Given {
    type Target = table::Given;

    fn deref(&self) -> &table::Given {
        &self.given
    }
}

/// Reads a command line without the program's name; `None` if it names no command of ours.
///
/// # Errors
/// [`Failure`] with code 64: what is wrong, and where the help is.
pub fn parse(line: &[OsString]) -> Option<Result<Given, Failure>> {
    // Only options that every program has can stand before the command's name.
    let mut at = 0;
    while let Some(text) = line.get(at).and_then(|text| text.to_str()) {
        match text {
            "-c" | "--config" => at += 2,
            "-v" | "-vv" | "--verbose" | "--json" => at += 1,
            text if text.starts_with("--config=") => at += 1,
            _ => break,
        }
    }
    let entry = GRAMMAR.entry(line.get(at)?.to_str()?)?;
    let words = line.iter().enumerate().filter(|(n, _)| *n != at).map(|(_, word)| word.clone());
    let given = GRAMMAR.read(words).and_then(|given| {
        if !given.has("--help") {
            GRAMMAR.check(entry, &given)?;
        }
        Ok(Given { entry, given })
    });
    Some(given.map_err(|failure| failure.or_fix(&format!("`depotd {} --help` explains it", entry.name))))
}

impl Given {
    /// Its value, which must be there.
    ///
    /// # Errors
    /// Code 64 if it isn't.
    pub fn need(&self, long: &str) -> Result<&str, Failure> {
        self.text(long).ok_or_else(|| Failure::usage(format!("{} needs {long}", self.entry.name)))
    }

    /// Its value as a path.
    pub fn path(&self, long: &str) -> Option<PathBuf> {
        self.text(long).map(PathBuf::from)
    }

    /// A percentage.
    ///
    /// # Errors
    /// Code 64 if it is none.
    pub fn percent(&self, long: &str) -> Result<Option<u8>, Failure> {
        match self.number::<u8>(long) {
            Ok(Some(101..)) | Err(_) => Err(Failure::usage(format!(
                "{long} takes a number from 0 to 100, not {:?}",
                self.text(long).unwrap_or("")
            ))),
            other => other,
        }
    }

    /// The first of what is no flag.
    pub fn first(&self) -> &str {
        self.rest.first().map_or("", String::as_str)
    }

    /// An environment or attribute: in lower case, and a name.
    ///
    /// # Errors
    /// Code 64 if it is none.
    pub fn lower(long: &str, text: &str) -> Result<String, Failure> {
        if edge::release::valid_name(text) {
            return Ok(text.to_ascii_lowercase());
        }
        Err(Failure::usage(format!(
            "{long} takes 1 to 64 letters, digits, '.', '_' or '-', not beginning with '.' or '-'; not {text:?}"
        )))
    }

    /// The environment, if one is given.
    ///
    /// # Errors
    /// Code 64 if it can't be one.
    pub fn env(&self) -> Result<Option<String>, Failure> {
        self.text("--env").map(|text| Self::lower("--env", text)).transpose()
    }

    /// The environment, which must be given.
    ///
    /// # Errors
    /// Code 64 if it isn't, or can't be one.
    pub fn need_env(&self) -> Result<String, Failure> {
        Self::lower("--env", self.need("--env")?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(line: &str) -> Option<Result<Given, Failure>> {
        parse(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn flags_stand_anywhere_behind_the_name() {
        let g = given("-c x.toml publish --app a f --version=1.0 --env prod --attr A --attr b --unsigned")
            .unwrap()
            .unwrap();
        assert_eq!((g.entry.name, g.first(), g.text("--config")), ("publish", "f", Some("x.toml")));
        assert_eq!(g.values("--attr").collect::<Vec<_>>(), ["A", "b"]);
        assert!(g.has("--unsigned") && g.text("--version") == Some("1.0"));
        assert_eq!(given("publish -- --f").unwrap().unwrap().first(), "--f");
    }

    #[test]
    fn what_is_no_command_of_ours_is_left_to_the_daemon() {
        for line in ["", "--check", "-c x.toml", "--config=x", "serve", "-c x serve", "--version", "--config"]
        {
            assert!(given(line).is_none(), "{line}");
        }
    }

    #[test]
    fn wrong_lines_are_refused_and_named() {
        for (line, named) in [
            ("publish", "needs FILE"),
            ("publish a b", "\"b\""),
            ("list --key x", "--key does not go with list"),
            ("list --app", "--app needs a value"),
            ("list --app --env", "--app needs a value"),
            ("list --app a --app b", "twice"),
            ("list --what", "no flag --what"),
            ("gc --dry-run=1", "takes no value"),
        ] {
            let failure = given(line).unwrap().map(|_| ()).unwrap_err();
            assert!(failure.code == 64 && failure.cause.contains(named), "{line}: {}", failure.cause);
        }
        let percent = given("rollout a --percent 101").unwrap().unwrap();
        assert!(percent.percent("--percent").is_err() && percent.need_env().is_err());
    }

    #[test]
    fn every_flag_of_a_command_exists_and_every_help_names_its_flags() {
        for entry in GRAMMAR.commands {
            let help = super::super::table::help_of(entry);
            for flag in entry.flags {
                assert!(GRAMMAR.flag(flag).is_ok() && help.contains(flag), "{} {flag}", entry.name);
            }
        }
    }
}

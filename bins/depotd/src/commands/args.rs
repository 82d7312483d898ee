//! The command line of a command: its flags, before or behind its name, as `--flag value` or `--flag=value`.
//!
//! Owns: what was given. Invariant: a flag that does not belong to the command is refused, not ignored.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use super::output::Failure;
use super::table::{Entry, Flag, find, flag_of};

/// A command and what was given with it.
pub struct Given {
    /// Which command.
    pub entry: &'static Entry,
    flags: Vec<(&'static Flag, String)>,
    /// What is no flag.
    pub rest: Vec<String>,
}

/// Reads a command line without the program's name; `None` if it names no command of ours.
///
/// # Errors
/// [`Failure`] with code 64: what is wrong, and where the help is.
pub fn parse(given: &[OsString]) -> Option<Result<Given, Failure>> {
    // Only options that every program has can stand before the command's name.
    let mut at = 0;
    while let Some(text) = given.get(at).and_then(|text| text.to_str()) {
        match text {
            "-c" | "--config" => at += 2,
            "-v" | "-vv" | "--verbose" | "--json" => at += 1,
            text if text.starts_with("--config=") => at += 1,
            _ => break,
        }
    }
    let entry = find(given.get(at)?.to_str()?)?;
    let fix = |failure: Failure| match failure.fix {
        Some(_) => failure,
        None => failure.fix(format!("`depotd {} --help` explains it", entry.name)),
    };
    Some(read(entry, at, given).map_err(fix))
}

fn read(entry: &'static Entry, at: usize, given: &[OsString]) -> Result<Given, Failure> {
    let (mut flags, mut rest, mut only_rest) = (Vec::new(), Vec::new(), false);
    let mut texts = given.iter().enumerate().filter(|(n, _)| *n != at).map(|(_, text)| {
        text.to_str().ok_or_else(|| Failure::usage(format!("the argument {text:?} is not UTF-8")))
    });
    while let Some(text) = texts.next() {
        let text = text?;
        if only_rest || !text.starts_with('-') || text == "-" {
            rest.push(text.to_owned());
            continue;
        }
        if text == "--" {
            only_rest = true;
            continue;
        }
        if text == "-vv" {
            flags.extend([(flag_of("-v")?, String::new()), (flag_of("-v")?, String::new())]);
            continue;
        }
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        let flag = flag_of(name)?;
        let value = match (flag.value.is_empty(), value) {
            (true, Some(_)) => return Err(Failure::usage(format!("{name} takes no value"))),
            (true, None) => String::new(),
            (false, Some(value)) => value,
            (false, None) => match texts.next().transpose()? {
                Some(value) if !value.starts_with("--") => value.to_owned(),
                _ => return Err(Failure::usage(format!("{name} needs a value: {}", flag.value))),
            },
        };
        flags.push((flag, value));
    }
    let given = Given { entry, flags, rest };
    given.check()?;
    Ok(given)
}

impl Given {
    fn check(&self) -> Result<(), Failure> {
        if self.has("--help") {
            return Ok(());
        }
        let Entry { name, positions, min, max, .. } = self.entry;
        for (at, (flag, _)) in self.flags.iter().enumerate() {
            if !self.entry.takes(flag.long) {
                return Err(Failure::usage(format!("{} does not go with {name}", flag.long)));
            }
            let again = self.flags[..at].iter().any(|(before, _)| before.long == flag.long);
            if again && flag.long != "--attr" && flag.long != "--verbose" {
                return Err(Failure::usage(format!("{} is given twice", flag.long)));
            }
        }
        if self.rest.len() < *min {
            return Err(Failure::usage(format!("{name} needs {positions}")));
        }
        match self.rest.get(*max) {
            Some(extra) => Err(Failure::usage(format!("{name} does not take {extra:?}"))),
            None => Ok(()),
        }
    }

    /// The values of a flag, in their order.
    pub fn values<'g>(&'g self, long: &'g str) -> impl Iterator<Item = &'g str> {
        self.flags.iter().filter(move |(flag, _)| flag.long == long).map(|(_, value)| value.as_str())
    }

    /// Whether the flag is there.
    pub fn has(&self, long: &str) -> bool {
        self.values(long).next().is_some()
    }

    /// Its value.
    pub fn text(&self, long: &str) -> Option<&str> {
        self.flags.iter().find(|(flag, _)| flag.long == long).map(|(_, value)| value.as_str())
    }

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

    /// Its value as a number.
    ///
    /// # Errors
    /// Code 64 if it is none.
    pub fn number<N: FromStr>(&self, long: &str) -> Result<Option<N>, Failure> {
        let parse = |text: &str| {
            text.parse().map_err(|_| Failure::usage(format!("{long} takes a number, not {text:?}")))
        };
        self.text(long).map(parse).transpose()
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
        for entry in super::super::table::COMMANDS {
            let help = super::super::table::help_of(entry);
            for flag in entry.flags {
                assert!(flag_of(flag).is_ok() && help.contains(flag), "{} {flag}", entry.name);
            }
        }
    }
}

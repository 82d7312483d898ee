//! The command line of a program with many commands: one table of commands, one of flags; what is given, and the help.
//!
//! A flag may stand before or behind the command, as `--flag value` or `--flag=value`; what stands behind `--` is no flag.
//! Owns: the form of a command line and of its help. Invariant: a flag that does not belong to the command is refused, not
//! ignored. Never: knows what a command does.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::str::FromStr;

use super::output::Failure;

/// A command.
pub struct Entry {
    /// The word for it.
    pub name: &'static str,
    /// What it takes besides flags, as help shows it.
    pub positions: &'static str,
    /// One line.
    pub about: &'static str,
    /// What there is to say more; may be empty.
    pub more: &'static str,
    /// The flags of its own.
    pub flags: &'static [&'static str],
    /// Flags that it shares with others.
    pub group: Option<&'static Group>,
    /// How many positions it needs.
    pub min: usize,
    /// How many it takes.
    pub max: usize,
}

/// Flags that several commands have.
pub struct Group {
    /// Their long names.
    pub flags: &'static [&'static str],
    /// What the help of each of these commands says about them; may be empty.
    pub more: &'static str,
}

/// A flag.
#[derive(Debug, PartialEq, Eq)]
pub struct Flag {
    /// With its two dashes.
    pub long: &'static str,
    /// With its dash; may be empty.
    pub short: &'static str,
    /// What its value is called; empty for a switch.
    pub value: &'static str,
    /// One line.
    pub about: &'static str,
    /// A value may be given several times.
    pub many: bool,
}

/// A flag that is given once at most.
#[must_use]
pub const fn flag(long: &'static str, short: &'static str, value: &'static str, about: &'static str) -> Flag {
    Flag { long, short, value, about, many: false }
}

/// A command without flags and positions.
#[must_use]
pub const fn entry(name: &'static str, positions: &'static str, about: &'static str) -> Entry {
    Entry { name, positions, about, more: "", flags: &[], group: None, min: 0, max: 0 }
}

/// All of a program's command line.
pub struct Grammar {
    /// The program's name.
    pub program: &'static str,
    /// In the order of help.
    pub commands: &'static [Entry],
    /// In the order of help.
    pub flags: &'static [Flag],
    /// Flags of every command.
    pub always: &'static [&'static str],
}

/// What was given.
pub struct Given {
    flags: Vec<(&'static Flag, String)>,
    /// What is no flag, in its order.
    pub rest: Vec<String>,
}

impl Grammar {
    /// Tells flags, their values and the rest apart.
    ///
    /// # Errors
    /// Code 64: an unknown flag, a value too few or too many, a word that is not UTF-8.
    pub fn read(&self, words: impl IntoIterator<Item = OsString>) -> Result<Given, Failure> {
        let mut given = Given { flags: Vec::new(), rest: Vec::new() };
        let mut words = words.into_iter().map(|word| {
            let unfit = |word| Failure::usage(format!("the argument {word:?} is not UTF-8"));
            word.into_string().map_err(|word| unfit(word).fix("rename the file or folder"))
        });
        while let Some(word) = words.next().transpose()? {
            if word == "--" {
                given.rest.extend(words.by_ref().collect::<Result<Vec<_>, _>>()?);
            } else if word.len() < 2 || !word.starts_with('-') {
                given.rest.push(word);
            } else {
                self.take(&word, &mut words, &mut given)?;
            }
        }
        Ok(given)
    }

    /// A flag, and its value.
    fn take(
        &self,
        word: &str,
        words: &mut dyn Iterator<Item = Result<String, Failure>>,
        given: &mut Given,
    ) -> Result<(), Failure> {
        // `-vv`: the same switch several times.
        let letters = word.strip_prefix('-').filter(|rest| !rest.starts_with('-') && rest.len() > 1);
        if let Some(letters) = letters
            && let Some(first) = letters.chars().next()
            && letters.chars().all(|letter| letter == first)
            && let Ok(switch) = self.flag(&format!("-{first}"))
            && switch.value.is_empty()
        {
            given.flags.extend(letters.chars().map(|_| (switch, String::new())));
            return Ok(());
        }
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word, None),
        };
        let flag = self.flag(name)?;
        let value = match (flag.value.is_empty(), value) {
            (true, Some(_)) => return Err(Failure::usage(format!("{name} takes no value"))),
            (true, None) => String::new(),
            (false, Some(value)) => value,
            (false, None) => match words.next().transpose()? {
                None => return Err(Failure::usage(format!("{name} needs a value: {}", flag.value))),
                Some(other) if other.starts_with("--") => {
                    return Err(Failure::usage(format!("{name} needs a value, found {other}")));
                }
                Some(value) => value,
            },
        };
        given.flags.push((flag, value));
        Ok(())
    }

    /// The flag of that name, long or short.
    ///
    /// # Errors
    /// Code 64: there is none.
    pub fn flag(&self, name: &str) -> Result<&'static Flag, Failure> {
        let is = |flag: &&Flag| flag.long == name || (!flag.short.is_empty() && flag.short == name);
        self.flags.iter().find(is).ok_or_else(|| Failure::usage(format!("there is no flag {name}")))
    }

    /// The command of that name, if there is one.
    #[must_use]
    pub fn entry(&self, name: &str) -> Option<&'static Entry> {
        self.commands.iter().find(|entry| entry.name == name)
    }

    /// The command of that name.
    ///
    /// # Errors
    /// Code 64: there is none; the fix names one that may be meant.
    pub fn find(&self, name: &str) -> Result<&'static Entry, Failure> {
        self.entry(name).ok_or_else(|| {
            let failure = Failure::usage(format!("there is no command {name:?}"));
            match self.commands.iter().find(|entry| resembles(entry.name, name)) {
                Some(entry) if !name.is_empty() => {
                    failure.fix(format!("did you mean `{} {}`?", self.program, entry.name))
                }
                _ => failure,
            }
        })
    }

    /// Whether the flag goes with the command.
    #[must_use]
    pub fn takes(&self, entry: &Entry, long: &str) -> bool {
        let shared = entry.group.is_some_and(|group| group.flags.contains(&long));
        entry.flags.contains(&long) || self.always.contains(&long) || shared
    }

    /// Whether what was given (less the command's name) is what the command takes.
    ///
    /// # Errors
    /// Code 64: what is too much, and what is missing.
    pub fn check(&self, entry: &Entry, given: &Given) -> Result<(), Failure> {
        let (program, Entry { name, positions, .. }) = (self.program, entry);
        for (at, (flag, _)) in given.flags.iter().enumerate() {
            if !self.takes(entry, flag.long) {
                return Err(Failure::usage(format!("{} does not go with {name}", flag.long))
                    .fix(format!("`{program} {name} --help` lists what does")));
            }
            let again = given.flags[..at].iter().any(|(before, _)| before.long == flag.long);
            if again && !flag.many && !flag.value.is_empty() {
                return Err(Failure::usage(format!("{} is given twice", flag.long)));
            }
        }
        if given.rest.len() < entry.min {
            return Err(Failure::usage(format!("{name} needs {positions}")));
        }
        match given.rest.get(entry.max) {
            Some(extra) => Err(Failure::usage(format!("{name} does not take {extra:?}"))
                .fix(format!("`{program} {name} --help` shows its form"))),
            None => Ok(()),
        }
    }

    /// What `COMMAND --help` prints.
    #[must_use]
    pub fn help_of(&self, entry: &Entry) -> String {
        let (program, Entry { name, positions, about, .. }) = (self.program, entry);
        let gap = if positions.is_empty() { "" } else { " " };
        let mut text =
            format!("{program} {name}: {about}\n\nUsage: {program} {name} [flags]{gap}{positions}\n\n");
        for flag in self.flags.iter().filter(|flag| self.takes(entry, flag.long)) {
            let short = if flag.short.is_empty() { "   ".to_owned() } else { format!("{},", flag.short) };
            let _ =
                writeln!(text, "  {short} {:<24} {}", format!("{} {}", flag.long, flag.value), flag.about);
        }
        let shared = entry.group.map_or("", |group| group.more);
        for more in [entry.more, shared].iter().filter(|more| !more.is_empty()) {
            let _ = write!(text, "\n{more}\n");
        }
        text
    }
}

/// Whether `given` was meant to be `name`: its beginning, more than it, or its letters in another order.
fn resembles(name: &str, given: &str) -> bool {
    let letters = |text: &str| {
        let mut letters: Vec<char> = text.chars().collect();
        letters.sort_unstable();
        letters
    };
    name.starts_with(given) || given.starts_with(name) || letters(name) == letters(given)
}

impl Given {
    /// The values of a flag, in their order; an empty one for each time a switch stands there.
    pub fn values<'g>(&'g self, long: &'g str) -> impl Iterator<Item = &'g str> {
        self.flags.iter().filter(move |(flag, _)| flag.long == long).map(|(_, value)| value.as_str())
    }

    /// Whether the flag is there.
    #[must_use]
    pub fn has(&self, long: &str) -> bool {
        self.values(long).next().is_some()
    }

    /// Its value.
    #[must_use]
    pub fn text(&self, long: &str) -> Option<&str> {
        self.flags.iter().find(|(flag, _)| flag.long == long).map(|(_, value)| value.as_str())
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

    /// How often `--verbose` stands there.
    #[must_use]
    pub fn verbosity(&self) -> u8 {
        u8::try_from(self.values("--verbose").count()).unwrap_or(u8::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: Group = Group { flags: &["--addr"], more: "All of them connect." };
    const GRAMMAR: Grammar = Grammar {
        program: "x",
        commands: &[
            Entry { flags: &["--to"], group: Some(&GROUP), min: 1, max: 2, ..entry("send", "FILE", "sends") },
            entry("status", "", "tells"),
        ],
        flags: &[
            flag("--addr", "-a", "ADDRESS", "where"),
            Flag { many: true, ..flag("--to", "", "WHOM", "to whom") },
            flag("--verbose", "-v", "", "more"),
        ],
        always: &["--verbose"],
    };

    fn read(line: &str) -> Result<(&'static Entry, Given), Failure> {
        let mut given = GRAMMAR.read(line.split(' ').map(OsString::from))?;
        let entry = GRAMMAR.find(&given.rest.remove(0))?;
        GRAMMAR.check(entry, &given).map(|()| (entry, given))
    }

    #[test]
    fn flags_stand_anywhere() {
        for line in ["-vv -a h send --to=1 --to 2 f -v", "send f --addr=h -vvv --to 1 --to 2"] {
            let (entry, given) = read(line).unwrap();
            assert_eq!((entry.name, given.rest.as_slice()), ("send", ["f".to_owned()].as_slice()), "{line}");
            assert_eq!((given.text("--addr"), given.verbosity()), (Some("h"), 3));
            assert_eq!(given.values("--to").collect::<Vec<_>>(), ["1", "2"]);
        }
        assert_eq!(read("send -- -f --to").unwrap().1.rest, ["-f", "--to"]);
        assert_eq!(read("send -").unwrap().1.rest, ["-"]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (line, said) in [
            ("sned f", "there is no command \"sned\""),
            ("send", "send needs FILE"),
            ("send a b c", "send does not take \"c\""),
            ("send a --addr", "--addr needs a value: ADDRESS"),
            ("send a --addr --to", "--addr needs a value, found --to"),
            ("send a --addr 1 -a 2", "--addr is given twice"),
            ("send a --what", "there is no flag --what"),
            ("send a -va", "there is no flag -va"),
            ("send a --verbose=1", "--verbose takes no value"),
            ("status --to x", "--to does not go with status"),
        ] {
            let failure = read(line).map(|_| ()).unwrap_err();
            assert_eq!((failure.code, failure.cause.as_str()), (64, said), "{line}");
        }
        assert!(read("sned f").map(|_| ()).unwrap_err().fix.unwrap().contains("`x send`"));
        assert!(read("send f --to x").unwrap().1.number::<u8>("--to").is_err());
    }

    #[test]
    fn help_shows_what_goes_with_the_command() {
        let help = GRAMMAR.help_of(&GRAMMAR.commands[0]);
        let form = "x send: sends\n\nUsage: x send [flags] FILE\n\n  -a, --addr ADDRESS           where\n";
        assert!(help.starts_with(form) && help.ends_with("\n\nAll of them connect.\n"), "{help}");
        assert!(!GRAMMAR.help_of(&GRAMMAR.commands[1]).contains("--addr"));
    }
}

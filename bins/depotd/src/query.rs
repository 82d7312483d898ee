//! What a device asks: the query of `GET /package`, read and brought into its one canonical form.
//!
//! `cpuArch=…[&os=env][&attrX=env…][&appname=env…][&payloadType=…][&x-offers=1][&x-gen=…]`. Names and values are the same in
//! upper and lower case. All orders of the same question, and all ways to write it, give equal [`Question`]s.
//! Invariants: names and values are data, whatever signs are in them; their number and length is bounded.

use std::collections::BTreeSet;

use edge::http::uri::percent_decode;

/// Most parameters.
pub const PARAMS_MAX: usize = 64;
/// Longest name or value, in bytes, decoded. No app and no environment has a longer name.
pub const TEXT_BYTES_MAX: usize = 64 + 4;
/// Longest name of a generation.
const GENERATION_BYTES_MAX: usize = 64;

/// Which releases are asked for. Sorted, in lower case, without duplicates.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Question {
    /// The processor: the app `os_<cpu>` is selected.
    pub cpu: String,
    /// The environment of that app.
    pub os: String,
    /// Attributes of the device and the environment of the apps they select.
    pub attrs: Vec<(String, String)>,
    /// Apps by name, and the environment of each; one of a name.
    pub apps: Vec<(String, String)>,
    /// Staged releases and those to pass through are to be told of, too.
    pub offers: bool,
}

impl Question {
    /// About what it takes in memory, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let pairs = self.attrs.iter().chain(&self.apps);
        self.cpu.len() + self.os.len() + pairs.map(|(n, v)| n.len() + v.len() + 64).sum::<usize>() + 128
    }
}

/// In which form the answer is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Payload {
    /// The files and the details, as tar.gz.
    Full,
    /// The details alone.
    Metadata,
}

/// A whole query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// What for.
    pub question: Question,
    /// In which form.
    pub payload: Payload,
    /// What the device says it runs; counted, and part of nothing.
    pub generation: Option<String>,
}

/// Why a query is refused; the text is for whoever asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// As the original says it.
    #[error("Missing cpuArch query param")]
    Cpu,
    /// As the original says it.
    #[error("Invalid payloadType param")]
    Payload,
    /// A percent sign without two digits, or no UTF-8.
    #[error("The query can't be decoded")]
    Encoding,
    /// More than [`PARAMS_MAX`].
    #[error("Too many query params")]
    Many,
    /// Longer than [`TEXT_BYTES_MAX`].
    #[error("A query param is too long")]
    Long,
    /// Which of the two counts can't be known.
    #[error("cpuArch, os or payloadType is given twice, with different values")]
    Twice,
}

/// Reads a query, without its question mark.
///
/// # Errors
/// [`Refusal`].
pub fn parse(query: &str) -> Result<Asked, Refusal> {
    let (mut cpu, mut os, mut payload, mut offers) = (None, None, None, false);
    let (mut attrs, mut apps, mut generation) = (BTreeSet::new(), BTreeSet::new(), None);
    let mut count = 0;
    for part in query.split('&').filter(|part| !part.is_empty()) {
        count += 1;
        if count > PARAMS_MAX {
            return Err(Refusal::Many);
        }
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let (name, value) = (decode(name)?, decode(value)?);
        match name.as_str() {
            "cpuarch" => once(&mut cpu, value)?,
            "os" => once(&mut os, value)?,
            "payloadtype" => once(&mut payload, value)?,
            "x-offers" => offers |= value == "1",
            "x-gen" => generation = Some(value).filter(|text| valid_generation(text)),
            _ => match name.strip_prefix("attr") {
                Some(attr) => drop(attrs.insert((attr.to_owned(), value))),
                None => drop(apps.insert((name, value))),
            },
        }
    }
    let cpu = cpu.filter(|cpu| !cpu.is_empty()).ok_or(Refusal::Cpu)?;
    let payload = match payload.as_deref() {
        None | Some("fullpayload") => Payload::Full,
        Some("metadataonly") => Payload::Metadata,
        Some(_) => return Err(Refusal::Payload),
    };
    let os = os.filter(|os| !os.is_empty()).unwrap_or_else(|| "prod".to_owned());
    // Of one app in two environments the first in order counts: the same one, however the question is written.
    let mut apps: Vec<(String, String)> = apps.into_iter().collect();
    apps.dedup_by(|later, first| later.0 == first.0);
    let question = Question { cpu, os, attrs: attrs.into_iter().collect(), apps, offers };
    Ok(Asked { question, payload, generation })
}

fn once(place: &mut Option<String>, value: String) -> Result<(), Refusal> {
    match place {
        Some(there) if *there != value => Err(Refusal::Twice),
        _ => {
            *place = Some(value);
            Ok(())
        }
    }
}

fn decode(text: &str) -> Result<String, Refusal> {
    let plain = !text.contains(['%', '+']);
    let decoded = if plain {
        text.to_owned()
    } else {
        let bytes = percent_decode(&text.replace('+', " ")).ok_or(Refusal::Encoding)?;
        String::from_utf8(bytes).map_err(|_| Refusal::Encoding)?
    };
    if decoded.len() > TEXT_BYTES_MAX {
        return Err(Refusal::Long);
    }
    Ok(decoded.to_ascii_lowercase())
}

fn valid_generation(text: &str) -> bool {
    (1..=GENERATION_BYTES_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(query: &str) -> Question {
        parse(query).unwrap().question
    }

    #[test]
    fn the_forms_of_the_contract() {
        let asked = parse("cpuArch=armv8&attrGamer=prod&attrCellular=Beta&videoStreamer=beta").unwrap();
        assert_eq!((asked.payload, asked.question.offers), (Payload::Full, false));
        let Question { cpu, os, attrs, apps, .. } = asked.question;
        assert_eq!((cpu.as_str(), os.as_str()), ("armv8", "prod"));
        let own = |n: &str, v: &str| (n.to_owned(), v.to_owned());
        assert_eq!(attrs, [own("cellular", "beta"), own("gamer", "prod")]);
        assert_eq!(apps, [own("videostreamer", "beta")]);
        let asked = parse("CPUARCH=x&payloadtype=METADATAONLY&x-offers=1&x-gen=12-ab").unwrap();
        assert_eq!((asked.payload, asked.question.offers), (Payload::Metadata, true));
        assert_eq!(asked.generation.as_deref(), Some("12-ab"));
    }

    #[test]
    fn what_is_refused_and_how() {
        assert_eq!(parse("").unwrap_err().to_string(), "Missing cpuArch query param");
        assert_eq!(parse("cpuArch=&os=beta"), Err(Refusal::Cpu));
        let error = parse("cpuArch=x&payloadType=zip").unwrap_err();
        assert_eq!(error.to_string(), "Invalid payloadType param");
        for bad in ["cpuArch=%zz", "cpuArch=x&%ff=1", "cpuArch=x&a=%4"] {
            assert_eq!(parse(bad), Err(Refusal::Encoding), "{bad}");
        }
        assert_eq!(parse(&format!("cpuArch={}", "x".repeat(100))), Err(Refusal::Long));
        let many: String = (0..70).map(|n| format!("&a{n}=prod")).collect();
        assert_eq!(parse(&format!("cpuArch=x{many}")), Err(Refusal::Many));
        assert_eq!(parse("cpuArch=x&cpuArch=y"), Err(Refusal::Twice));
        assert!(parse("cpuArch=x&cpuarch=X").is_ok());
    }

    #[test]
    fn names_and_values_are_data() {
        let asked = question("cpuArch=a&attr%27%3B--=prod&%22%25=%26x%3Dy");
        assert_eq!(asked.attrs, [("';--".to_owned(), "prod".to_owned())]);
        assert_eq!(asked.apps, [("\"%".to_owned(), "&x=y".to_owned())]);
    }

    /// Any order, case, doubling and way of writing of the same question is the same question.
    #[test]
    fn all_orders_are_one_question() {
        let seed = std::env::var("EDGE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(11);
        let mut rng = fastrand::Rng::with_seed(seed);
        for round in 0..2000 {
            let mut parts = vec!["cpuArch=armv8".to_owned()];
            for n in 0..rng.usize(..6) {
                let env = ["prod", "beta", "x y", "\u{fc}%"][rng.usize(..4)];
                parts.push(format!("{}app{}={}", ["attr", ""][n % 2], rng.u8(..5), enc(env)));
            }
            let first = parse(&parts.join("&")).unwrap();
            rng.shuffle(&mut parts);
            let again = parts[rng.usize(..parts.len())].clone();
            parts.push(again);
            let other = parts.iter().map(|p| vary(p, &mut rng)).collect::<Vec<_>>().join("&");
            assert_eq!(parse(&other), Ok(first), "seed {seed} round {round}: {other}");
        }
    }

    fn enc(text: &str) -> String {
        text.bytes().map(|b| format!("%{b:02x}")).collect()
    }

    /// Letters change their case or are written as three signs.
    fn vary(part: &str, rng: &mut fastrand::Rng) -> String {
        let mut out = String::new();
        let mut keep = 0;
        for c in part.chars() {
            if c == '%' {
                keep = 3;
            }
            match rng.u8(..4) {
                _ if keep > 0 => out.push(c),
                0 if c.is_ascii_alphabetic() => out.push(c.to_ascii_uppercase()),
                1 if c.is_ascii_alphabetic() => out.push_str(&format!("%{:02X}", c as u32)),
                _ => out.push(c),
            }
            keep = i32::max(keep - 1, 0);
        }
        out
    }
}

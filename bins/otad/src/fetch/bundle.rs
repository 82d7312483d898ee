//! The tar.gz of the original protocol, in one pass: gunzip, untar, hash, write.
//!
//! Each entry becomes content of the store under its SHA-256; which app it belongs to is known only when
//! `package_details.json` has come, which may be the last entry. What belongs to no app that is installed here is hashed
//! and dropped. Invariants: memory is two buffers and the details; an entry that the details do not name makes the whole
//! bundle refused; so does a name twice, or anything but plain files.

use std::collections::BTreeMap;
use std::io::Read;

use edge::release::{Details, Digests, Sums};
use flate2::read::MultiGzDecoder;
use tar::EntryType;

use super::blob::trouble;
use super::{Answer, Carried, Client, Counted, Meter, PIECE, broken, header, parse, read_details, tag};
use crate::core::Trouble;
use crate::install::Store;

/// The entry that says what the others are.
const DETAILS: &str = "package_details.json";
/// Most entries of a bundle, headers included.
const ENTRIES_MAX: usize = 1024;
/// Longest name or set of PAX records, in bytes.
const NAME_BYTES_MAX: u64 = 16 * 1024;

/// What came.
#[derive(Debug)]
pub struct Bundle {
    pub details: Details,
    /// The answer's.
    pub tag: Option<String>,
    /// By `<app>_<version>`: the sums, and whether the content was kept.
    pub entries: BTreeMap<String, (Sums, bool)>,
}

/// Asks for everything at once. `wanted` says of an entry's name whether its content is to be kept.
///
/// # Errors
/// [`Trouble`]: nothing of it counts.
pub fn fetch_bundle(
    client: &Client,
    query: &str,
    etags: &str,
    store: &mut Store,
    wanted: &dyn Fn(&str) -> bool,
    meter: &mut Meter<'_>,
) -> Result<Answer<Bundle>, Trouble> {
    let mut response = match client.package(query, etags, meter)? {
        Answer::Content(response) => response,
        Answer::NotModified => return Ok(Answer::NotModified),
        Answer::Nothing => return Ok(Answer::Nothing),
    };
    let length = header(&response, "content-length").and_then(|text| text.parse::<u64>().ok());
    if let Some(length) = length.filter(|length| *length > meter.left()) {
        let (length, budget) = (edge::text::bytes(length), edge::text::bytes(meter.budget));
        return Err(Trouble::Budget(format!(
            "the bundle has {length}, more than is left of the day's {budget} (budget-per-day)"
        )));
    }
    let tag = tag(&response);
    let counted = Counted { inner: response.body_mut().as_reader(), meter };
    let mut unpacker =
        Unpacker { store, wanted, entry_max: client.entry_max, entries: BTreeMap::new(), details: None };
    unpacker.run(counted, client.total_max, client.details_max)?;
    unpacker.finish(tag).map(Answer::Content)
}

struct Unpacker<'a> {
    store: &'a mut Store,
    wanted: &'a dyn Fn(&str) -> bool,
    entry_max: u64,
    entries: BTreeMap<String, (Sums, bool)>,
    details: Option<Details>,
}

fn refuse(why: impl std::fmt::Display) -> Trouble {
    Trouble::Refused(format!("the bundle is refused: {why}"))
}

/// An error of reading the archive: ours, of the connection, or the archive's.
fn damaged(error: &std::io::Error) -> Trouble {
    match (error.kind(), broken(error)) {
        (std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData, Trouble::Passing(_)) => {
            refuse(format!("it is damaged: {error}"))
        }
        (_, trouble) => trouble,
    }
}

/// Ends with a refusal where a stream gets longer than allowed, which an end of it would hide.
struct Bounded<R> {
    inner: R,
    left: u64,
    max: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(n as u64).ok_or_else(|| {
            let max = edge::text::bytes(self.max);
            std::io::Error::other(Carried(refuse(format!(
                "it unpacks to more than {max} (limits.expanded-max)"
            ))))
        })?;
        Ok(n)
    }
}

impl Unpacker<'_> {
    fn run(&mut self, source: impl Read, total_max: u64, details_max: u64) -> Result<(), Trouble> {
        let mut unzipped = Bounded { inner: MultiGzDecoder::new(source), left: total_max, max: total_max };
        let mut archive = tar::Archive::new(&mut unzipped);
        // Raw: the crate would keep a long name in memory whatever its length.
        let entries = archive.entries().map_err(|error| damaged(&error))?.raw(true);
        let mut long: Option<Vec<u8>> = None;
        for (count, entry) in entries.enumerate() {
            let mut entry = entry.map_err(|error| damaged(&error))?;
            if count >= ENTRIES_MAX {
                return Err(refuse(format!("it has more than {ENTRIES_MAX} entries")));
            }
            match entry.header().entry_type() {
                EntryType::GNULongName => {
                    let mut name = whole(&mut entry)?;
                    while name.last() == Some(&0) {
                        name.pop();
                    }
                    long = Some(name);
                }
                EntryType::XHeader => {
                    let bytes = whole(&mut entry)?;
                    for record in tar::PaxExtensions::new(&bytes) {
                        let record = record.map_err(|error| damaged(&error))?;
                        match record.key_bytes() {
                            b"path" => long = Some(record.value_bytes().to_vec()),
                            b"size" => return Err(refuse("the PAX record \"size\" is not handled here")),
                            _ => {}
                        }
                    }
                }
                EntryType::XGlobalHeader => drop(whole(&mut entry)?),
                EntryType::Regular => {
                    let name = long.take().unwrap_or_else(|| entry.header().path_bytes().into_owned());
                    let name = String::from_utf8(name).map_err(|_| refuse("a name is not UTF-8"))?;
                    self.entry(name.trim_start_matches("./"), &mut entry, details_max)?;
                }
                other => return Err(refuse(format!("an entry is of the type {other:?}"))),
            }
        }
        // The end of the gzip stream has its checksum.
        let rest = std::io::copy(&mut unzipped, &mut std::io::sink()).map_err(|error| damaged(&error))?;
        log::debug!("bundle: {rest} bytes behind the archive");
        Ok(())
    }

    fn entry(&mut self, name: &str, content: &mut dyn Read, details_max: u64) -> Result<(), Trouble> {
        if name == DETAILS {
            if self.details.is_some() {
                return Err(refuse(format!("it has {DETAILS} twice")));
            }
            let bytes = read_details(content, details_max)?;
            self.details = Some(parse(&bytes)?);
            return Ok(());
        }
        if name.is_empty() || name.len() > 200 || name.contains('/') {
            return Err(refuse(format!("an entry has the name {name:?}")));
        }
        if self.entries.contains_key(name) {
            return Err(refuse(format!("it has {name:?} twice")));
        }
        let kept = (self.wanted)(name);
        let mut incoming = match kept {
            true => Some(self.store.incoming(self.entry_max).map_err(|error| trouble(&error))?),
            false => None,
        };
        let mut digests = Digests::default();
        let mut buffer = vec![0; PIECE];
        loop {
            let n = content.read(&mut buffer).map_err(|error| damaged(&error))?;
            if n == 0 {
                break;
            }
            let piece = buffer.get(..n).unwrap_or_default();
            match &mut incoming {
                Some(incoming) => incoming.write(piece).map_err(|error| trouble(&error))?,
                None => digests.update(piece),
            }
        }
        let sums = match incoming {
            Some(incoming) => incoming.finish().map_err(|error| trouble(&error))?.1,
            None => digests.finish(),
        };
        self.entries.insert(name.to_owned(), (sums, kept));
        Ok(())
    }

    fn finish(self, tag: Option<String>) -> Result<Bundle, Trouble> {
        let Some(details) = self.details else { return Err(refuse(format!("it has no {DETAILS}"))) };
        let names: Vec<String> =
            details.0.iter().map(|(app, entry)| format!("{app}_{}", entry.latest.version)).collect();
        if let Some(stray) = self.entries.keys().find(|name| !names.contains(name)) {
            return Err(refuse(format!("{stray:?} is not in its {DETAILS}: nobody asked for it")));
        }
        for ((app, entry), name) in details.0.iter().zip(&names) {
            if entry.latest.status_code == 200 && !self.entries.contains_key(name) {
                return Err(refuse(format!("{name} is in its {DETAILS} and not in it")));
            }
            let Some((sums, _)) = self.entries.get(name) else { continue };
            let latest = &entry.latest;
            let differs = latest.sha256.is_some_and(|sum| sum != sums.sha256)
                || latest.size.is_some_and(|size| size != sums.size)
                || latest.md5.is_some_and(|sum| sum != sums.md5);
            if differs {
                return Err(refuse(format!("the content of {app} is not what its {DETAILS} says")));
            }
        }
        Ok(Bundle { details, tag, entries: self.entries })
    }
}

fn whole(entry: &mut dyn Read) -> Result<Vec<u8>, Trouble> {
    let mut bytes = Vec::new();
    entry.take(NAME_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|error| damaged(&error))?;
    if bytes.len() as u64 > NAME_BYTES_MAX {
        return Err(refuse("a header before an entry is too long"));
    }
    Ok(bytes)
}

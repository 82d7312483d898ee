//! One file, which may have come in part already.
//!
//! The bytes that are here are asked to be continued (`Range`) on the condition that the file is still the same
//! (`If-Range` with its strong ETag). Invariant: what is kept is exactly what was announced; anything else is dropped.

use std::io::Read as _;

use edge::release::{Sha256, Sums};

use super::{Client, Meter, PIECE, broken, header, refusal};
use crate::core::Trouble;
use crate::install::{Error, Partial, Store};

/// Fetches content into the store.
///
/// # Errors
/// [`Trouble::Refused`]: what came is not what was announced. A connection that breaks keeps what came.
pub fn fetch_blob(
    client: &Client,
    download: &str,
    sums: &Sums,
    store: &mut Store,
    meter: &mut Meter<'_>,
) -> Result<(), Trouble> {
    let url = client.locate(download)?;
    let mut partial = store.partial(&sums.sha256, sums.size).map_err(|error| trouble(&error))?;
    // A part of which the ETag is not known is continued all the same; the sum decides, and then there is one new try.
    let mut resumed = partial.have() > 0;
    if resumed {
        log::info!("{url}: going on after {}", edge::text::bytes(partial.have()));
    }
    loop {
        if partial.have() < partial.size() || partial.size() == 0 {
            continue_with(client, &url, &sums.sha256, &mut partial, meter)?;
        }
        match partial.finish() {
            Ok(_) => break,
            Err(error @ Error::Content { .. }) if resumed => {
                log::warn!("{url}: {}: beginning anew", edge::log::chain(&error));
                resumed = false;
                partial = store.partial(&sums.sha256, sums.size).map_err(|error| trouble(&error))?;
                partial.abandon().map_err(|error| trouble(&error))?;
            }
            Err(error) => {
                meter.ledger.set_etag(&sums.sha256, None);
                return Err(trouble(&error));
            }
        }
    }
    if meter.ledger.set_etag(&sums.sha256, None) {
        meter.ledger.save().map_err(|error| Trouble::Passing(edge::log::chain(&error)))?;
    }
    Ok(())
}

fn continue_with(
    client: &Client,
    url: &str,
    sha256: &Sha256,
    partial: &mut Partial,
    meter: &mut Meter<'_>,
) -> Result<(), Trouble> {
    let range = format!("bytes={}-", partial.have());
    let etag = meter.ledger.etag(sha256).map(str::to_owned);
    let mut headers = Vec::new();
    if partial.have() > 0 {
        headers.push(("range", range.as_str()));
        headers.extend(etag.as_deref().map(|etag| ("if-range", etag)));
    }
    let mut response = client.get(url, &headers, meter)?;
    match response.status().as_u16() {
        206 => {
            let here = format!("bytes {}-", partial.have());
            if !header(&response, "content-range").is_some_and(|range| range.starts_with(&here)) {
                partial.abandon().map_err(|error| trouble(&error))?;
                return Err(Trouble::Passing(format!("{url} answers with another range than was asked for")));
            }
        }
        200 => {
            if partial.have() > 0 {
                log::info!("{url} has changed, or can't be continued: beginning anew");
                partial.abandon().map_err(|error| trouble(&error))?;
            }
            let said = header(&response, "content-length").and_then(|text| text.parse::<u64>().ok());
            if let Some(said) = said.filter(|said| *said != partial.size()) {
                return Err(Trouble::Refused(format!(
                    "{url} has {said} bytes, and {} were announced",
                    partial.size()
                )));
            }
        }
        416 => {
            partial.abandon().map_err(|error| trouble(&error))?;
            return Err(Trouble::Passing(format!("{url} can't be continued: it begins anew next time")));
        }
        _ => return Err(refusal(url, &mut response)),
    }
    let strong = header(&response, "etag").filter(|etag| etag.starts_with('"')).map(str::to_owned);
    if meter.ledger.set_etag(sha256, strong.as_deref()) {
        meter.ledger.save().map_err(|error| Trouble::Passing(edge::log::chain(&error)))?;
    }
    let mut reader = response.body_mut().as_reader();
    let mut buffer = vec![0; PIECE];
    loop {
        let n = reader.read(&mut buffer).map_err(|error| broken(&error))?;
        if n == 0 {
            break;
        }
        let written = partial.write(buffer.get(..n).unwrap_or_default());
        written.map_err(|error| trouble(&error))?;
        // After the bytes are kept: what came is used even if it was the last of the budget.
        meter.spend(n)?;
    }
    if partial.have() < partial.size() {
        return Err(Trouble::Passing(format!(
            "{url} ends after {} of {} bytes",
            partial.have(),
            partial.size()
        )));
    }
    Ok(())
}

/// The store's refusal, as the core sees it.
pub(crate) fn trouble(error: &Error) -> Trouble {
    let why = edge::log::chain(error);
    match (error.is_space(), error.errno()) {
        (true, _) => Trouble::Space(why),
        (false, Some(_)) => Trouble::Passing(why),
        (false, None) => Trouble::Refused(why),
    }
}

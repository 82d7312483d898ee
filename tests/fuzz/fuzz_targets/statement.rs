//! What a server or a publisher sends of releases: statements, package details, signatures, digests, times. What is
//! accepted is bounded, and reads back the same when it is written. The first byte selects the parser.
#![no_main]

use edge::release::{
    Details, OFFERS_MAX, PublicKeys, STATEMENT_BYTES_MAX, Sha256, Statement, Timestamp, rollout, valid_name,
    valid_version,
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((&selector, data)) = data.split_first() else { return };
    match selector % 4 {
        0 => statement(data),
        1 => details(data),
        2 => signature(data),
        _ => words(data),
    }
});

fn statement(data: &[u8]) {
    let Ok(statement) = Statement::parse(data) else { return };
    assert!(data.len() <= STATEMENT_BYTES_MAX && statement.v == 1);
    assert!(valid_name(&statement.app) && valid_version(&statement.version) && valid_name(&statement.env));
    assert!(statement.epoch > 0 && statement.min_epoch <= statement.epoch && statement.from_epoch < statement.epoch);
    assert!(statement.rollout <= 100 && statement.attrs.iter().all(|attr| valid_name(attr)));
    let name = statement.file_name();
    assert!(!name.contains('/') && !name.starts_with('.'));
    let everybody = rollout::includes(&statement.salt, "device", statement.rollout);
    assert!(everybody || statement.rollout < 100);
    // Written anew it may be longer (defaults are spelled out), and is then refused; else it is the same.
    if let Ok(bytes) = statement.to_bytes() {
        match Statement::parse(&bytes) {
            Ok(again) => assert_eq!(again, statement),
            // A time beyond the year 9999 has no text that is read back.
            Err(_) => assert!(statement.expires.is_some()),
        }
    }
}

fn details(data: &[u8]) {
    let Ok(details) = Details::parse(data) else { return };
    for (app, entry) in &details.0 {
        assert!(valid_name(app) && entry.offers.len() <= OFFERS_MAX);
    }
    let again = Details::parse(&details.to_bytes());
    assert_eq!(again.ok(), Some(details));
}

fn signature(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // Nobody is trusted: whatever it is, it does not count.
    assert!(PublicKeys::default().verify(b"bytes", text).is_err());
}

fn words(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(digest) = text.parse::<Sha256>() {
        assert_eq!(digest.to_string(), text.to_lowercase());
    }
    if let Ok(at) = text.parse::<Timestamp>() {
        let _ = at.to_string();
    }
    assert!(!valid_name(text) || (!text.contains(['/', '\0']) && text != ".." && text.len() <= 64));
}

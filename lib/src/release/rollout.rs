//! Staged rollout, decided on the device, so that one cached answer serves a whole fleet.
//!
//! `SHA-256(salt || device id)`, the two as they are written, without anything between. Its first eight bytes, big-endian,
//! are a number from 0 to 2^64 - 1; the release is for the device if that number lies in the first `percent` hundredths.
//! A device keeps its place for as long as the salt stays, so that raising the percentage only ever adds devices.

use sha2::{Digest as _, Sha256};

/// Whether a release at `percent` of its fleet is for the device `id`. 100 and more is everybody, 0 nobody.
#[must_use]
pub fn includes(salt: &str, id: &str, percent: u8) -> bool {
    u128::from(place(salt, id)) * 100 < u128::from(percent) << 64
}

/// The device's place in the line, from 0 (first) to 2^64 - 1 (last).
#[must_use]
pub fn place(salt: &str, id: &str) -> u64 {
    let digest = Sha256::new().chain_update(salt).chain_update(id).finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&digest[..8]);
    u64::from_be_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_everybody_and_only_ever_more() {
        for n in 0..1000 {
            let id = format!("cam-{n}");
            assert!(!includes("s", &id, 0) && includes("s", &id, 100) && includes("s", &id, 255));
            let first = (0..=100).find(|p| includes("s", &id, *p)).unwrap();
            assert!((first..=100).all(|p| includes("s", &id, p)), "{id} leaves again");
        }
    }

    #[test]
    fn a_tenth_is_a_tenth_whatever_the_salt() {
        for salt in ["", "7f3a", "another"] {
            let n = (0..100_000).filter(|n| includes(salt, &format!("device-{n}"), 10)).count();
            // Four standard deviations of a binomial are 380.
            assert!((9_620..=10_380).contains(&n), "{salt:?}: {n}");
        }
    }

    #[test]
    fn the_place_is_what_sha256sum_says() {
        // printf saltcam | sha256sum
        let digest = crate::text::sha256_hex(b"saltcam");
        assert_eq!(format!("{:016x}", place("salt", "cam")), digest[..16]);
    }
}

//! The small files of otad's store: state, marks, quarantine, history, clock, and a generation's manifest. A disk may have
//! put anything into them, with a check sum that is right too. What is accepted is written to something that reads back
//! the same. The first byte selects the decoder, the second whether the bytes get a right check sum.
#![no_main]

use otad::install::{GenFile, HighWater, History, Manifest, Quarantined, Record, decode, encode, seal};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let [selector, sealed, data @ ..] = data else { return };
    let mut bytes = data.to_vec();
    if sealed % 2 == 0 {
        // The form of the files, around whatever the line is.
        let crc = crc32c::crc32c(data);
        bytes.extend_from_slice(format!("\ncrc32c {crc:08x}\n").as_bytes());
    }
    match selector % 6 {
        0 => {
            let Some(record) = Record::decode(&bytes) else { return };
            assert_eq!(Record::decode(&seal(&record)), Some(record));
        }
        1 => same::<HighWater>(&bytes),
        2 => same::<Vec<Quarantined>>(&bytes),
        3 => same::<History>(&bytes),
        4 => same::<i64>(&bytes),
        _ => {
            let Some(file) = GenFile::decode(&bytes) else { return };
            let items = file.manifest.items();
            assert!(items.iter().all(|item| edge::release::valid_name(&item.app)));
            assert_eq!(Manifest::new(items.to_vec()).ok().as_ref(), Some(&file.manifest));
            assert_eq!(GenFile::decode(&file.encode()), Some(file));
        }
    }
});

fn same<T: serde::Serialize + serde::de::DeserializeOwned + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    let Some(value) = decode::<T>(bytes) else { return };
    assert_eq!(decode(&encode(&value)), Some(value));
}

//! From a message to its object: key, type, headers, sidecar. The worker threads run it.

use edge::objects::{Object, Outcome, Store, sidecar_key};
use edge::spool::Record;
use edge::text::sha256_hex;

use crate::config::Objects;
use crate::key::Facts;
use crate::meta::{self, METADATA_BYTES_MAX};

/// Makes a message an object and stores it. Blocks.
pub fn upload(record: &Record, store: &Store, objects: &Objects, now_ms: u64) -> Outcome {
    let message = &record.message;
    let sha256 = sha256_hex(&message.payload);
    let content_type = meta::content_type(message, &objects.rules);
    let ext = meta::extension(&content_type);
    let facts = Facts { message, received_ms: record.received_ms, sha256: &sha256, ext };
    let key = match objects.template.key(&objects.prefix, &facts) {
        Ok(key) => key,
        Err(why) => return Outcome::Dead(why),
    };
    let mut headers = meta::headers(record, &objects.listed, METADATA_BYTES_MAX);
    let wants_sidecar = objects.sidecar_always || (objects.sidecar_overflow && !headers.complete);
    if wants_sidecar && matches!(store, Store::S3(_)) {
        // The headers say where the rest is. Room for that is made by leaving out what came last.
        let pointer = ("x-amz-meta-sidecar".to_owned(), meta::ascii(&sidecar_key(&key)));
        let room = METADATA_BYTES_MAX.saturating_sub(pointer.0.len() + pointer.1.len());
        headers = meta::headers(record, &objects.listed, room);
        headers.list.retain(|(name, _)| *name != pointer.0);
        headers.list.push(pointer);
    }
    let sidecar = wants_sidecar.then(|| meta::sidecar(record, &key, &content_type, &sha256, now_ms));
    store.put(&Object {
        key: &key,
        body: &message.payload,
        sha256: &sha256,
        content_type: &content_type,
        headers: &headers.list,
        sidecar: sidecar.as_deref(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::Template;
    use crate::meta::Listed;
    use edge::mqtt::Message;
    use edge::objects::dir::Dir;

    #[test]
    fn a_message_becomes_a_file_with_its_sidecar() {
        let root = std::env::temp_dir().join(format!("s3put-upload-{}", std::process::id()));
        std::fs::create_dir_all(&root).unwrap();
        let store = Store::Dir(Dir::new(root.clone(), 0o640));
        let objects = Objects {
            prefix: String::new(),
            template: Template::parse("{topic}/{date}/{id}{ext}").unwrap(),
            rules: vec![],
            listed: Listed::All,
            sidecar_always: true,
            sidecar_overflow: true,
        };
        let mut message =
            Message { topic: "faces".into(), payload: b"\xff\xd8\xffx".to_vec(), ..Message::default() };
        message.properties.user =
            vec![("id".into(), "f-1".into()), ("time".into(), "2026-11-21T10:00:00.123Z".into())];
        let mut record = Record { seq: 1, received_ms: 5, source: "b".into(), in_pid: None, message };
        assert_eq!(upload(&record, &store, &objects, 9), Outcome::Stored { already: false });
        record.received_ms = 77;
        assert_eq!(upload(&record, &store, &objects, 99), Outcome::Stored { already: true });
        let path = root.join("faces/2026-11-21/f-1.jpg");
        assert_eq!(std::fs::read(&path).unwrap(), b"\xff\xd8\xffx");
        let sidecar = std::fs::read(root.join("faces/2026-11-21/f-1.jpg.json")).unwrap();
        let sidecar: serde_json::Value = serde_json::from_slice(&sidecar).unwrap();
        assert_eq!(sidecar["properties"]["id"], "f-1");
        record.message.topic = "a/../b".into();
        assert!(matches!(upload(&record, &store, &objects, 9), Outcome::Dead(_)));
        std::fs::remove_dir_all(root).unwrap();
    }
}

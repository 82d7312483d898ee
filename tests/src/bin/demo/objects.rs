//! What came out at the far end, read back from the store: bytes, metadata, and when it was stored.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use e2e::aws::S3;
use e2e::scratch;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// One stored face.
#[derive(Clone, Debug)]
pub struct Object {
    pub bytes: Vec<u8>,
    pub content_type: String,
    /// Everything said about it, by name.
    pub meta: BTreeMap<String, String>,
    /// From the frame's time to the object's, ms.
    pub latency_ms: Option<f64>,
    /// From the moment the crop was published to the object's time, ms.
    pub after_choice_ms: Option<f64>,
}

/// Objects of a folder with their `.json` sidecars.
pub fn from_folder(root: &Path) -> Vec<Object> {
    pictures(root).into_iter().map(|path| object(root, &path, &path, sidecar(&path))).collect()
}

/// Objects copied from a bucket; metadata comes from HEAD, the time from the server's own file.
pub fn from_s3(s3: &S3, bucket: &str, copy: &Path) -> Vec<Object> {
    let read = |path: PathBuf| {
        let key = path.strip_prefix(copy).unwrap().to_string_lossy().into_owned();
        let head = s3.head(bucket, &key);
        let mut meta = flat(&head["Metadata"]);
        meta.extend(sidecar(&path));
        if let Some(kind) = head["ContentType"].as_str() {
            meta.insert("content-type".into(), kind.into());
        }
        object(copy, &path, &s3.root.join(bucket).join(&key), meta)
    };
    pictures(copy).into_iter().map(read).collect()
}

fn pictures(root: &Path) -> Vec<PathBuf> {
    let mut found = scratch::files(root);
    found.retain(|p| {
        let name = p.file_name().unwrap().to_string_lossy().into_owned();
        !name.starts_with('.') && !name.ends_with(".json")
    });
    found
}

/// The sidecar's values, nested ones by their own names.
fn sidecar(path: &Path) -> BTreeMap<String, String> {
    let with = |suffix: &str| PathBuf::from(format!("{}{suffix}", path.display()));
    let text =
        [with(".json"), path.with_extension("json")].iter().find_map(|p| std::fs::read_to_string(p).ok());
    text.and_then(|text| serde_json::from_str::<Value>(&text).ok()).map(|v| flat(&v)).unwrap_or_default()
}

fn flat(value: &Value) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let pair = |entry: &Value| Some((entry.get(0)?.as_str()?.to_owned(), entry.get(1)?.as_str()?.to_owned()));
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                match value {
                    Value::Object(_) | Value::Array(_) => out.extend(flat(value)),
                    Value::String(text) => drop(out.insert(name.clone(), text.clone())),
                    Value::Null => {}
                    other => drop(out.insert(name.clone(), other.to_string())),
                }
            }
        }
        Value::Array(list) => out.extend(list.iter().filter_map(pair)),
        _ => {}
    }
    out
}

fn object(root: &Path, path: &Path, stored: &Path, mut meta: BTreeMap<String, String>) -> Object {
    let bytes = std::fs::read(path).unwrap_or_default();
    let key = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
    meta.insert("key".into(), key);
    let at = stored.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::now());
    // A file's time is that of the kernel's last tick; s3put itself knows better, where it says so.
    let said = meta.get("stored").and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
    let at = said.unwrap_or(OffsetDateTime::from(at));
    let since = |name: &str| {
        let time = OffsetDateTime::parse(meta.get(name)?, &Rfc3339).ok()?;
        Some(((at - time).as_seconds_f64() * 1000.0).max(0.0))
    };
    let content_type = if bytes.starts_with(b"\x89PNG") { "image/png" } else { "image/jpeg" }.to_owned();
    let (latency_ms, after_choice_ms) = (since("time"), since("published"));
    Object { bytes, content_type, latency_ms, after_choice_ms, meta }
}

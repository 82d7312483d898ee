//! The two folders for people: `quarantine/` (damaged bytes) and `dead-letter/` (records that can't be delivered).
//!
//! Owns their bounds. A file appears whole or not at all, and its name is a pure function of what is in it, so doing
//! the same again after a crash changes nothing.

use std::io;

use super::disk::{DEAD_LETTER, Disk, QUARANTINE};
use super::types::Record;

/// Copies damaged bytes, read by `read(offset, buffer)`, if they fit into the bound. Returns whether they were.
pub(crate) fn quarantine(
    disk: &dyn Disk,
    name: &str,
    len: u64,
    bound: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> io::Result<usize>,
) -> io::Result<bool> {
    let files = disk.list(QUARANTINE)?;
    if files.iter().any(|(n, l)| n == name && *l == len) {
        return Ok(true);
    }
    if files.iter().map(|(_, l)| l).sum::<u64>() + len > bound {
        return Ok(false);
    }
    let path = format!("{QUARANTINE}/{name}");
    let part = format!("{path}.part");
    let file = disk.create(&part, 0)?;
    let mut buffer = vec![0u8; 64 * 1024];
    let mut done = 0;
    while done < len {
        let want = buffer.len().min((len - done) as usize);
        // What can't be read is kept as zeros: the place of the rest stays right.
        let n = read(done, &mut buffer[..want]).unwrap_or(0);
        buffer[n..want].fill(0);
        file.write_at(&[&buffer[..want]], done)?;
        done += want as u64;
    }
    file.sync()?;
    disk.rename(&part, &path)?;
    disk.sync_dir(QUARANTINE)?;
    Ok(true)
}

/// Writes a dead letter, the oldest ones making room. Returns how many had to go.
///
/// The file: a JSON object with everything but the payload, an empty line, the payload as it was.
pub(crate) fn dead_letter(
    disk: &dyn Disk,
    record: &Record,
    reason: &str,
    now_ms: u64,
    bound_bytes: u64,
    bound_files: usize,
) -> io::Result<u64> {
    let head = header(record, reason, now_ms)?;
    let name = format!("{:020}.msg", record.seq);
    let len = (head.len() + record.message.payload.len()) as u64;
    let mut files = disk.list(DEAD_LETTER)?;
    files.retain(|(n, _)| *n != name);
    files.sort();
    let mut bytes: u64 = files.iter().map(|(_, l)| l).sum();
    let mut removed = 0;
    let mut count = files.len();
    for (old, l) in files {
        if bytes + len <= bound_bytes && count < bound_files.max(1) {
            break;
        }
        disk.unlink(&format!("{DEAD_LETTER}/{old}"))?;
        bytes -= l;
        count -= 1;
        removed += 1;
    }
    let path = format!("{DEAD_LETTER}/{name}");
    let part = format!("{path}.part");
    let file = disk.create(&part, 0)?;
    let written = file.write_at(&[head.as_bytes(), &record.message.payload], 0).and_then(|()| file.sync());
    if let Err(e) = written {
        // The first error is the one to report.
        let _ = disk.unlink(&part);
        return Err(e);
    }
    disk.rename(&part, &path)?;
    disk.sync_dir(DEAD_LETTER)?;
    Ok(removed)
}

fn header(record: &Record, reason: &str, now_ms: u64) -> io::Result<String> {
    let m = &record.message;
    let p = &m.properties;
    let correlation: Option<String> =
        p.correlation.as_ref().map(|c| c.iter().map(|b| format!("{b:02x}")).collect());
    let value = serde_json::json!({
        "reason": reason,
        "dead-since-ms": now_ms,
        "seq": record.seq,
        "received-ms": record.received_ms,
        "source": &*record.source,
        "packet-id": record.in_pid,
        "topic": m.topic,
        "qos": m.qos as u8,
        "retain": m.retain,
        "payload-bytes": m.payload.len(),
        "properties": {
            "content-type": p.content_type,
            "expiry-s": p.expiry_s,
            "payload-utf8": p.payload_utf8,
            "response-topic": p.response_topic,
            "correlation-hex": correlation,
            "user": p.user,
        },
    });
    Ok(serde_json::to_string_pretty(&value)? + "\n\n")
}

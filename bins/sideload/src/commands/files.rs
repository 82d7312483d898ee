//! `list-files`, `send-file`, `delete-file`: the original's requests, one file each.

use std::fs::File;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};
use std::time::SystemTime;

use edge::http::uri::percent_encode_path;
use edge::sync::RelPath;
use serde_json::{Value, json};

use super::{ask, connect, number, text};
use crate::client::{Body, Request};
use crate::config::Settings;
use crate::output::{EX_IOERR, Failure, Reply, table};
use crate::progress::Bar;

/// `list-files`
pub fn list(settings: &Settings) -> Result<Reply, Failure> {
    let answer = ask(settings, "GET", "/files")?;
    let mut files: Vec<&Value> = answer.as_array().map(|all| all.iter().collect()).unwrap_or_default();
    files.sort_by_key(|file| text(file, "filepath"));
    let row = |file: &&Value| {
        // Whole seconds are enough for people.
        let mtime: String = text(file, "mtime").chars().take(19).collect();
        vec![mtime.replace('T', " "), number(file, "size").to_string(), text(file, "filepath").to_owned()]
    };
    let shown = if files.is_empty() {
        "no files on the device yet: `sideload sync` sends them\n".to_owned()
    } else {
        table(&files.iter().map(row).collect::<Vec<_>>(), &[1])
    };
    Ok(Reply::new(shown, answer))
}

/// `send-file`
pub fn send(settings: &Settings, cwd: &Path, given: &str, as_json: bool) -> Result<Reply, Failure> {
    let top = settings.source()?;
    let (local, path) = locate(top, cwd, given)?;
    let failed = |error: std::io::Error| {
        Failure::new(EX_IOERR, format!("cannot read {}: {error}", local.display()))
            .fix(format!("FILEPATH counts from src-top, which is {}", top.display()))
    };
    let mut file = File::open(&local).map_err(failed)?;
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        return Err(Failure::new(EX_IOERR, format!("{} is no regular file", local.display()))
            .fix("`sideload sync` sends whole folders"));
    }
    let mtime = meta.modified().ok().and_then(naive_utc);
    let mode = format!("{:o}", meta.permissions().mode() & 0o777);
    let mut headers = vec![("mode", mode.as_str())];
    headers.extend(mtime.as_deref().map(|mtime| ("mtime", mtime)));
    let mut client = connect(settings)?;
    let mut bar = Bar::new(as_json);
    bar.start("sending", meta.len());
    let url = format!("/files/{}", percent_encode_path(&path));
    let mut reader = Counted { file: &mut file, bar: &mut bar };
    let body = Body::Reader { reader: &mut reader, len: Some(meta.len()) };
    client.request(Request::new("PUT", &url).headers(&headers).body(body))?.check()?.bytes(1 << 20)?;
    bar.end();
    let line = format!("sent {} ({})", &*path, edge::text::bytes(meta.len()));
    Ok(Reply::line(line, json!({ "sent": &*path, "bytes": meta.len() })))
}

/// `delete-file`
pub fn delete(settings: &Settings, given: &str) -> Result<Reply, Failure> {
    let path = on_device(given)?;
    let url = format!("/files/{}", percent_encode_path(&path));
    match connect(settings)?.request(Request::new("DELETE", &url))?.json() {
        Ok(_) => {}
        Err(error @ crate::client::Error::Refused { status: 404, .. }) => {
            return Err(Failure::from(error).or_fix("`sideload list-files` shows what is there"));
        }
        Err(error) => return Err(error.into()),
    }
    Ok(Reply::line(format!("deleted {} on the device", &*path), json!({ "deleted": &*path })))
}

/// The path as the device has it.
pub fn on_device(given: &str) -> Result<RelPath, Failure> {
    let given = given.trim_start_matches("./");
    RelPath::new(given).map_err(|refusal| {
        Failure::usage(refusal.to_string()).fix("name it as `sideload list-files` does: relative, with /")
    })
}

/// The file here, and its path on the device. `given` counts from `top`; else from `cwd`, if that leads into `top`.
fn locate(top: &Path, cwd: &Path, given: &str) -> Result<(PathBuf, RelPath), Failure> {
    let from_top = top.join(given);
    let local = if from_top.exists() || !cwd.join(given).exists() { from_top } else { cwd.join(given) };
    let inside = plain(&local).strip_prefix(plain(top)).map(Path::to_owned);
    let inside = inside.map_err(|_| {
        Failure::usage(format!("{} is not beneath {}", local.display(), top.display()))
            .fix("only files beneath src-top have a place on the device: --src-top, or copy it there")
    })?;
    let path = inside.to_str().unwrap_or(given);
    Ok((local, on_device(path)?))
}

/// Without `.` and `..`, by the text alone: a link inside src-top keeps its own name.
fn plain(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

/// A moment as the protocol writes it: naive UTC with six digits of a second.
fn naive_utc(moment: SystemTime) -> Option<String> {
    let format = time::macros::format_description!(
        "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]"
    );
    time::OffsetDateTime::from(moment).format(format).ok()
}

struct Counted<'a> {
    file: &'a mut File,
    bar: &'a mut Bar,
}

impl std::io::Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.bar.add(count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn a_file_is_found_from_the_top_and_from_here() {
        let scratch = Scratch::new("files-locate");
        let top = scratch.path().join("src");
        std::fs::create_dir_all(top.join("model")).unwrap();
        std::fs::write(top.join("model/net"), "x").unwrap();
        scratch.write("outside", "x");
        let from = |cwd: &Path, given: &str| locate(&top, cwd, given);
        for (cwd, given) in [
            (scratch.path(), "model/net"),
            (scratch.path(), "./model//net"),
            (scratch.path(), "src/model/net"),
            (top.join("model").as_path(), "net"),
            (top.join("model").as_path(), "../model/net"),
        ] {
            let (local, path) = from(cwd, given).unwrap();
            assert_eq!(&*path, "model/net", "{given}");
            assert!(local.exists());
        }
        let absolute = top.join("model/net");
        assert_eq!(&*from(scratch.path(), absolute.to_str().unwrap()).unwrap().1, "model/net");
        assert_eq!(from(scratch.path(), "outside").unwrap_err().code, 64);
        assert_eq!(from(scratch.path(), "../x").unwrap_err().code, 64);
    }

    #[test]
    fn times_have_six_digits_and_no_zone() {
        let moment = SystemTime::UNIX_EPOCH + Duration::new(1_795_531_617, 123_456_789);
        assert_eq!(naive_utc(moment).unwrap(), "2026-11-24T14:46:57.123456");
    }
}

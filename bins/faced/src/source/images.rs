//! A folder of pictures: PNG and JPEG files in the order of their names, one after the other.
//!
//! Owns: its thread. Invariant: no picture is left out; it waits for the detector. A file that can't be read is
//! reported, counted and passed over. Never: looks into subfolders.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use edge::clock::unix_ms;

use super::feed::{Fed, Feed};
use super::{Stop, StreamInfo};
use crate::convert::decode_picture;
use crate::inbox::End;

/// The largest picture file read, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Reads the folder until its end, or until it is told to stop.
pub fn run(mut feed: Feed, folder: &Path, stop: &Stop) {
    let pause = if feed.config().fast { Duration::ZERO } else { feed.config().interval };
    let end = loop {
        match pass(&mut feed, folder, pause, stop) {
            Ok(()) if feed.config().repeat && !stop.sleep(pause) => {}
            Ok(()) if stop.is_asked() => break End::Stopped,
            Ok(()) => break End::Ended,
            Err(why) => break End::Lost(why),
        }
    };
    feed.finish(end);
}

/// The picture files of the folder, by name.
///
/// # Errors
/// In words, when the folder can't be read or holds none.
pub fn list(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let entries =
        std::fs::read_dir(folder).map_err(|e| format!("cannot read the folder {}: {e}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|e| e.path()))
        .filter(|path| {
            let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
            matches!(extension.as_deref(), Some("png" | "jpg" | "jpeg"))
        })
        .collect();
    if files.is_empty() {
        return Err(format!("there is no .png, .jpg or .jpeg file in {}", folder.display()));
    }
    files.sort();
    Ok(files)
}

fn pass(feed: &mut Feed, folder: &Path, pause: Duration, stop: &Stop) -> Result<(), String> {
    let interval_ms = u64::try_from(feed.config().interval.as_millis()).unwrap_or(u64::MAX);
    let mut told = false;
    for (n, path) in list(folder)?.into_iter().enumerate() {
        if n > 0 && stop.sleep(pause) {
            return Ok(());
        }
        let name: Arc<str> = path.file_name().unwrap_or_default().to_string_lossy().into();
        let decoded = read(&path)
            .map_err(|e| e.to_string())
            .and_then(|bytes| decode_picture(&bytes).map_err(|e| edge::log::chain(&e)));
        let (layout, data) = match decoded {
            Ok(picture) => picture,
            Err(why) => {
                feed.bad();
                log::warn!("camera {}: {} is passed over: {why}", feed.config().name, path.display());
                continue;
            }
        };
        if !told {
            told = true;
            let (width, height, format) = (layout.width, layout.height, layout.format);
            feed.opened(StreamInfo { width, height, fps: None, format, what: folder.display().to_string() });
        }
        // The camera's clock counts at least a millisecond a picture, so that no two share a moment.
        let at_ms = n as u64 * interval_ms.max(1);
        match feed.picture(layout, data, at_ms, unix_ms(), name) {
            Ok(Fed::Stop) => return Ok(()),
            Ok(_) => {}
            Err(error) => log::warn!("camera {}: {}: {error}", feed.config().name, path.display()),
        }
    }
    // Beginning again at once would only say the same again.
    if told { Ok(()) } else { Err(format!("none of the pictures in {} can be read", folder.display())) }
}

fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_by_name_and_an_empty_folder_says_so() {
        let folder =
            std::env::temp_dir().join(format!("faced-images-{}-{}", std::process::id(), fastrand::u64(..)));
        std::fs::create_dir(&folder).unwrap();
        assert!(list(&folder).unwrap_err().contains("no .png, .jpg or .jpeg file in"));
        for name in ["b.JPG", "a.png", "c.txt", "a10.jpeg"] {
            std::fs::write(folder.join(name), b"").unwrap();
        }
        let names: Vec<_> = list(&folder)
            .unwrap()
            .iter()
            .map(|p| p.file_name().unwrap().to_string_lossy().into_owned())
            .collect();
        assert_eq!(names, ["a.png", "a10.jpeg", "b.JPG"]);
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(list(&folder).unwrap_err().contains("cannot read the folder"));
    }
}

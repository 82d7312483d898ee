//! Pictures of a session, whichever machine of a fleet they were sent to: on the shelf here, else in the bucket.
//!
//! Invariants: where there is a bucket, a picture is what the database means only if its bytes are (SHA-256): one of the
//! same name may have been sent to another machine since, or not be uploaded yet. What is brought goes to the shelf under
//! a name of its own, so that nothing an arm sent here is ever replaced by it. A search ends at its deadline. Blocks.

use std::io::ErrorKind;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use edge::log::chain;
use edge::objects::s3::{Got, S3};
use edge::retry::Backoff;
use edge::text::sha256_hex;

use crate::config::Config;
use crate::db::ImageRow;
use crate::message::Session;
use crate::shelf::Shelf;
use crate::vision::Picture;

/// First and last ceiling of the delay before the bucket is asked again for a picture that is not there yet.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// A picture that is needed, as the database knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The file's name.
    pub name: String,
    /// Width and height in pixels, where they are known.
    pub size: Option<(u32, u32)>,
    /// Of its bytes, hexadecimal, where it is known.
    pub sha256: Option<String>,
}

impl From<ImageRow> for Wanted {
    fn from(row: ImageRow) -> Self {
        Self { name: row.image, size: Some((row.width, row.height)), sha256: row.sha256 }
    }
}

/// The pictures. All copies are the same album.
#[derive(Debug, Clone)]
pub struct Album {
    shelf: Shelf,
    pixels_max: u64,
    bucket: Option<Arc<Bucket>>,
}

/// Where the other machines' pictures are.
#[derive(Debug)]
struct Bucket {
    s3: S3,
    /// Of all keys: empty, or ending in `/`.
    prefix: String,
    bytes_max: u64,
    wait: Duration,
    /// Two who bring the same picture must not write one temporary file.
    writing: Mutex<()>,
}

/// Why a picture could not be brought.
enum Failed {
    /// It may come yet.
    Later(String),
    /// It won't.
    Now(String),
}

impl Album {
    #[must_use]
    pub fn new(config: &Config, shelf: &Shelf) -> Self {
        let bucket = config.upload.as_ref().map(|upload| Bucket {
            s3: S3::new(upload.target.clone()),
            prefix: upload.prefix.clone(),
            bytes_max: config.raw.limits.message_bytes_max.0,
            wait: upload.fetch_wait,
            writing: Mutex::new(()),
        });
        Self {
            shelf: shelf.clone(),
            pixels_max: config.raw.pictures.pixels_max,
            bucket: bucket.map(Arc::new),
        }
    }

    /// Whether pictures of other machines can be brought.
    #[must_use]
    pub fn has_bucket(&self) -> bool {
        self.bucket.is_some()
    }

    /// When a search that begins now ends.
    #[must_use]
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.bucket.as_ref().map_or(Duration::ZERO, |bucket| bucket.wait)
    }

    /// The picture, if it is here; `None`: it has to be brought first.
    ///
    /// # Errors
    /// In words: it is nowhere, or no picture of the size that the database says.
    pub fn read(&self, session: &Session, wanted: &Wanted) -> Result<Option<Picture>, String> {
        let Some(bytes) = self.bytes(session, wanted)? else { return Ok(None) };
        let picture = Picture::decode(&bytes, self.pixels_max).map_err(|error| chain(&error))?;
        match wanted.size {
            Some(size) if size != (picture.width(), picture.height()) => {
                Err(format!("the picture {} {}; send it again", wanted.name, other_size(&picture, size)))
            }
            _ => Ok(Some(picture)),
        }
    }

    fn bytes(&self, session: &Session, wanted: &Wanted) -> Result<Option<Vec<u8>>, String> {
        if self.bucket.is_none() {
            return self.shelf.get(session, &wanted.name).map(Some).map_err(|error| {
                format!(
                    "{}; in this mode pictures and commands have to go to the same machine",
                    chain(&error)
                )
            });
        }
        for found in [self.shelf.get(session, &wanted.name), self.shelf.get_fetched(session, &wanted.name)] {
            match found {
                Ok(bytes) if wanted.sha256.as_ref().is_none_or(|sha256| sha256_hex(&bytes) == *sha256) => {
                    return Ok(Some(bytes));
                }
                Ok(_) => {}
                Err(error) if error.source.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(chain(&error)),
            }
        }
        Ok(None)
    }

    /// Brings these pictures from the bucket to the shelf; waits for those that are not there yet until `deadline`. How
    /// many.
    ///
    /// # Errors
    /// In words: one of them can't be had.
    pub fn bring(&self, session: &Session, wanted: &[Wanted], deadline: Instant) -> Result<usize, String> {
        let Some(bucket) = &self.bucket else { return Err("there is no bucket in this mode".to_owned()) };
        let mut rng = fastrand::Rng::new();
        for picture in wanted {
            let mut backoff = Backoff::new(AGAIN.0, AGAIN.1, Duration::ZERO);
            let missing = |why: &str| {
                let Session { arm, session } = session;
                format!(
                    "the picture {} of {arm}/{session} is not here and can't be fetched: {why}",
                    picture.name
                )
            };
            loop {
                let why = match self.fetch(bucket, session, picture, deadline) {
                    Ok(()) => break,
                    Err(Failed::Now(why)) => return Err(missing(&why)),
                    Err(Failed::Later(why)) => why,
                };
                let now = Instant::now();
                let delay = backoff.next_delay(now, &mut rng);
                if now + delay >= deadline {
                    let waited = format!("waited for {} ms (upload.fetch-wait-ms)", bucket.wait.as_millis());
                    return Err(missing(&format!("{why}; {waited}")));
                }
                std::thread::sleep(delay);
            }
        }
        Ok(wanted.len())
    }

    fn fetch(
        &self,
        bucket: &Bucket,
        session: &Session,
        wanted: &Wanted,
        deadline: Instant,
    ) -> Result<(), Failed> {
        let key = format!("{}{}/{}/{}", bucket.prefix, session.arm, session.session, wanted.name);
        let within = deadline.saturating_duration_since(Instant::now());
        if within.is_zero() {
            return Err(Failed::Later("there was no time left to ask S3 for it".to_owned()));
        }
        let bytes = match bucket.s3.get(&key, bucket.bytes_max, within) {
            Got::Object(bytes) => bytes,
            Got::TooLarge(why) => return Err(Failed::Later(format!("{why} (limits.message-bytes-max)"))),
            Got::Absent(why) | Got::Retry(why) => return Err(Failed::Later(why)),
            Got::Refused(why) => return Err(Failed::Now(why)),
        };
        // An object that is not what is wanted may be the one before: the right one is on its way.
        if let Some(why) = differs(&bytes, wanted, self.pixels_max) {
            return Err(Failed::Later(format!("{}: {key} {why}", bucket.s3.name())));
        }
        let _one = bucket.writing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.shelf.put_fetched(session, &wanted.name, &bytes).map_err(|error| Failed::Now(chain(&error)))
    }
}

/// Why these bytes are not the picture that is wanted; `None`: they are.
fn differs(bytes: &[u8], wanted: &Wanted, pixels_max: u64) -> Option<String> {
    // Bytes that another machine found to be a picture of this size need no second look.
    if wanted.sha256.as_ref().is_some_and(|sha256| sha256_hex(bytes) == *sha256) {
        return None;
    }
    let picture = match Picture::decode(bytes, pixels_max) {
        Ok(picture) => picture,
        Err(error) => return Some(format!("is no picture: {}", chain(&error))),
    };
    match wanted.size {
        Some(size) if size != (picture.width(), picture.height()) => Some(other_size(&picture, size)),
        _ => wanted
            .sha256
            .as_ref()
            .map(|_| "is another picture than the one that was stored last under its name".to_owned()),
    }
}

fn other_size(picture: &Picture, (width, height): (u32, u32)) -> String {
    format!("has {}x{} pixels, the database says {width}x{height}", picture.width(), picture.height())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn jpeg(width: u32, shade: u8) -> Vec<u8> {
        Picture::blank(width, 30, [shade; 3]).unwrap().encode_jpeg(90).unwrap()
    }

    fn wanted(size: (u32, u32), sha256: Option<&[u8]>) -> Wanted {
        Wanted { name: "1500.jpg".into(), size: Some(size), sha256: sha256.map(sha256_hex) }
    }

    #[test]
    fn an_object_is_what_is_wanted_or_it_is_said_why_not() {
        let picture = jpeg(40, 9);
        assert_eq!(differs(&picture, &wanted((40, 30), Some(&picture)), 9999), None);
        assert_eq!(differs(&picture, &wanted((40, 30), None), 9999), None);
        let why = |bytes: &[u8], of: &Wanted| differs(bytes, of, 9999).unwrap();
        assert!(why(b"no", &wanted((40, 30), None)).contains("no picture: not a JPEG"));
        assert!(why(b"no", &wanted((40, 30), Some(&picture))).contains("no picture: not a JPEG"));
        let size = why(&picture, &wanted((41, 30), None));
        assert!(size.contains("40x30") && size.contains("41x30"), "{size}");
        assert!(why(&jpeg(40, 200), &wanted((40, 30), Some(&picture))).contains("another picture"));
        assert!(differs(&picture, &wanted((40, 30), None), 1000).unwrap().contains("limit"));
    }

    #[test]
    fn without_a_bucket_only_what_is_here_counts() {
        let root = std::env::temp_dir().join(format!("sorter-album-{}", std::process::id()));
        let shelf = Shelf::open(&root).unwrap();
        let album = Album { shelf: shelf.clone(), pixels_max: 9999, bucket: None };
        let session = Session::new("arm", "s1").unwrap();
        let missing = album.read(&session, &wanted((40, 30), None)).unwrap_err();
        assert!(missing.contains("1500.jpg") && missing.contains("same machine"), "{missing}");
        shelf.put(&session, "1500.jpg", &jpeg(40, 9)).unwrap();
        let found = album.read(&session, &wanted((40, 30), Some(b"of no matter without a bucket"))).unwrap();
        assert_eq!(found.unwrap().width(), 40);
        let size = album.read(&session, &wanted((50, 30), None)).unwrap_err();
        assert!(size.contains("40x30") && size.contains("send it again"), "{size}");
        std::fs::remove_dir_all(root).unwrap();
    }
}

//! `[stream.privacy]`: faces are blurred before anything is encoded.
//!
//! - [`config`]: its keys, defaults and checks
//! - [`hold`]: where to blur: faces that were just found, and those found a moment ago
//! - [`blur`]: taking the detail out of a part of a picture
//! - [`worker`]: the thread that does it, between the loop and the encoders
//! - `faces`: the detector, with the cargo feature `privacy` (OpenCV, through `faced`)
//!
//! Invariants: a frame leaves a stream with privacy only as a [`worker::Clean`], which nothing else makes; each of them
//! was searched itself; a search that fails, or a detector that isn't there, ends in the state ERROR and sends nothing.

pub mod blur;
pub mod config;
#[cfg(feature = "privacy")]
mod faces;
pub mod hold;
pub mod worker;

use blur::Picture;
use hold::Area;

/// What finds faces. Belongs to one thread.
pub trait Finder {
    /// The faces in the picture, in its pixels.
    ///
    /// # Errors
    /// In words.
    fn find(&mut self, picture: &Picture<'_>) -> Result<Vec<Area>, String>;
}

/// The detector that the file names.
///
/// # Errors
/// Its model can't be loaded; what to do.
#[cfg(feature = "privacy")]
pub fn finder(config: &config::Config) -> Result<Box<dyn Finder>, String> {
    faces::Faces::load(config).map(|faces| Box::new(faces) as Box<dyn Finder>)
}

/// This program was built without one.
///
/// # Errors
/// Always.
#[cfg(not(feature = "privacy"))]
pub fn finder(_: &config::Config) -> Result<Box<dyn Finder>, String> {
    Err(config::NOT_BUILT.to_owned())
}

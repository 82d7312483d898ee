//! What is seen on pictures: detection, looks, groups, panoramas.
//!
//! Everything here blocks and runs on worker threads: a [`Detector`] and a [`Vectorizer`] belong to one thread at a
//! time, pictures may be handed on. Never: knows of sessions, sockets or files other than the models.

pub(crate) mod blob;
pub mod detect;
pub mod draw;
pub mod group;
pub mod net;
pub mod picture;
pub mod stitch;
pub mod vectorize;

#[cfg(test)]
mod onnx_tests;
#[cfg(test)]
mod scene;

pub use detect::{Detector, DetectorConfig};
pub use picture::{Picture, PictureError};
pub use stitch::{StitchConfig, StitchError};
pub use vectorize::{Vectorizer, VectorizerConfig};

/// Why a detector or a vectorizer failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model can't be loaded or run, or is another one than the configuration says.
    #[error(transparent)]
    Model(#[from] net::NetError),
    /// OpenCV refused something.
    #[error("OpenCV failed to {action}")]
    OpenCv {
        /// As an infinitive.
        action: &'static str,
        /// What it says.
        source: opencv::Error,
    },
}

fn opencv(action: &'static str) -> impl FnOnce(opencv::Error) -> Error {
    move |source| Error::OpenCv { action, source }
}

/// Sets how many threads OpenCV uses for one call, in the whole process: 1 to 64, or 0 for one a core.
pub fn threads(count: u32) {
    // It has no way to fail for a number within these bounds; if it did, it would go on with the threads it has.
    let _ = opencv::core::set_num_threads(if count == 0 { -1 } else { count.min(64) as i32 });
}

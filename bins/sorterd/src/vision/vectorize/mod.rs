//! What an object looks like, as a vector of numbers: the choice between the vectorizers.
//!
//! Invariant: vectors of one vectorizer have one length; alike objects are near each other (Euclid). Never: knows what
//! an object is.

pub mod histogram;
pub mod onnx;

use super::picture::Picture;
use super::{Error, opencv};

/// Which vectorizer, and its settings.
#[derive(Debug, Clone, PartialEq)]
pub enum VectorizerConfig {
    /// Colours and shape; no model.
    Histogram(histogram::HistogramConfig),
    /// A neural network's features.
    Onnx(onnx::OnnxConfig),
}

/// A vectorizer, ready to work. Belongs to one thread.
#[derive(Debug)]
pub enum Vectorizer {
    /// Colours and shape.
    Histogram(histogram::Histogram),
    /// A neural network's features.
    Onnx(Box<onnx::Onnx>),
}

impl Vectorizer {
    /// Loads the model, if there is one, and runs it once on blank pictures, so that a wrong one is found here.
    ///
    /// # Errors
    /// [`Error::Model`], which names the file and what to do.
    pub fn open(config: &VectorizerConfig) -> Result<Vectorizer, Error> {
        Ok(match config {
            VectorizerConfig::Histogram(config) => Vectorizer::Histogram(histogram::Histogram::new(config)),
            VectorizerConfig::Onnx(config) => Vectorizer::Onnx(Box::new(onnx::Onnx::open(config)?)),
        })
    }

    /// Its kind, as in the configuration.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Vectorizer::Histogram(_) => "histogram",
            Vectorizer::Onnx(_) => "onnx",
        }
    }

    /// A vector for each picture, which shows one object from edge to edge.
    ///
    /// # Errors
    /// [`Error`]; the next pictures may work again.
    pub fn vectors(&mut self, pictures: &[Picture]) -> Result<Vec<Vec<f32>>, Error> {
        match self {
            Vectorizer::Histogram(histogram) => pictures.iter().map(|p| histogram.vector(p)).collect(),
            Vectorizer::Onnx(onnx) => onnx.vectors(pictures),
        }
    }
}

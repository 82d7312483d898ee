//! A neural network's pooled features, such as resnet18's 512 before its last layer.
//!
//! Owns: the network and its input buffer. Invariant: N pictures give N vectors of one length.

use std::path::PathBuf;

use super::{Error, opencv};
use crate::vision::blob::Input;
use crate::vision::net::Net;
use crate::vision::picture::Picture;

/// Settings of the network.
#[derive(Debug, Clone, PartialEq)]
pub struct OnnxConfig {
    /// The file.
    pub model: PathBuf,
    /// The output with the features; none: the only one.
    pub output: Option<String>,
    /// What it takes.
    pub input: Input,
    /// How many pictures it gets at once, at least 1.
    pub batch: usize,
}

/// A loaded network.
#[derive(Debug)]
pub struct Onnx {
    net: Net,
    blob: Vec<f32>,
    /// Values of a vector.
    length: usize,
    config: OnnxConfig,
}

impl Onnx {
    /// Loads the file and runs the network on a batch of blank pictures and on one alone.
    ///
    /// # Errors
    /// [`Error::Model`] with what to do.
    pub fn open(config: &OnnxConfig) -> Result<Onnx, Error> {
        let outputs: Vec<String> = config.output.iter().cloned().collect();
        let net = Net::load(&config.model, "vectorizer.model", &outputs)?;
        if net.outputs().len() != 1 {
            let names = net.outputs().join(", ");
            return Err(net
                .output(format!("it has the outputs {names}; name one in vectorizer.output"))
                .into());
        }
        let mut onnx = Onnx { net, blob: Vec::new(), length: 0, config: config.clone() };
        let values = config.input.values();
        onnx.blob = vec![0.0; values];
        onnx.length = onnx.run(1)?.first().map_or(0, Vec::len);
        if config.batch > 1 {
            onnx.blob = vec![0.0; values * config.batch];
            onnx.run(config.batch).map_err(|error| {
                let why = format!(
                    "it works on one picture alone; set vectorizer.batch = 1, or export it for batches of any size ({})",
                    edge::log::chain(&error)
                );
                onnx.net.refused(format!("{} pictures at once", config.batch), why)
            })?;
        }
        Ok(onnx)
    }

    /// A vector for each picture.
    ///
    /// # Errors
    /// [`Error`]
    pub fn vectors(&mut self, pictures: &[Picture]) -> Result<Vec<Vec<f32>>, Error> {
        let mut vectors = Vec::with_capacity(pictures.len());
        for batch in pictures.chunks(self.config.batch.max(1)) {
            self.blob.clear();
            for picture in batch {
                self.config
                    .input
                    .push(picture.mat(), &mut self.blob)
                    .map_err(opencv("resize a picture for the network"))?;
            }
            vectors.extend(self.run(batch.len())?);
        }
        Ok(vectors)
    }

    /// Runs the network on the blob. Its output is N x D, or N x D x 1 x 1.
    fn run(&mut self, count: usize) -> Result<Vec<Vec<f32>>, Error> {
        let shape = [count, 3, self.config.input.height as usize, self.config.input.width as usize];
        let outputs = self.net.run(shape, &self.blob)?;
        let Some(output) = outputs.first() else {
            return Err(self.net.output("it answered nothing".to_owned()).into());
        };
        let (sides, length) = match output.shape.as_slice() {
            [n, length] | [n, length, 1, 1] => (*n, *length),
            _ => (0, 0),
        };
        if sides != count || length == 0 || self.length != 0 && length != self.length {
            let expected = match self.length {
                0 => "D".to_owned(),
                length => length.to_string(),
            };
            let found = output.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(" x ");
            let why = format!("expected an output of {count} x {expected} (x 1 x 1), found {found}");
            return Err(self
                .net
                .output(format!("{why}; export it with its pooling and without its classifier"))
                .into());
        }
        Ok(output.values.chunks_exact(length).map(<[f32]>::to_vec).collect())
    }
}

//! ONNX files, run by OpenCV's dnn module on the processor.
//!
//! Owns: loading, and the errors that name the file. Never: trusts a shape.

use std::path::{Path, PathBuf};

use opencv::core::{CV_32F, Mat, Vector};
use opencv::dnn;
use opencv::prelude::*;

/// Why a model is of no use.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// It can't be read.
    #[error("cannot read the model {path}; name an ONNX file in {key}")]
    Read {
        /// Which file.
        path: String,
        /// The key that names it.
        key: &'static str,
        /// What the system says.
        source: std::io::Error,
    },
    /// It is none, or it has an operation that this OpenCV does not know.
    #[error("OpenCV cannot take {path} for an ONNX model: {why}")]
    Onnx {
        /// Which file.
        path: String,
        /// What OpenCV says.
        why: String,
    },
    /// It failed on its input.
    #[error("the model {path} cannot be run on {input}: {why}")]
    Run {
        /// Which file.
        path: String,
        /// The shape.
        input: String,
        /// What OpenCV says, or what to do.
        why: String,
    },
    /// Its output is not what the configuration says.
    #[error("the model {path} does not fit the configuration: {why}")]
    Output {
        /// Which file.
        path: String,
        /// Which output, what was expected, what to do.
        why: String,
    },
}

/// A tensor of float values, with its shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Sides, the outermost first.
    pub shape: Vec<usize>,
    /// As many as the sides multiplied.
    pub values: Vec<f32>,
}

/// A loaded network.
pub struct Net {
    net: dnn::Net,
    path: PathBuf,
    outputs: Vec<String>,
    /// What is to be said of outputs that were named, when the network does not run.
    named: Option<String>,
}

impl std::fmt::Debug for Net {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Net")
            .field("path", &self.path)
            .field("outputs", &self.outputs)
            .finish_non_exhaustive()
    }
}

impl Net {
    /// Loads the file named by `key`. `outputs` are the names of the tensors to answer with; none: all that nothing
    /// else in the network takes.
    ///
    /// # Errors
    /// [`NetError::Read`], [`NetError::Onnx`]
    pub fn load(path: &Path, key: &'static str, outputs: &[String]) -> Result<Net, NetError> {
        let name = path.display().to_string();
        let bytes =
            std::fs::read(path).map_err(|source| NetError::Read { path: name.clone(), key, source })?;
        let onnx = |why: String| NetError::Onnx { path: name.clone(), why };
        if bytes.is_empty() {
            return Err(onnx("it is empty".to_owned()));
        }
        let bytes = Vector::<u8>::from_slice(&bytes);
        let refused = |e: opencv::Error| onnx(brief(&e));
        let mut net = dnn::read_net_from_onnx_buffer(&bytes).map_err(refused)?;
        if net.empty().map_err(refused)? {
            return Err(onnx("it has no layers".to_owned()));
        }
        net.set_preferable_backend(dnn::DNN_BACKEND_OPENCV).map_err(refused)?;
        net.set_preferable_target(dnn::DNN_TARGET_CPU).map_err(refused)?;
        let ends = net.get_unconnected_out_layers_names().map_err(refused)?.to_vec();
        let (outputs, named) = match outputs {
            [] => (ends, None),
            names => {
                // OpenCV puts the kind of the name before the name.
                let ends: Vec<&str> = ends.iter().map(|e| e.rsplit('!').next().unwrap_or(e)).collect();
                let said = format!("asked for {}; the last layers are {}", names.join(", "), ends.join(", "));
                (names.to_vec(), Some(said))
            }
        };
        Ok(Net { net, path: path.to_owned(), outputs, named })
    }

    /// The names of the outputs, in the order of what [`Net::run`] answers.
    #[must_use]
    pub fn outputs(&self) -> &[String] {
        &self.outputs
    }

    /// Runs the network on one input of the shape N x 3 x height x width.
    ///
    /// # Errors
    /// [`NetError::Run`], [`NetError::Output`] (an output is missing)
    pub fn run(&mut self, shape: [usize; 4], input: &[f32]) -> Result<Vec<Tensor>, NetError> {
        let path = self.path.display().to_string();
        let run = |e: opencv::Error| NetError::Run {
            path: path.clone(),
            input: shape.map(|n| n.to_string()).join("x"),
            why: match &self.named {
                Some(named) => format!("{} ({named})", brief(&e)),
                None => brief(&e),
            },
        };
        let mut outputs = Vector::<Mat>::new();
        let names: Vector<String> = self.outputs.iter().map(String::as_str).collect();
        let sides = shape.map(|n| i32::try_from(n).unwrap_or(i32::MAX));
        let input = Mat::new_nd_with_data(&sides, input).map_err(run)?;
        self.net.set_input_def(&input).map_err(run)?;
        self.net.forward(&mut outputs, &names).map_err(run)?;
        let mut tensors = Vec::with_capacity(outputs.len());
        for (mat, name) in outputs.iter().zip(&self.outputs) {
            // Labels are integers in some versions.
            let mut floats = Mat::default();
            mat.convert_to_def(&mut floats, CV_32F).map_err(run)?;
            let values = floats.data_typed::<f32>().map_err(run)?.to_vec();
            let shape: Vec<usize> = mat.mat_size().iter().map(|n| n.unsigned_abs() as usize).collect();
            if shape.iter().product::<usize>() != values.len() {
                return Err(
                    self.output(format!("its output {name} has {} values in {shape:?}", values.len()))
                );
            }
            tensors.push(Tensor { shape, values });
        }
        if tensors.len() != self.outputs.len() {
            return Err(self.output(format!(
                "it has {} of the outputs {}",
                tensors.len(),
                self.outputs.join(", ")
            )));
        }
        Ok(tensors)
    }

    /// An error about what the network answered.
    #[must_use]
    pub fn output(&self, why: String) -> NetError {
        NetError::Output { path: self.path.display().to_string(), why }
    }

    /// An error about what the network was asked.
    #[must_use]
    pub fn refused(&self, input: String, why: String) -> NetError {
        NetError::Run { path: self.path.display().to_string(), input, why }
    }
}

/// OpenCV's message in one line, without the place in its source.
fn brief(error: &opencv::Error) -> String {
    let line = error.message.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ");
    match line.split_once("error: ") {
        Some((_, rest)) => rest.to_owned(),
        None => line,
    }
}

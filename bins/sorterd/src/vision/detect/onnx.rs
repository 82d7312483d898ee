//! Detection by a neural network in an ONNX file.
//!
//! Owns: the network and its input buffer. Never: answers boxes outside the picture.

use std::path::PathBuf;

use super::layout::{Candidate, Layout, suppress};
use super::{Error, opencv};
use crate::found::Found;
use crate::vision::blob::{Input, Placing};
use crate::vision::net::{Net, Tensor};
use crate::vision::picture::Picture;

/// Settings of the network.
#[derive(Debug, Clone, PartialEq)]
pub struct OnnxConfig {
    /// The file.
    pub model: PathBuf,
    /// What its outputs mean.
    pub layout: Layout,
    /// Names of the outputs: 3 in the layout `torchvision`; one or none (the only one) otherwise.
    pub outputs: Vec<String>,
    /// What it takes.
    pub input: Input,
    /// Least score, 0 to 1.
    pub threshold: f32,
    /// Boxes of one class that overlap more than this (IoU) are one object.
    pub nms: f32,
    /// The classes, as the network numbers them, that are items; others are containers.
    pub item_classes: Vec<u32>,
    /// Most objects on one picture; the surest stay.
    pub found_max: usize,
}

/// A loaded network.
#[derive(Debug)]
pub struct Onnx {
    net: Net,
    blob: Vec<f32>,
    config: OnnxConfig,
}

impl Onnx {
    /// Loads the file and runs the network once on a blank picture.
    ///
    /// # Errors
    /// [`Error::Model`] with what to do.
    pub fn open(config: &OnnxConfig) -> Result<Onnx, Error> {
        let net = Net::load(&config.model, "detector.model", &config.outputs)?;
        let mut onnx = Onnx { net, blob: Vec::new(), config: config.clone() };
        let blank = Picture::blank(config.input.width, config.input.height, [114; 3])
            .map_err(|e| onnx.net.output(e.to_string()))?;
        onnx.detect(&blank)?;
        Ok(onnx)
    }

    /// Items and containers, in no particular order.
    ///
    /// # Errors
    /// [`Error`]
    pub fn detect(&mut self, picture: &Picture) -> Result<Vec<Found>, Error> {
        let input = &self.config.input;
        self.blob.clear();
        let placing =
            input.push(picture.mat(), &mut self.blob).map_err(opencv("resize a picture for the network"))?;
        let shape = [1, 3, input.height as usize, input.width as usize];
        let outputs: Vec<Tensor> = self.net.run(shape, &self.blob)?;
        let candidates =
            self.config.layout.decode(&outputs, self.config.threshold).map_err(|why| self.net.output(why))?;
        let mut candidates = suppress(candidates, self.config.nms);
        candidates.truncate(self.config.found_max);
        let (w, h) = (picture.width(), picture.height());
        Ok(candidates.iter().filter_map(|c| self.found(c, placing, w, h)).collect())
    }

    /// The candidate in whole pixels of the picture; `None` when no pixel of it is in the picture.
    fn found(&self, candidate: &Candidate, placing: Placing, width: u32, height: u32) -> Option<Found> {
        let [x1, y1, x2, y2] = candidate.corners;
        let x = |v: f32| ((v - placing.left) / placing.scale_x).round().clamp(0.0, width as f32) as i32;
        let y = |v: f32| ((v - placing.top) / placing.scale_y).round().clamp(0.0, height as f32) as i32;
        let class = match self.config.item_classes.contains(&candidate.class) {
            true => Found::ITEM,
            // A network may number its container 0.
            false => candidate.class.max(1),
        };
        let score = candidate.score.min(1.0);
        let found = Found { class, score, x1: x(x1), y1: y(y1), x2: x(x2), y2: y(y2) };
        (found.x1 < found.x2 && found.y1 < found.y2).then_some(found)
    }
}

//! The motion gate: decides from a few thousand luma samples whether a frame is worth detecting in.
//!
//! The picture is divided into cells; the mean of a cell is taken from a sparse grid of samples straight from the
//! camera's bytes, so that sensor noise averages out and nothing is converted. A cell counts as changed when its mean
//! moved by more than the threshold against the frame that was let through last, after the change that all cells share
//! (exposure, a lamp) is taken off. The threshold rises by itself with the noise seen in still frames.
//!
//! Owns: the reference picture of one camera. Time is the camera's own clock, so that a file gives the same result at
//! any speed. Never: converts or copies a frame.

use crate::frame::View;

/// Cells across and down.
const COLUMNS: u32 = 32;
const ROWS: u32 = 18;
/// Samples across and down in a cell: 8 x 8 samples reduce noise to an eighth.
const SAMPLES: u32 = 8;

/// What the gate goes by; all of it is in the configuration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GateConfig {
    /// Without it every frame passes.
    pub enabled: bool,
    /// How far a cell's mean must move, in grey levels.
    pub threshold: f32,
    /// How many cells must have moved.
    pub cells: u32,
    /// How long frames pass after the last change, in ms.
    pub hold_ms: u64,
    /// After how long a still scene is looked at again, in ms; 0 = never.
    pub force_ms: u64,
}

/// Why a frame passes, or that it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Something changed (or the first frame, or the gate is off).
    Motion,
    /// Shortly after a change.
    Hold,
    /// Nothing changed for `force_ms`.
    Forced,
    /// Nothing changed: leave it out.
    Still,
}

impl Verdict {
    /// Whether the frame is to be detected in.
    #[must_use]
    pub fn passes(self) -> bool {
        self != Verdict::Still
    }
}

/// The gate of one camera connection.
#[derive(Debug)]
pub struct Gate {
    config: GateConfig,
    reference: Vec<f32>,
    current: Vec<f32>,
    scratch: Vec<f32>,
    size: (u32, u32),
    /// Mean absolute difference of still frames, in grey levels.
    noise: f32,
    open_until_ms: u64,
    passed_ms: u64,
}

impl Gate {
    /// A gate that has seen nothing: the first frame passes.
    #[must_use]
    pub fn new(config: GateConfig) -> Gate {
        Gate {
            config,
            reference: Vec::new(),
            current: Vec::new(),
            scratch: Vec::new(),
            size: (0, 0),
            noise: 0.0,
            open_until_ms: 0,
            passed_ms: 0,
        }
    }

    /// Looks at a frame taken at `at_ms`.
    pub fn inspect(&mut self, view: &View<'_>, at_ms: u64) -> Verdict {
        if !self.config.enabled {
            return Verdict::Motion;
        }
        self.means(view);
        let size = (view.layout().width, view.layout().height);
        let changed =
            self.size != size || self.reference.is_empty() || self.changed_cells() >= self.config.cells;
        // A file that loops starts its clock again; times must not wait for the old ones.
        let since_passed = at_ms.checked_sub(self.passed_ms);
        let verdict = if changed {
            self.open_until_ms = at_ms + self.config.hold_ms;
            Verdict::Motion
        } else if at_ms < self.open_until_ms && since_passed.is_some() {
            Verdict::Hold
        } else if since_passed.is_none_or(|ms| self.config.force_ms > 0 && ms >= self.config.force_ms) {
            Verdict::Forced
        } else {
            Verdict::Still
        };
        if verdict.passes() {
            if since_passed.is_none() {
                self.open_until_ms = at_ms + self.config.hold_ms;
            }
            self.passed_ms = at_ms;
            self.size = size;
            std::mem::swap(&mut self.reference, &mut self.current);
        }
        verdict
    }

    fn means(&mut self, view: &View<'_>) {
        let layout = view.layout();
        // RGB has no luma plane; green is the better part of it.
        let plane = &layout.planes[usize::from(layout.format == crate::frame::Format::Rgb)];
        let data = view.data();
        let at = |cell: u32, cells: u32, sample: u32, length: u32| {
            let n = cells * SAMPLES;
            ((u64::from(cell * SAMPLES + sample) * u64::from(length) + u64::from(length) / 2) / u64::from(n))
                as usize
        };
        self.current.clear();
        self.current.resize((COLUMNS * ROWS) as usize, 0.0);
        let xs: Vec<usize> = (0..COLUMNS * SAMPLES)
            .map(|n| {
                at(n / SAMPLES, COLUMNS, n % SAMPLES, layout.width).min(layout.width as usize - 1)
                    * plane.step
            })
            .collect();
        for row in 0..ROWS {
            let mut sums = [0u32; COLUMNS as usize];
            for sample in 0..SAMPLES {
                let y = at(row, ROWS, sample, layout.height).min(layout.height as usize - 1);
                let line = &data[plane.offset + y * plane.stride..];
                for (sum, cell) in sums.iter_mut().zip(xs.chunks_exact(SAMPLES as usize)) {
                    *sum += cell.iter().map(|x| u32::from(line[*x])).sum::<u32>();
                }
            }
            let means = &mut self.current[(row * COLUMNS) as usize..];
            for (mean, sum) in means.iter_mut().zip(sums) {
                *mean = sum as f32 / (SAMPLES * SAMPLES) as f32;
            }
        }
    }

    fn changed_cells(&mut self) -> u32 {
        self.scratch.clear();
        self.scratch.extend(self.current.iter().zip(&self.reference).map(|(now, then)| now - then));
        let middle = self.scratch.len() / 2;
        let mut sorted = self.scratch.clone();
        let (_, shared, _) = sorted.select_nth_unstable_by(middle, f32::total_cmp);
        let shared = *shared;
        let threshold = self.config.threshold.max(6.0 * self.noise);
        let moved = self.scratch.iter().filter(|d| (*d - shared).abs() > threshold).count() as u32;
        if moved < self.config.cells {
            let mean =
                self.scratch.iter().map(|d| (d - shared).abs()).sum::<f32>() / self.scratch.len() as f32;
            // Noise is learned slowly and bounded, so that a slow real change cannot teach the gate to be blind.
            self.noise = (self.noise + 0.05 * (mean - self.noise)).min(self.config.threshold);
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Format, Layout, Matrix};

    const W: u32 = 640;
    const H: u32 = 480;

    fn config() -> GateConfig {
        GateConfig { enabled: true, threshold: 6.0, cells: 2, hold_ms: 500, force_ms: 5000 }
    }

    /// A textured grey scene with Gaussian-like noise of about `noise` levels.
    fn scene(rng: &mut fastrand::Rng, noise: i32, light: i32) -> Vec<u8> {
        (0..W * H)
            .map(|n| {
                let texture = 60 + ((n % W) / 7 + (n / W) / 5) as i32 % 120;
                let sum: i32 = if noise == 0 { 0 } else { (0..4).map(|_| rng.i32(-noise..=noise)).sum() };
                (texture + light + sum / 2).clamp(0, 255) as u8
            })
            .collect()
    }

    fn square(data: &mut [u8], x: u32, y: u32, side: u32) {
        for row in y..y + side {
            let start = (row * W + x) as usize;
            data[start..start + side as usize].fill(220);
        }
    }

    fn inspect(gate: &mut Gate, data: &[u8], at_ms: u64) -> Verdict {
        let layout = Layout::packed(Format::Grey, W, H, 0, Matrix::Bt601).unwrap();
        gate.inspect(&View::new(&layout, data).unwrap(), at_ms)
    }

    #[test]
    fn a_still_noisy_scene_is_left_out_but_looked_at_now_and_then() {
        let mut rng = fastrand::Rng::with_seed(11);
        for noise in [0, 4, 12] {
            let mut gate = Gate::new(config());
            let verdicts: Vec<_> =
                (0..150).map(|n| inspect(&mut gate, &scene(&mut rng, noise, 0), n * 66)).collect();
            assert_eq!(verdicts[0], Verdict::Motion);
            let count = |wanted| verdicts.iter().filter(|v| **v == wanted).count();
            assert_eq!(count(Verdict::Motion), 1, "noise {noise}");
            assert_eq!(count(Verdict::Hold), 7, "500 ms at 66 ms a frame");
            assert_eq!(
                count(Verdict::Forced),
                1,
                "one in 10 s, 5 s after the last that passed: {verdicts:?}"
            );
        }
    }

    #[test]
    fn a_face_sized_change_opens_it_at_once_and_a_lamp_does_not() {
        let mut rng = fastrand::Rng::with_seed(12);
        let mut gate = Gate::new(config());
        for n in 0..30 {
            inspect(&mut gate, &scene(&mut rng, 4, 0), n * 66);
        }
        assert_eq!(inspect(&mut gate, &scene(&mut rng, 4, 9), 2000), Verdict::Still, "exposure");
        let mut frame = scene(&mut rng, 4, 0);
        square(&mut frame, 300, 200, 40);
        assert_eq!(inspect(&mut gate, &frame, 2066), Verdict::Motion);
        assert_eq!(inspect(&mut gate, &frame, 2132), Verdict::Hold);
        assert_eq!(inspect(&mut gate, &frame, 2700), Verdict::Still, "it stayed where it is");
        assert_eq!(inspect(&mut gate, &scene(&mut rng, 4, 0), 2766), Verdict::Motion, "and went away");
    }

    #[test]
    fn slow_motion_adds_up() {
        let mut rng = fastrand::Rng::with_seed(13);
        let mut gate = Gate::new(config());
        let passed = (0..300u64)
            .filter(|n| {
                let mut frame = scene(&mut rng, 4, 0);
                square(&mut frame, 100 + (*n as u32) / 3, 200, 60);
                inspect(&mut gate, &frame, n * 66) == Verdict::Motion
            })
            .count();
        assert!((5..150).contains(&passed), "100 px in 20 s: {passed} frames passed");
    }

    #[test]
    fn a_clock_that_starts_again_does_not_close_it() {
        let mut rng = fastrand::Rng::with_seed(14);
        let mut gate = Gate::new(config());
        inspect(&mut gate, &scene(&mut rng, 0, 0), 100_000);
        assert!(inspect(&mut gate, &scene(&mut rng, 0, 0), 0).passes());
        assert_eq!(inspect(&mut gate, &scene(&mut rng, 0, 0), 499), Verdict::Hold);
        assert_eq!(inspect(&mut gate, &scene(&mut rng, 0, 0), 1000), Verdict::Still);
    }

    #[test]
    fn odd_and_tiny_pictures_do_no_harm() {
        for (w, h) in [(1, 1), (3, 5), (33, 19)] {
            let layout = Layout::packed(Format::Rgb, w, h, 0, Matrix::Bt601).unwrap();
            let data = vec![7; layout.bytes];
            let mut gate = Gate::new(config());
            assert!(gate.inspect(&View::new(&layout, &data).unwrap(), 0).passes());
            assert_eq!(gate.inspect(&View::new(&layout, &data).unwrap(), 1000), Verdict::Still);
        }
    }
}

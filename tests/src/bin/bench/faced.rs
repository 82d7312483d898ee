//! `faced` beside a bare OpenCV loop with the same detector over the same video.

use crate::Verdict;

pub fn run(_verdicts: &mut Vec<Verdict>) {
    println!("skipped: faced");
}

//! Boxes drawn on pictures, coloured by group.
//!
//! Owns: the palette, which the web page uses too.

use opencv::core::{Rect, Scalar};
use opencv::imgproc::{FILLED, LINE_8, rectangle};

use super::picture::{Picture, PictureError};
use crate::found::Found;

/// The colour of group n is that at `n` modulo the length, 0xRRGGBB. Far apart from each other, also for those who see
/// red and green alike.
pub const PALETTE: [u32; 10] = [
    0xe6_19_4b, 0x3c_b4_4b, 0x43_63_d8, 0xf5_82_31, 0x91_1e_b4, 0x42_d4_f4, 0xf0_32_e6, 0xbf_ef_45,
    0x46_99_90, 0x9a_63_24,
];

/// The colour of what is in no group, 0xRRGGBB.
pub const UNGROUPED: u32 = 0xff_ff_ff;

/// 0xRRGGBB.
#[must_use]
pub fn colour(group: Option<usize>) -> u32 {
    group.map_or(UNGROUPED, |group| PALETTE[group % PALETTE.len()])
}

/// Such as `#e6194b`, for a page.
#[must_use]
pub fn hex(group: Option<usize>) -> String {
    format!("#{:06x}", colour(group))
}

/// Draws a rectangle around each, within its box, in the colour of its group; around containers with a line twice as
/// thick. What lies outside the picture is not drawn.
///
/// # Errors
/// [`PictureError::OpenCv`]
pub fn boxes(picture: &mut Picture, found: &[(Found, Option<usize>)]) -> Result<(), PictureError> {
    // Visible when the picture is shrunk to the width of a page.
    let line = (picture.width().max(picture.height()) as i32 / 400).max(1);
    for (found, group) in found {
        let thickness = if found.is_item() { line } else { 2 * line };
        let [_, r, g, b] = colour(*group).to_be_bytes().map(f64::from);
        // OpenCV's own lines are now and then a pixel thicker than asked for, and leave the box.
        for (x1, y1, x2, y2) in sides(found, thickness) {
            let side = Rect::new(x1, y1, x2.saturating_sub(x1), y2.saturating_sub(y1));
            rectangle(picture.mat_mut(), side, Scalar::new(b, g, r, 0.0), FILLED, LINE_8, 0)
                .map_err(|source| PictureError::OpenCv { action: "draw a box", source })?;
        }
    }
    Ok(())
}

/// Upper, lower, left and right side of the box, as x1, y1, x2, y2.
fn sides(f: &Found, thickness: i32) -> [(i32, i32, i32, i32); 4] {
    let (down, up) = (f.y1.saturating_add(thickness).min(f.y2), f.y2.saturating_sub(thickness).max(f.y1));
    let (right, left) = (f.x1.saturating_add(thickness).min(f.x2), f.x2.saturating_sub(thickness).max(f.x1));
    [(f.x1, f.y1, f.x2, down), (f.x1, up, f.x2, f.y2), (f.x1, f.y1, right, f.y2), (left, f.y1, f.x2, f.y2)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(picture: &Picture, x: usize, y: usize) -> u32 {
        let pixel = &picture.pixels().unwrap()[(y * picture.width() as usize + x) * 3..][..3];
        u32::from_be_bytes([0, pixel[2], pixel[1], pixel[0]])
    }

    #[test]
    fn boxes_have_their_groups_colour_and_their_place() {
        let mut picture = Picture::blank(800, 600, [0, 0, 0]).unwrap();
        let item = Found { class: 0, score: 1.0, x1: 100, y1: 100, x2: 200, y2: 160 };
        let container = Found { class: 1, score: 1.0, x1: 400, y1: 100, x2: 600, y2: 300 };
        let outside = Found { x1: -40, y1: 500, x2: 900, y2: i32::MAX, ..item };
        boxes(&mut picture, &[(item, Some(1)), (container, Some(12)), (outside, None)]).unwrap();
        assert_eq!((at(&picture, 100, 130), at(&picture, 150, 101)), (PALETTE[1], PALETTE[1]));
        assert_eq!((at(&picture, 150, 159), at(&picture, 199, 130)), (PALETTE[1], PALETTE[1]));
        assert_eq!(at(&picture, 400, 200), PALETTE[2]);
        // The item's line is 2 wide, the container's 4; nothing inside, nothing outside.
        let width = |from: usize, y: usize| (from..from + 30).filter(|x| at(&picture, *x, y) != 0).count();
        assert_eq!((width(90, 130), width(390, 200)), (2, 4));
        for (x, y) in [(150, 130), (500, 200), (99, 130), (200, 130), (150, 160)] {
            assert_eq!(at(&picture, x, y), 0, "{x} {y}");
        }
        assert_eq!(at(&picture, 400, 501), UNGROUPED);
        assert_eq!((hex(Some(0)), hex(None)), ("#e6194b".to_owned(), "#ffffff".to_owned()));
    }
}

//! Where to blur: the faces of this frame, and those of the last moments that this frame shows no more.
//!
//! A detector misses a face now and then, most of all while it turns or moves. Therefore what was seen stays blurred for
//! a while, and its area grows meanwhile by as much again as its margin, for a face that moves. Owns: what was seen.
//! Never: looks at a picture.

/// A part of a picture, in pixels. It may reach beyond its edges.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Area {
    /// Left edge.
    pub x: f32,
    /// Upper edge.
    pub y: f32,
    /// Width.
    pub w: f32,
    /// Height.
    pub h: f32,
}

/// Beyond so many faces the whole picture is blurred instead: this many cost as much.
pub const AREAS_MAX: usize = 64;

impl Area {
    /// With a margin of `part` of the larger side on each side.
    #[must_use]
    pub fn widened(&self, part: f32) -> Area {
        let m = self.w.max(self.h) * part;
        Area { x: self.x - m, y: self.y - m, w: self.w + 2.0 * m, h: self.h + 2.0 * m }
    }

    fn holds_centre_of(&self, other: &Area) -> bool {
        let (x, y) = (other.x + other.w / 2.0, other.y + other.h / 2.0);
        (self.x..=self.x + self.w).contains(&x) && (self.y..=self.y + self.h).contains(&y)
    }
}

/// What was seen of late.
#[derive(Debug)]
pub struct Hold {
    margin: f32,
    hold_ns: u64,
    seen: Vec<(Area, u64)>,
}

impl Hold {
    /// `margin`: around each face, as a part of its size. `hold_ns`: how long it stays.
    #[must_use]
    pub fn new(margin: f32, hold_ns: u64) -> Hold {
        Hold { margin, hold_ns, seen: Vec::new() }
    }

    /// What to blur in a frame of the time `now_ns` in which these faces were found; `None` = everything.
    pub fn update(&mut self, found: &[Area], now_ns: u64) -> Option<Vec<Area>> {
        let hold_ns = self.hold_ns;
        // A face that is found again is where it is now. One of another size at that place may be another face.
        let again = |old: &Area| {
            let alike = |new: &Area| new.w < old.w * 2.0 && old.w < new.w * 2.0;
            found.iter().any(|new| new.holds_centre_of(old) && old.holds_centre_of(new) && alike(new))
        };
        self.seen.retain(|(area, at)| now_ns.saturating_sub(*at) < hold_ns && !again(area));
        let mut areas: Vec<Area> = found.iter().map(|area| area.widened(self.margin)).collect();
        for (area, at) in &self.seen {
            let age = now_ns.saturating_sub(*at) as f32 / hold_ns.max(1) as f32;
            areas.push(area.widened(self.margin * (1.0 + age)));
        }
        self.seen.extend(found.iter().map(|area| (*area, now_ns)));
        // The eldest go; while there are so many, all is blurred anyway.
        let surplus = self.seen.len().saturating_sub(2 * AREAS_MAX);
        self.seen.drain(..surplus);
        (areas.len() <= AREAS_MAX).then_some(areas)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn face(x: f32) -> Area {
        Area { x, y: 50.0, w: 20.0, h: 20.0 }
    }

    #[test]
    fn a_face_that_is_missed_stays_blurred_and_its_area_grows_until_it_is_forgotten() {
        let mut hold = Hold::new(0.5, 1000 * MS);
        assert_eq!(hold.update(&[face(100.0)], 0).unwrap(), [face(100.0).widened(0.5)]);
        assert_eq!(hold.update(&[], 500 * MS).unwrap(), [face(100.0).widened(0.75)]);
        let last = hold.update(&[], 999 * MS).unwrap();
        assert!(last.len() == 1 && last[0].w > face(100.0).widened(0.99).w, "{last:?}");
        assert!(hold.update(&[], 1000 * MS).unwrap().is_empty());
    }

    #[test]
    fn a_face_that_moves_is_one_and_two_faces_are_two() {
        let mut hold = Hold::new(0.0, 1000 * MS);
        for n in 0..100u8 {
            let x = f32::from(n) * 5.0;
            assert_eq!(hold.update(&[face(x)], u64::from(n) * 10 * MS).unwrap().len(), 1, "{n}");
        }
        // Another one far away; the first is held.
        assert_eq!(hold.update(&[face(5.0)], 1001 * MS).unwrap().len(), 2);
        // A small face in front of a large one is not taken for it.
        let large = Area { x: 0.0, y: 0.0, w: 200.0, h: 200.0 };
        let small = Area { x: 90.0, y: 90.0, w: 20.0, h: 20.0 };
        let mut hold = Hold::new(0.0, 1000 * MS);
        assert_eq!(hold.update(&[large], 0).unwrap().len(), 1);
        assert_eq!(hold.update(&[small], MS).unwrap().len(), 2);
    }

    #[test]
    fn a_crowd_blurs_everything_and_is_bounded() {
        let mut hold = Hold::new(0.1, 1000 * MS);
        let crowd: Vec<Area> = (0..AREAS_MAX + 1).map(|n| face(n as f32 * 100.0)).collect();
        assert_eq!(hold.update(&crowd, 0), None);
        for n in 1..50u64 {
            let moved: Vec<Area> = crowd.iter().map(|a| Area { y: n as f32 * 100.0, ..*a }).collect();
            assert_eq!(hold.update(&moved, n * MS), None);
        }
        assert!(hold.seen.len() <= 2 * AREAS_MAX);
        assert!(hold.update(&[], 5000 * MS).unwrap().is_empty());
    }
}

//! What a detector finds on a picture.

/// A box around an object, in pixels of its picture: `x1 < x2`, `y1 < y2`, both within it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Found {
    /// [`Found::ITEM`]; all others are containers.
    pub class: u32,
    /// How sure the detector is, 0 to 1.
    pub score: f32,
    pub x1: i32,
    pub y1: i32,
    pub x2: i32,
    pub y2: i32,
}

impl Found {
    /// The class of what is sorted.
    pub const ITEM: u32 = 0;

    /// Whether it is to be sorted; else something is to be sorted into it.
    #[must_use]
    pub fn is_item(&self) -> bool {
        self.class == Self::ITEM
    }
}

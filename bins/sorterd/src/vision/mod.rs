//! What is seen on pictures: detection, looks, groups, panoramas.

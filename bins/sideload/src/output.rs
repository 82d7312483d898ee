//! What people and scripts get to see: lines, JSON, the progress bar.

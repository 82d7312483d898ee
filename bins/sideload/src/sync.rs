//! The client's side of the transactional sync.

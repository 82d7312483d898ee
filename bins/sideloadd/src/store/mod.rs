//! The sideloaded tree: transactional commits, history, and the plain file operations of old clients.

//! What happens to the application when: run, kill, restart, crash, roll back. No I/O, no clock.

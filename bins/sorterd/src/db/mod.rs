//! Where boxes are kept: SQLite or PostgreSQL.

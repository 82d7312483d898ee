//! What a PostgreSQL server, or whoever is in its place, answers to sorterd: login and statements end in rows or an error, within
//! what was sent, however it goes on.
#![no_main]
#![allow(dead_code)]

// The connection's files alone, so that fuzzing needs neither OpenCV nor SQLite.
#[path = "."]
mod db {
    #[path = "../../../bins/sorterd/src/db/engine.rs"]
    pub mod engine;
    #[path = "."]
    pub mod pg {
        #[path = "../../../bins/sorterd/src/db/pg/address.rs"]
        pub mod address;
        #[path = "../../../bins/sorterd/src/db/pg/connection.rs"]
        pub mod connection;
        #[path = "../../../bins/sorterd/src/db/pg/stream.rs"]
        pub mod stream;
    }

    /// The engine's word for a row that can't be read.
    #[derive(Debug)]
    pub enum Error {
        Row { what: &'static str, why: String },
    }
}

use std::io::Write as _;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use db::engine::{Cell, Fields, Kind, Row, Statement, Value};
use db::pg::address::Address;
use db::pg::connection::Connection;
use db::pg::stream::Stream;

const COLUMNS: &[&[Kind]] = &[
    &[],
    &[Kind::Int],
    &[Kind::Text, Kind::Int, Kind::Real],
    &[Kind::Text, Kind::Text, Kind::Int, Kind::Int, Kind::Int, Kind::Real],
];

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((how, answers)) = data.split_first() else { return };
    // A Unix socket is private: the password is sent to whoever asks for it, which goes furthest.
    let Ok(address) = Address::parse("postgresql://u:hunter2@%2Fnowhere/d") else { panic!("the address") };
    let (ours, mut theirs) = UnixStream::pair().expect("two sockets");
    // All of it is there before the first question; what does not fit is cut off.
    theirs.set_nonblocking(true).expect("a mode");
    let _ = theirs.write(answers);
    theirs.shutdown(Shutdown::Write).expect("an end");
    let deadline = Instant::now() + Duration::from_secs(5);
    let Ok(mut connection) = Connection::begin(Stream::over(ours, deadline), &address) else { return };
    let columns = COLUMNS[usize::from(how & 3)];
    // More than are sent at once, in some.
    let count = usize::from(how >> 2).min(40);
    for _ in 0..2 {
        let change = |_| Statement::change("x", vec![Value::Int(1), Value::Text("a")]);
        let mut statements: Vec<Statement<'_>> = (0..count).map(change).collect();
        statements.push(Statement::query("y", vec![Value::Real(0.5)], columns));
        match connection.run(&statements, deadline) {
            Ok(rows) => check(rows, columns, answers.len()),
            Err(fault) if fault.ends() => break,
            Err(_) => {}
        }
    }
    assert!(Instant::now() < deadline, "a server that hung up was waited for");
});

fn check(rows: Vec<Row>, columns: &[Kind], sent: usize) {
    let mut texts = 0;
    assert!(rows.len() <= sent / 7, "more rows than messages");
    for row in rows {
        assert_eq!(row.len(), columns.len());
        for (cell, kind) in row.iter().zip(columns) {
            match (cell, kind) {
                (Cell::Text(text), Kind::Text) => texts += text.len(),
                (Cell::Null, _) | (Cell::Int(_), Kind::Int) | (Cell::Real(_), Kind::Real) => {}
                other => panic!("another kind than was asked for: {other:?}"),
            }
        }
        let mut fields = Fields::new("read a row", row);
        for kind in columns {
            let _ = match kind {
                Kind::Int => fields.int_or_null::<u32>().map(drop),
                Kind::Real => fields.real().map(drop),
                Kind::Text => fields.text_or_null().map(drop),
            };
        }
    }
    assert!(texts <= sent, "more text than was sent");
}

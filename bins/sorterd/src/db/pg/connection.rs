//! One connection: start-up, login, and statements in the extended protocol. `postgres-protocol` has the codec and the
//! arithmetic of the passwords; here is who says what when.
//!
//! Invariants: a message is at most [`MESSAGE_BYTES_MAX`] (before the login [`LOGIN_BYTES_MAX`]) and the rows of one call
//! at most [`ROWS_BYTES_MAX`] bytes, whatever the server sends; a password leaves in the clear only where nobody can read
//! along; a server that begins SCRAM has to finish it. After a [`Fault`] that [ends](Fault::ends) the connection it is
//! not used again.

use std::io::{self, Read as _, Write as _};
use std::time::{Duration, Instant};

use bytes::{BufMut as _, BytesMut};
use edge::config::Secret;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::IsNull;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::backend::{DataRowBody, ErrorResponseBody, Header, Message};
use postgres_protocol::message::frontend;

use super::address::Address;
use super::stream::{Stream, Tls};
use crate::db::engine::{Cell, Kind, Row, Statement, Value};

/// The largest message of a server that knows us.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// The largest one before that.
const LOGIN_BYTES_MAX: usize = 64 << 10;
/// What the rows of one call may hold together.
const ROWS_BYTES_MAX: usize = 256 << 20;
/// Statements that are sent before an answer is read. Their answers are a few bytes each, so that neither side ever waits
/// for the other with full buffers.
const STATEMENTS_AT_ONCE: usize = 16;
/// How often the server may have a password hashed (PostgreSQL's own setting is 4096); about a second.
const ITERATIONS_MAX: u32 = 1_000_000;
/// The longest text of an error that is kept, in characters.
const ERROR_CHARS_MAX: usize = 500;

/// Types of parameters, by their numbers in `pg_type`.
const INT8: u32 = 20;
const TEXT: u32 = 25;
const FLOAT4: u32 = 700;

/// Why a call failed.
#[derive(Debug)]
pub enum Fault {
    /// The connection can't be made, broke, or said nothing in time.
    Io(io::Error),
    /// The server refused, with the SQLSTATE.
    Server { code: String, message: String, fatal: bool },
    /// What it says is not PostgreSQL's protocol, or not what was asked for.
    Protocol(String),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Fault {
    /// Whether the connection is of no use after it.
    pub fn ends(&self) -> bool {
        !matches!(self, Self::Server { fatal: false, .. })
    }

    /// Whether the server had gone since the last call: what was asked may be asked again on a new connection.
    pub fn is_stale(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        match self {
            Self::Io(error) => {
                matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
            }
            // Shut down by an administrator, crashed, or starting up.
            Self::Server { code, .. } => matches!(code.as_str(), "57P01" | "57P02" | "57P03"),
            Self::Protocol(_) => false,
        }
    }
}

fn protocol(why: impl Into<String>) -> Fault {
    Fault::Protocol(why.into())
}

/// What the codec finds wrong is the server's mistake.
fn malformed(error: io::Error) -> Fault {
    protocol(error.to_string())
}

/// A connection that is logged in. It has no `Debug`: its buffers hold what passed, passwords too.
pub struct Connection {
    stream: Stream,
    inbox: BytesMut,
    outbox: BytesMut,
    message_bytes_max: usize,
}

impl Connection {
    /// Connects and logs in, until `deadline`.
    ///
    /// # Errors
    /// [`Fault`]
    pub fn open(address: &Address, tls: &Tls, deadline: Instant) -> Result<Self, Fault> {
        let stream = Stream::connect(address, tls, deadline).map_err(|error| match error.kind() {
            // Of TLS, or of a server that has none: no waiting mends it.
            io::ErrorKind::Other | io::ErrorKind::InvalidData => protocol(error.to_string()),
            _ => Fault::Io(error),
        })?;
        Self::begin(stream, address)
    }

    /// Logs in over a stream that has a deadline.
    ///
    /// # Errors
    /// [`Fault`]
    pub fn begin(stream: Stream, address: &Address) -> Result<Self, Fault> {
        let (inbox, outbox) = (BytesMut::new(), BytesMut::new());
        let mut connection = Self { stream, inbox, outbox, message_bytes_max: LOGIN_BYTES_MAX };
        let parameters = [
            ("user", address.user.as_str()),
            ("database", &address.database),
            ("client_encoding", "UTF8"),
            ("application_name", &address.application),
        ];
        frontend::startup_message(parameters, &mut connection.outbox)?;
        connection.send()?;
        connection.log_in(address)?;
        connection.message_bytes_max = MESSAGE_BYTES_MAX;
        Ok(connection)
    }

    /// Runs the statements as one transaction until `deadline`. The rows of the last one.
    ///
    /// Everything up to a Sync is one transaction; groups within it end with a Flush.
    ///
    /// # Errors
    /// [`Fault`]: nothing was done, unless the connection broke at the very end.
    pub fn run(&mut self, statements: &[Statement<'_>], deadline: Instant) -> Result<Vec<Row>, Fault> {
        self.stream.set_deadline(deadline);
        let Some(last) = statements.last() else { return Ok(Vec::new()) };
        let mut rows = Vec::new();
        let mut groups = statements.chunks(STATEMENTS_AT_ONCE).peekable();
        while let Some(group) = groups.next() {
            for statement in group {
                self.put(statement)?;
            }
            let is_last = groups.peek().is_none();
            if is_last {
                frontend::sync(&mut self.outbox);
            } else {
                frontend::flush(&mut self.outbox);
            }
            self.send()?;
            let columns = if is_last { last.columns } else { &[] };
            if let Err(fault) = self.answers(group.len(), is_last, columns, &mut rows) {
                if !is_last && !fault.ends() {
                    frontend::sync(&mut self.outbox);
                    self.send()?;
                    self.until_ready()?;
                }
                return Err(fault);
            }
        }
        Ok(rows)
    }

    /// Queues one statement.
    fn put(&mut self, statement: &Statement<'_>) -> Result<(), Fault> {
        let types = statement.values.iter().map(|value| match value {
            Value::Int(_) => INT8,
            Value::Real(_) => FLOAT4,
            Value::Text(_) => TEXT,
        });
        frontend::parse("", &statement.sql, types, &mut self.outbox)?;
        let serialize = |value: &Value<'_>, out: &mut BytesMut| {
            match value {
                Value::Int(n) => out.put_i64(*n),
                Value::Real(x) => out.put_f32(*x),
                Value::Text(text) => out.put_slice(text.as_bytes()),
            }
            Ok(IsNull::No)
        };
        // 1: in binary, both ways.
        let bound = frontend::bind("", "", [1], &statement.values, serialize, [1], &mut self.outbox);
        bound.map_err(|error| match error {
            frontend::BindError::Conversion(error) => protocol(error.to_string()),
            frontend::BindError::Serialization(error) => Fault::Io(error),
        })?;
        Ok(frontend::execute("", 0, &mut self.outbox)?)
    }

    /// Reads the answers to `expected` statements, and behind the last group that the server is ready again.
    fn answers(
        &mut self,
        expected: usize,
        is_last: bool,
        columns: &[Kind],
        rows: &mut Vec<Row>,
    ) -> Result<(), Fault> {
        let (mut done, mut bytes) = (0, 0);
        loop {
            match self.message()? {
                Message::ParseComplete | Message::BindComplete => {}
                Message::DataRow(body) if done + 1 == expected && !columns.is_empty() => {
                    bytes += body.buffer().len();
                    if bytes > ROWS_BYTES_MAX {
                        return Err(protocol(format!("the answer has more than {ROWS_BYTES_MAX} bytes")));
                    }
                    rows.push(row(&body, columns)?);
                }
                // Of a lock that answers, or of anything whose rows nobody asked for.
                Message::DataRow(_) => {}
                Message::CommandComplete(_) | Message::EmptyQueryResponse => {
                    done += 1;
                    if done == expected && !is_last {
                        return Ok(());
                    }
                }
                Message::ErrorResponse(body) => {
                    let fault = server_fault(&body);
                    if is_last && !fault.ends() {
                        self.until_ready()?;
                    }
                    return Err(fault);
                }
                Message::ReadyForQuery(body) if is_last && done == expected && body.status() == b'I' => {
                    return Ok(());
                }
                _ => return Err(protocol("the server answered what was not asked")),
            }
        }
    }

    /// Passes over everything until the server is ready, outside of a transaction.
    fn until_ready(&mut self) -> Result<(), Fault> {
        loop {
            match self.message()? {
                Message::ReadyForQuery(body) if body.status() == b'I' => return Ok(()),
                Message::ReadyForQuery(_) => return Err(protocol("the server is still in a transaction")),
                _ => {}
            }
        }
    }

    fn log_in(&mut self, address: &Address) -> Result<(), Fault> {
        let mut scram: Option<ScramSha256> = None;
        let mut proven = true;
        loop {
            match self.message()? {
                Message::AuthenticationOk if proven => break,
                Message::AuthenticationOk => {
                    return Err(protocol("the server did not prove that it knows the password"));
                }
                Message::AuthenticationCleartextPassword => {
                    if !self.stream.is_private() {
                        return Err(protocol(
                            "the server wants the password in the clear, which needs sslmode=require or a better method there \
                             (scram-sha-256 in pg_hba.conf)",
                        ));
                    }
                    frontend::password_message(password(address)?.as_bytes(), &mut self.outbox)?;
                }
                Message::AuthenticationMd5Password(body) => {
                    let hash = md5_hash(address.user.as_bytes(), password(address)?.as_bytes(), body.salt());
                    frontend::password_message(hash.as_bytes(), &mut self.outbox)?;
                }
                Message::AuthenticationSasl(body) => {
                    let known = body.mechanisms().any(|name| Ok(name == SCRAM_SHA_256)).map_err(malformed)?;
                    if !known || scram.is_some() {
                        return Err(protocol(format!("the server's login offers no {SCRAM_SHA_256}")));
                    }
                    // The connection is not bound to the TLS session.
                    let new = ScramSha256::new(password(address)?.as_bytes(), ChannelBinding::unsupported());
                    frontend::sasl_initial_response(SCRAM_SHA_256, new.message(), &mut self.outbox)?;
                    (scram, proven) = (Some(new), false);
                }
                Message::AuthenticationSaslContinue(body) => {
                    let scram = scram.as_mut().ok_or_else(|| protocol("SCRAM goes on before it began"))?;
                    check_iterations(body.data())?;
                    scram.update(body.data()).map_err(malformed)?;
                    frontend::sasl_response(scram.message(), &mut self.outbox)?;
                }
                Message::AuthenticationSaslFinal(body) => {
                    let scram = scram.as_mut().ok_or_else(|| protocol("SCRAM ends before it began"))?;
                    scram.finish(body.data()).map_err(malformed)?;
                    proven = true;
                }
                Message::ErrorResponse(body) => return Err(server_fault(&body)),
                _ => {
                    return Err(protocol(
                        "the server wants a way of login that is not known here (known are scram-sha-256, md5 and password)",
                    ));
                }
            }
            self.send()?;
        }
        loop {
            match self.message()? {
                Message::BackendKeyData(_) => {}
                Message::ReadyForQuery(_) => return Ok(()),
                Message::ErrorResponse(body) => return Err(server_fault(&body)),
                _ => return Err(protocol("the server said something else before it was ready")),
            }
        }
    }

    fn send(&mut self) -> Result<(), Fault> {
        if !self.outbox.is_empty() {
            self.stream.write_all(&self.outbox)?;
            self.stream.flush()?;
            self.outbox.clear();
        }
        Ok(())
    }

    /// The next message that is not just news.
    fn message(&mut self) -> Result<Message, Fault> {
        loop {
            if let Some(message) = next_message(&mut self.inbox, self.message_bytes_max)? {
                match message {
                    Message::NoticeResponse(_)
                    | Message::ParameterStatus(_)
                    | Message::NotificationResponse(_) => continue,
                    message => return Ok(message),
                }
            }
            let mut buffer = [0; 16 * 1024];
            match self.stream.read(&mut buffer) {
                Ok(0) => {
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server hung up").into());
                }
                Ok(n) => self.inbox.extend_from_slice(&buffer[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // So that the server's log has no complaint; who does not read it is no concern of ours.
        self.stream.set_deadline(Instant::now() + Duration::from_millis(50));
        self.outbox.clear();
        frontend::terminate(&mut self.outbox);
        let _ = self.send();
    }
}

/// The first message in `inbox` if all of it is there.
fn next_message(inbox: &mut BytesMut, bytes_max: usize) -> Result<Option<Message>, Fault> {
    let Some(header) = Header::parse(inbox).map_err(malformed)? else { return Ok(None) };
    let length = usize::try_from(header.len()).unwrap_or(usize::MAX);
    if length > bytes_max {
        return Err(protocol(format!("a message of {length} bytes, more than {bytes_max}")));
    }
    if inbox.len() <= length {
        return Ok(None);
    }
    Message::parse(inbox).map_err(malformed)
}

/// How often the password is to be hashed is the server's choice: one that is not ours could have it done for hours.
fn check_iterations(server_first: &[u8]) -> Result<(), Fault> {
    let count = server_first.split(|b| *b == b',').find_map(|attribute| attribute.strip_prefix(b"i="));
    let count = count.and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<u32>().ok());
    match count {
        Some(count) if count > ITERATIONS_MAX => Err(protocol(format!(
            "the server wants the password hashed {count} times, more than {ITERATIONS_MAX} (scram_iterations there)"
        ))),
        // What is missing or no number is for the codec to refuse.
        _ => Ok(()),
    }
}

fn password(address: &Address) -> Result<&str, Fault> {
    address
        .password
        .as_ref()
        .map(Secret::expose)
        .ok_or_else(|| protocol("the server wants a password, and the connection string has none"))
}

fn server_fault(body: &ErrorResponseBody) -> Fault {
    let (mut code, mut message, mut severity) = (String::new(), String::new(), String::new());
    let mut fields = body.fields();
    while let Ok(Some(field)) = fields.next() {
        let text = || -> String {
            let text = String::from_utf8_lossy(field.value_bytes());
            text.chars().take(ERROR_CHARS_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
        };
        match field.type_() {
            b'C' => code = text(),
            b'M' => message = text(),
            // S is in the server's language, V is not, and older servers have only S.
            b'V' => severity = text(),
            b'S' if severity.is_empty() => severity = text(),
            _ => {}
        }
    }
    let fatal = matches!(severity.as_str(), "FATAL" | "PANIC") || code.starts_with("57P");
    Fault::Server { code, message, fatal }
}

fn row(body: &DataRowBody, columns: &[Kind]) -> Result<Row, Fault> {
    let mut ranges = body.ranges();
    let mut row = Vec::with_capacity(columns.len());
    for kind in columns {
        let range = ranges.next().map_err(malformed)?.ok_or_else(|| protocol("a row is too short"))?;
        let Some(range) = range else {
            row.push(Cell::Null);
            continue;
        };
        let bytes = body.buffer().get(range).ok_or_else(|| protocol("a field leaves its row"))?;
        row.push(cell(bytes, *kind)?);
    }
    match ranges.next().map_err(malformed)? {
        None => Ok(row),
        Some(_) => Err(protocol("a row is too long")),
    }
}

fn cell(bytes: &[u8], kind: Kind) -> Result<Cell, Fault> {
    let wrong = || protocol(format!("a field of {} bytes is no {kind:?}", bytes.len()));
    match kind {
        Kind::Text => {
            let text = String::from_utf8(bytes.to_vec()).map_err(|_| protocol("a text is no UTF-8"))?;
            Ok(Cell::Text(text))
        }
        Kind::Real => Ok(Cell::Real(f32::from_be_bytes(bytes.try_into().map_err(|_| wrong())?))),
        Kind::Int => match *bytes {
            [a, b] => Ok(Cell::Int(i16::from_be_bytes([a, b]).into())),
            [a, b, c, d] => Ok(Cell::Int(i32::from_be_bytes([a, b, c, d]).into())),
            _ => Ok(Cell::Int(i64::from_be_bytes(bytes.try_into().map_err(|_| wrong())?))),
        },
    }
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;

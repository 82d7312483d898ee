//! Tests of the connection against servers that follow a script: what a real one never says.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread::JoinHandle;

use super::*;

const OK: &[u8] = b"R\0\0\0\x08\0\0\0\0";
const READY: &[u8] = b"Z\0\0\0\x05I";

/// A server for one connection: it says `login` to the start-up message, then `answer` to whatever comes next.
fn server(login: Vec<u8>, answer: Vec<u8>, hang_up: bool) -> (Address, JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serve = move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut heard = some(&mut stream);
        let _ = stream.write_all(&login);
        heard.extend(some(&mut stream));
        let _ = stream.write_all(&answer);
        if !hang_up {
            heard.extend(some(&mut stream));
        }
        heard
    };
    let address = Address::parse(&format!("postgresql://u:hunter2@127.0.0.1:{port}/d")).unwrap();
    (address, std::thread::spawn(serve))
}

fn some(stream: &mut TcpStream) -> Vec<u8> {
    let mut buffer = [0; 4096];
    let n = stream.read(&mut buffer).unwrap_or(0);
    buffer[..n].to_vec()
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut message = vec![tag];
    message.extend((body.len() as u32 + 4).to_be_bytes());
    message.extend(body);
    message
}

/// For a server that answers.
fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// For a silent one.
fn shortly() -> Instant {
    Instant::now() + Duration::from_millis(400)
}

fn open(login: Vec<u8>) -> Result<Connection, Fault> {
    let (address, server) = server(login, Vec::new(), true);
    let result = Connection::open(&address, &Tls::Off, soon());
    server.join().unwrap();
    result
}

fn why<T>(result: Result<T, Fault>) -> String {
    match result.map(drop).unwrap_err() {
        Fault::Io(error) => error.to_string(),
        Fault::Server { code, message, .. } => format!("{code} {message}"),
        Fault::Protocol(why) => why,
    }
}

/// What `run` says to this answer on a fresh connection.
fn ask(answer: Vec<u8>, columns: &'static [Kind]) -> Result<Vec<Row>, Fault> {
    let (address, server) = server([OK, READY].concat(), answer, true);
    let mut connection = Connection::open(&address, &Tls::Off, soon())?;
    let result = connection.run(&[Statement::query("SELECT 1", vec![Value::Int(1)], columns)], soon());
    drop(connection);
    server.join().unwrap();
    result
}

#[test]
fn a_password_never_leaves_in_the_clear_where_somebody_can_read_along() {
    let (address, server) = server(message(b'R', &3u32.to_be_bytes()), Vec::new(), false);
    let text = why(Connection::open(&address, &Tls::Off, soon()));
    assert!(text.contains("in the clear") && text.contains("sslmode=require"), "{text}");
    let heard = server.join().unwrap();
    assert!(!heard.windows(7).any(|w| w == b"hunter2"));
}

#[test]
fn md5_is_answered_as_the_server_expects() {
    let login = message(b'R', &[0, 0, 0, 5, 1, 2, 3, 4]);
    let (address, server) = server(login, [OK, READY].concat(), false);
    drop(Connection::open(&address, &Tls::Off, soon()).unwrap());
    let heard = server.join().unwrap();
    let hash = md5_hash(b"u", b"hunter2", [1, 2, 3, 4]);
    assert!(heard.windows(hash.len()).any(|w| w == hash.as_bytes()));
}

#[test]
fn a_server_that_begins_scram_has_to_prove_itself() {
    let begin = message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0");
    let (address, server) = server(begin.clone(), [OK, READY].concat(), true);
    let text = why(Connection::open(&address, &Tls::Off, soon()));
    assert!(text.contains("did not prove"), "{text}");
    server.join().unwrap();
    let other = message(b'R', b"\0\0\0\x0aSCRAM-SHA-512\0\0");
    assert!(why(open(other)).contains("no SCRAM-SHA-256"));
    assert!(why(open(message(b'R', b"\0\0\0\x0br=x"))).contains("before it began"));
    assert!(why(open(message(b'R', b"\0\0\0\x0cv=x"))).contains("before it began"));
    let nonce = message(b'R', b"\0\0\0\x0br=other,s=AAAA,i=4096");
    let (address, server) = self::server(begin, nonce, true);
    assert!(why(Connection::open(&address, &Tls::Off, soon())).contains("nonce"));
    server.join().unwrap();
}

#[test]
fn unknown_logins_and_refusals_are_told() {
    assert!(why(open(message(b'R', &7u32.to_be_bytes()))).contains("way of login"));
    let refusal = message(b'E', b"SFEHLER\0VFATAL\0C28P01\0Mno\x1b such\0\0");
    let fault = open(refusal).map(drop).unwrap_err();
    let Fault::Server { code, message: text, fatal } = fault else { panic!("{fault:?}") };
    assert_eq!((code.as_str(), text.as_str(), fatal), ("28P01", "no  such", true));
    assert!(why(open(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())).contains("bytes, more than"));
}

#[test]
fn a_silent_server_is_left_in_time() {
    let begin = Instant::now();
    let (address, silent) = server(Vec::new(), Vec::new(), false);
    assert!(why(Connection::open(&address, &Tls::Off, shortly())).contains("in time"));
    assert!(begin.elapsed() < Duration::from_secs(8));
    silent.join().unwrap();
    // It lets us in and then says nothing to a question.
    let (address, silent) = server([OK, READY].concat(), Vec::new(), false);
    let mut connection = Connection::open(&address, &Tls::Off, soon()).unwrap();
    let fault = connection.run(&[Statement::change("SELECT 1", vec![])], shortly()).unwrap_err();
    assert!(fault.ends() && !fault.is_stale());
    assert!(why::<()>(Err(fault)).contains("in time"));
    drop(connection);
    silent.join().unwrap();
}

#[test]
fn what_is_too_large_or_not_asked_for_ends_the_connection() {
    let huge = [b"D".as_slice(), &i32::MAX.to_be_bytes(), b"xx"].concat();
    assert!(why(ask(huge, &[Kind::Int])).contains("more than"));
    assert!(why(ask(vec![b'D', 0, 0, 0, 3], &[Kind::Int])).contains("length"));
    assert!(why(ask(message(b'G', b"\0\0\0"), &[])).contains("not asked"));
    assert!(why(ask(message(b'X', b""), &[])).contains("unknown message tag"));
    assert!(why(ask(READY.to_vec(), &[])).contains("not asked"));
    let row = |fields: &[u8]| [message(b'D', fields), message(b'C', b"SELECT\0"), READY.to_vec()].concat();
    let int = b"\0\x01\0\0\0\x04\0\0\0\x07";
    assert_eq!(ask(row(int), &[Kind::Int]).unwrap(), [[Cell::Int(7)]]);
    assert_eq!(ask(row(b"\0\x01\xff\xff\xff\xff"), &[Kind::Text]).unwrap(), [[Cell::Null]]);
    assert!(why(ask(row(int), &[Kind::Int, Kind::Int])).contains("short"));
    assert!(why(ask(row(b"\0\x02\0\0\0\x01x\0\0\0\x01x"), &[Kind::Text])).contains("long"));
    assert!(why(ask(row(b"\0\x01\0\0\0\x03\0\0\0"), &[Kind::Int])).contains("3 bytes"));
    assert!(why(ask(row(b"\0\x01\0\0\0\x01\xff"), &[Kind::Text])).contains("UTF-8"));
    assert!(ask(row(b"\0\x01\0\0\xff\x01\xff"), &[Kind::Text]).is_err());
}

/// Whatever bytes come: an error or rows, no panic, no loop, and never more than is bounded.
#[test]
fn damaged_answers() {
    let seed = std::env::var("EDGE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(17);
    let good = [
        message(b'S', b"a\0b\0"),
        message(b'1', b""),
        message(b'2', b""),
        message(b'N', b"SNOTICE\0C00000\0Mx\0\0"),
        message(b'D', b"\0\x02\0\0\0\x04\0\0\0\x07\0\0\0\x02ab"),
        message(b'E', b"SERROR\0C42P01\0Mx\0\0"),
        message(b'C', b"SELECT 1\0"),
        message(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0"),
        message(b'K', &[0; 8]),
        READY.to_vec(),
    ];
    let mut rng = fastrand::Rng::with_seed(seed);
    for round in 0..30_000 {
        let mut bytes: Vec<u8> =
            (0..rng.usize(1..8)).flat_map(|_| good[rng.usize(..good.len())].clone()).collect();
        for _ in 0..rng.usize(0..4) {
            let at = rng.usize(..bytes.len());
            bytes[at] = rng.u8(..);
        }
        bytes.truncate(rng.usize(..=bytes.len()));
        let mut inbox = BytesMut::from(&bytes[..]);
        let mut before = inbox.len() + 1;
        while inbox.len() < before {
            before = inbox.len();
            match next_message(&mut inbox, MESSAGE_BYTES_MAX) {
                Ok(Some(Message::DataRow(body))) => drop(row(&body, &[Kind::Int, Kind::Text])),
                Ok(Some(Message::ErrorResponse(body))) => drop(server_fault(&body)),
                Ok(Some(Message::AuthenticationSasl(body))) => drop(body.mechanisms().count()),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => break,
            }
        }
        assert!(inbox.len() <= bytes.len(), "seed {seed} round {round}");
    }
}

#[test]
fn a_server_can_t_have_the_password_hashed_for_hours() {
    for good in ["r=abc,s=QQ==,i=4096", "r=abc,s=QQ==,i=1000000", "", "i=", "i=x", "r=i=99999999999,s=,i=1"] {
        assert!(check_iterations(good.as_bytes()).is_ok(), "{good}");
    }
    for bad in ["r=abc,s=QQ==,i=1000001", "i=4294967295,r=x", "r=,i=4294967295,i=1"] {
        let Err(Fault::Protocol(why)) = check_iterations(bad.as_bytes()) else { panic!("{bad}") };
        assert!(why.contains("scram_iterations"), "{why}");
    }
}

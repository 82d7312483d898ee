//! The commands against a daemon that is only a socket.

use std::io::BufRead as _;
use std::os::unix::net::UnixListener;

use super::*;

/// What a stand-in for the daemon answers: the first line of a request begins so, and the body.
type Answers = &'static [(&'static str, &'static str)];

/// Runs commands against a stand-in that gives these answers; the first lines of what it was asked, one a connection.
fn served(name: &str, answers: Answers, work: impl FnOnce(&Place)) -> Vec<String> {
    let dir = std::env::temp_dir().join(format!("otad-commands-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let ctl = dir.join("ctl.sock");
    let listener = UnixListener::bind(&ctl).unwrap();
    let daemon = std::thread::spawn(move || {
        let mut asked = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            std::io::BufReader::new(&stream).read_line(&mut line).unwrap();
            let line = line.trim_end().to_owned();
            if line == "end" {
                return asked;
            }
            if let Some((_, body)) = answers.iter().find(|(begins, _)| line.starts_with(begins)) {
                // A client that is gone already shows in what it asked.
                let _ = stream.write_all(format!("HTTP/1.1 200 OK\r\n\r\n{body}").as_bytes());
            }
            asked.push(line);
        }
        asked
    });
    work(&Place { ctl: Some(ctl.clone()), dir: dir.join("state") });
    UnixStream::connect(&ctl).unwrap().write_all(b"end\n").unwrap();
    let asked = daemon.join().unwrap();
    std::fs::remove_dir_all(dir).unwrap();
    asked
}

#[test]
fn a_daemon_is_connected_to_once_a_question() {
    let answers: Answers = &[
        ("GET /history ", "[]"),
        ("POST /verify ", r#"{"number":7}"#),
        ("GET /status ", r#"{"verify":{"number":7,"generation":null,"damage":[]}}"#),
    ];
    let asked = served("once", answers, |place| {
        assert_eq!(place.history().unwrap(), json!([]));
        place.verify(&Output { json: true }).unwrap();
    });
    assert_eq!(asked, ["GET /history HTTP/1.1", "POST /verify HTTP/1.1", "GET /status HTTP/1.1"]);
}

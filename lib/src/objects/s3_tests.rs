//! Tests of the S3 store against a scripted server and against s3s-fs.

use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::aws::credentials::Vars;
use crate::aws::tls;

use super::*;
use crate::objects::script::{self, Request, Server, error, ok};

const BODY: &[u8] = b"one face";

pub(super) fn settings(endpoint: &str, vars: &[(&str, &str)]) -> Settings {
    let keys = [("AWS_ACCESS_KEY_ID", "AKTEST"), ("AWS_SECRET_ACCESS_KEY", "SKTEST")];
    let vars = if vars.is_empty() { &keys } else { vars };
    let vars = Vars::new(vars.iter().map(|(k, v)| (*k, (*v).to_owned())));
    Settings {
        user_agent: "test/1",
        table: "target",
        bucket: Bucket::new("bkt", "eu-west-1", Some(endpoint), None).unwrap(),
        tls: tls::none(),
        chain: ChainConfig { vars, ..ChainConfig::default() },
        conditional: true,
        connections: 4,
        connect_timeout: Duration::from_secs(2),
        idle_timeout: Duration::from_secs(5),
        request_timeout: Duration::from_secs(60),
    }
}

fn put_with(s3: &S3, key: &str, body: &[u8], sidecar: Option<&[u8]>) -> Outcome {
    let headers = [("x-amz-meta-topic".to_owned(), "faces".to_owned())];
    let sha256 = sha256_hex(body);
    s3.put(&Object { key, body, sha256: &sha256, content_type: "image/jpeg", headers: &headers, sidecar })
}

fn put(s3: &S3) -> Outcome {
    put_with(s3, "a b/ü.jpg", BODY, None)
}

/// The outcome against a server with this script, and what it was asked.
fn against(
    script: impl Fn(usize, &Request) -> script::Answer + Send + Sync + 'static,
) -> (Outcome, Vec<Request>) {
    let server = Server::start(script);
    let outcome = put(&S3::new(settings(&server.url(), &[])));
    (outcome, server.requests())
}

const NEW: Outcome = Outcome::Stored { already: false };
const AGAIN: Outcome = Outcome::Stored { already: true };

fn hold(outcome: Outcome) -> String {
    match outcome {
        Outcome::Hold(why) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_checksum_in_base64() {
    assert_eq!(checksum(EMPTY_SHA256), "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=");
}

#[test]
fn the_request_has_all_it_should_on_one_kept_connection() {
    let server = Server::start(|_, _| ok());
    let s3 = S3::new(settings(&server.url(), &[]));
    for _ in 0..20 {
        assert_eq!(put(&s3), NEW);
    }
    assert_eq!(server.connections.load(Ordering::SeqCst), 1, "kept alive");
    let request = &server.requests()[0];
    assert_eq!((request.method.as_str(), request.target.as_str()), ("PUT", "/bkt/a%20b/%C3%BC.jpg"));
    let header = |name: &str| request.header(name).unwrap_or_else(|| panic!("no {name} in {request:?}"));
    assert_eq!(header("content-length"), "8");
    assert_eq!(header("x-amz-content-sha256"), sha256_hex(BODY));
    assert_eq!(header("x-amz-checksum-sha256"), checksum(&sha256_hex(BODY)));
    assert_eq!(header("if-none-match"), "*");
    assert_eq!(header("content-type"), "image/jpeg");
    assert_eq!(header("x-amz-meta-topic"), "faces");
    assert_eq!(header("host"), server.address.to_string());
    let signed = "SignedHeaders=content-type;host;if-none-match;x-amz-checksum-sha256;x-amz-content-sha256;x-amz-date;x-amz-meta-topic";
    assert!(header("authorization").contains(signed), "{}", header("authorization"));
    assert!(request.header("transfer-encoding").is_none());
    assert_eq!(request.body, BODY);
}

#[test]
fn what_passes_is_retried() {
    for status in [429, 500, 502, 503, 504] {
        assert!(matches!(against(move |_, _| error(status, "SlowDown")).0, Outcome::Retry(_)), "{status}");
    }
    assert!(matches!(against(|_, _| error(409, "ConditionalRequestConflict")).0, Outcome::Retry(_)));
    assert!(matches!(against(|_, _| script::Answer::Reset).0, Outcome::Retry(_)));
    let server = Server::start(|_, _| script::Answer::Stall);
    let hurried = Settings { idle_timeout: Duration::from_millis(400), ..settings(&server.url(), &[]) };
    let begin = Instant::now();
    let stalled = put(&S3::new(hurried));
    let Outcome::Retry(why) = stalled else { panic!("{stalled:?}") };
    assert!(why.contains("no answer in time") && begin.elapsed() < Duration::from_secs(10), "{why}");
    let free = e2e::net::local(e2e::net::free_port());
    let nobody = put(&S3::new(settings(&format!("http://{free}"), &[])));
    assert!(matches!(&nobody, Outcome::Retry(why) if why.contains("refused")), "{nobody:?}");
}

#[test]
fn a_kept_connection_that_the_server_drops_costs_nothing() {
    // A server that takes one request a connection and drops the next without a word.
    let server = Server::start(|n, _| if n % 2 == 0 { ok() } else { script::Answer::Reset });
    let s3 = S3::new(settings(&server.url(), &[]));
    for _ in 0..10 {
        assert_eq!(put(&s3), NEW);
    }
    let (outcome, requests) = against(|_, _| script::Answer::Reset);
    assert!(matches!(outcome, Outcome::Retry(_)) && requests.len() == 2, "once is enough: {outcome:?}");
}

#[test]
fn garbage_is_an_error_and_never_a_panic() {
    for garbage in [
        &b"220 ready when you are\r\n"[..],
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"HTTP/1.1 500 \xff\xfe\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 9999 X\r\n\r\n",
        b"",
        b"\x16\x03\x01",
    ] {
        let outcome = against(move |_, _| script::Answer::Raw(garbage.to_vec())).0;
        assert!(matches!(outcome, Outcome::Retry(_)), "{}: {outcome:?}", String::from_utf8_lossy(garbage));
    }
    // An endless head is cut off.
    let long = [b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'x'; 1 << 20]].concat();
    assert!(matches!(against(move |_, _| script::Answer::Raw(long.clone())).0, Outcome::Retry(_)));
}

#[test]
fn a_wrong_clock_is_corrected_from_the_servers() {
    // The server lives in 2031 and refuses who is more than 15 minutes off.
    const DATE: &str = "Date: Wed, 01 Jan 2031 00:00:00 GMT\r\n";
    let server = Server::start(|_, request| match request.header("x-amz-date").unwrap() {
        date if date.starts_with("2031") => ok(),
        _ => script::Answer::Http(403, DATE, "<Error><Code>RequestTimeTooSkewed</Code></Error>".into()),
    });
    let s3 = S3::new(settings(&server.url(), &[]));
    assert_eq!(put(&s3), NEW);
    assert_eq!(put(&s3), NEW);
    let requests = server.requests();
    assert_eq!(requests.len(), 3, "one correction is enough");
    assert_ne!(requests[0].header("authorization"), requests[1].header("authorization"), "signed anew");
    assert!(s3.skew_s() > 86_400);
    // A server that stays unhappy does not make a loop.
    let (outcome, requests) = against(|_, _| {
        script::Answer::Http(403, DATE, "<Error><Code>RequestTimeTooSkewed</Code></Error>".into())
    });
    assert!(matches!(outcome, Outcome::Retry(_)) && requests.len() == 2, "{outcome:?}");
}

#[test]
fn what_is_there_is_compared() {
    let same: &'static str = Box::leak(
        format!("Content-Length: 8\r\nx-amz-checksum-sha256: {}\r\n", checksum(&sha256_hex(BODY)))
            .into_boxed_str(),
    );
    let other: &'static str = Box::leak(
        format!("Content-Length: 8\r\nx-amz-checksum-sha256: {}\r\n", checksum(EMPTY_SHA256))
            .into_boxed_str(),
    );
    let there = |head: (u16, &'static str), get: &'static str| {
        against(move |_, request| match request.method.as_str() {
            "PUT" => error(412, "PreconditionFailed"),
            "HEAD" => script::Answer::Http(head.0, head.1, String::new()),
            _ => script::Answer::Http(200, "", get.into()),
        })
    };
    let (outcome, requests) = there((200, same), "");
    assert_eq!(outcome, AGAIN);
    assert_eq!(requests[1].header("x-amz-checksum-mode"), Some("ENABLED"));
    assert!(matches!(there((200, other), "").0, Outcome::Dead(why) if why.contains("other content")));
    assert!(matches!(there((200, "Content-Length: 9\r\n"), "").0, Outcome::Dead(_)), "the size tells");
    // A server without checksums: read and compare.
    assert_eq!(there((200, "Content-Length: 8\r\n"), "one face").0, AGAIN);
    assert!(matches!(there((200, "Content-Length: 8\r\n"), "two face").0, Outcome::Dead(_)));
    assert_eq!(there((200, "Content-Length: 8\r\nx-amz-checksum-sha256: abc=-3\r\n"), "one face").0, AGAIN);
    assert!(matches!(there((403, ""), "").0, Outcome::Refused(why) if why.contains("s3:GetObject")));
    assert!(matches!(there((404, ""), "").0, Outcome::Retry(_)));
    assert!(matches!(there((503, ""), "").0, Outcome::Retry(_)));
}

#[test]
fn what_refuses_us_holds_and_says_what_to_do() {
    let why = hold(against(|_, _| error(403, "AccessDenied")).0);
    assert!(why.contains("s3:PutObject") && why.contains("s3://bkt") && why.contains("because"), "{why}");
    assert!(hold(against(|_, _| error(404, "NoSuchBucket")).0).contains("make the bucket"));
    let moved = |_: usize, _: &Request| {
        script::Answer::Http(301, "x-amz-bucket-region: eu-north-1\r\n", String::new())
    };
    assert!(hold(against(moved).0).contains("\"eu-north-1\""));
    let redirect =
        |_: usize, _: &Request| script::Answer::Http(307, "Location: http://127.0.0.1:9/\r\n", String::new());
    assert!(hold(against(redirect).0).contains("target.region"));
    let malformed = |_: usize, _: &Request| {
        let body = "<Error><Code>AuthorizationHeaderMalformed</Code><Region>us-west-2</Region></Error>";
        script::Answer::Http(400, "", body.into())
    };
    assert!(hold(against(malformed).0).contains("\"us-west-2\""));
    let none = S3::new(settings("http://127.0.0.1:9", &[("AWS_EC2_METADATA_DISABLED", "true")]));
    let why = hold(put(&none));
    assert!(
        why.contains("environment: AWS_ACCESS_KEY_ID is not set") && why.contains("instance metadata"),
        "{why}"
    );
    assert!(matches!(against(|_, _| error(400, "InvalidRequest")).0, Outcome::Refused(_)));
}

#[test]
fn ended_credentials_are_fetched_anew() {
    let keys = Server::start(|n, _| {
        let body = format!(
            r#"{{"AccessKeyId":"KEY{n}","SecretAccessKey":"S3CRET","Token":"TOKEN{n}","Expiration":"2099-01-01T00:00:00Z"}}"#
        );
        script::Answer::Http(200, "", body)
    });
    let server = Server::start(|_, request| {
        let authorization = request.header("authorization").unwrap();
        if authorization.contains("KEY0") { error(400, "ExpiredToken") } else { ok() }
    });
    let url = keys.url();
    let s3 = S3::new(settings(&server.url(), &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &url)]));
    assert_eq!(put(&s3), NEW);
    assert_eq!(put(&s3), NEW);
    let requests = server.requests();
    let tokens: Vec<_> = requests.iter().map(|r| r.header("x-amz-security-token").unwrap()).collect();
    assert_eq!(tokens, ["TOKEN0", "TOKEN1", "TOKEN1"]);
    assert_eq!(keys.requests().len(), 2);
    assert!(!format!("{s3:?}").contains("S3CRET") && !format!("{s3:?}").contains("TOKEN"));
    // Keys that stay unknown: everything is held, and the message says where they came from.
    let why = hold(against(|_, _| error(403, "InvalidAccessKeyId")).0);
    assert!(why.contains("fetched anew from environment"), "{why}");
}

#[test]
fn the_sidecar_comes_first_and_the_first_one_stays() {
    let server = Server::start(|_, request| {
        if request.target.ends_with(".json") { error(412, "PreconditionFailed") } else { ok() }
    });
    let s3 = S3::new(settings(&server.url(), &[]));
    assert_eq!(put_with(&s3, "k.jpg", BODY, Some(b"{}")), NEW);
    let requests = server.requests();
    let targets: Vec<_> = requests.iter().map(|r| r.target.as_str()).collect();
    assert_eq!(targets, ["/bkt/k.jpg.json", "/bkt/k.jpg"]);
    assert_eq!(requests[0].header("content-type"), Some("application/json"));
    let failing =
        Server::start(
            |_, request| if request.target.ends_with(".json") { error(503, "SlowDown") } else { ok() },
        );
    let s3 = S3::new(settings(&failing.url(), &[]));
    assert!(matches!(put_with(&s3, "k.jpg", BODY, Some(b"{}")), Outcome::Retry(_)));
    assert_eq!(failing.requests().len(), 1, "no object without its sidecar");
}

/// A real S3 server that checks signatures.
#[test]
fn s3s_takes_our_signatures() {
    let Some(tool) = s3s() else {
        eprintln!("SKIPPED s3s_takes_our_signatures: s3s-fs is not built (etc/tools.sh s3s)");
        return;
    };
    let root = std::env::temp_dir().join(format!("edge-s3s-{}", std::process::id()));
    std::fs::create_dir_all(root.join("bkt")).unwrap();
    let port = e2e::net::free_port();
    let mut child = std::process::Command::new(tool)
        .args([
            "--host",
            "127.0.0.1",
            "--port",
            &port.to_string(),
            "--access-key",
            "AKTEST",
            "--secret-key",
            "SKTEST",
        ])
        .arg(&root)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let begin = Instant::now();
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(begin.elapsed() < Duration::from_secs(20), "s3s-fs does not start");
        std::thread::sleep(Duration::from_millis(20));
    }
    let endpoint = format!("http://127.0.0.1:{port}");
    let check = std::panic::catch_unwind(|| {
        let s3 = S3::new(settings(&endpoint, &[]));
        for key in ["plain.jpg", "a b/ü/c+d=e~f'(g)*!@$&,;:.jpg", "topic/2026-11-22/f%2F1.jpg"] {
            assert_eq!(put_with(&s3, key, BODY, None), NEW, "{key}");
            assert_eq!(std::fs::read(root.join("bkt").join(key)).unwrap(), BODY);
        }
        assert_eq!(put_with(&s3, "big", &vec![7; 3 << 20], Some(b"{}")), NEW);
        assert_eq!(put_with(&s3, "plain.jpg", BODY, None), AGAIN);
        assert!(matches!(put_with(&s3, "plain.jpg", b"two face", None), Outcome::Dead(_)));
        assert_eq!(std::fs::read(root.join("bkt/plain.jpg")).unwrap(), BODY);
        let wrong = S3::new(settings(
            &endpoint,
            &[("AWS_ACCESS_KEY_ID", "AKTEST"), ("AWS_SECRET_ACCESS_KEY", "WRONG")],
        ));
        let why = hold(put_with(&wrong, "x", BODY, None));
        assert!(why.contains("SignatureDoesNotMatch"), "{why}");
    });
    child.kill().unwrap();
    child.wait().unwrap();
    std::fs::remove_dir_all(&root).unwrap();
    check.unwrap();
}

fn s3s() -> Option<std::path::PathBuf> {
    let own = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools");
    let folder = std::env::var_os("EDGE_TOOLS").map_or(own, std::path::PathBuf::from);
    Some(folder.join("bin/s3s-fs")).filter(|path| path.exists())
}

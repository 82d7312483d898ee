//! Tests of the credential sources over HTTP, against scripted servers.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use super::*;

const GOOD: &str = r#"{"Code":"Success","AccessKeyId":"AK","SecretAccessKey":"S3CRET","Token":"T","Expiration":"2036-01-01T00:00:00Z"}"#;

/// Answers each request by the first line that fits; keeps what it was asked.
fn server(answers: Vec<(&'static str, u16, &'static str)>) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            let mut buffer = [0; 1024];
            while !request.ends_with(b"\r\n\r\n") {
                match stream.read(&mut buffer).unwrap() {
                    0 => break,
                    n => request.extend_from_slice(&buffer[..n]),
                }
            }
            let request = String::from_utf8(request).unwrap();
            let found = answers.iter().find(|(line, ..)| request.starts_with(line));
            let (status, body) = found.map_or((404, ""), |(_, status, body)| (*status, *body));
            log.lock().unwrap().push(request);
            let answer = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    (address, asked)
}

fn vars(pairs: &[(&str, &str)]) -> Vars {
    Vars::new(pairs.iter().map(|(k, v)| (*k, (*v).to_owned())))
}

fn why(link: Link) -> String {
    match link {
        Link::Found(_) => panic!("found credentials"),
        Link::NotSet(why) => format!("not set: {why}"),
        Link::Failed(why) => why,
    }
}

#[test]
fn instance_metadata_needs_a_session_token() {
    let (address, asked) = server(vec![
        ("PUT /latest/api/token ", 200, "TOKEN"),
        ("GET /latest/meta-data/iam/security-credentials/ ", 200, "my-role\n"),
        ("GET /latest/meta-data/iam/security-credentials/my-role ", 200, GOOD),
    ]);
    let Link::Found(found) = metadata(&vars(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &address)])) else {
        panic!()
    };
    assert_eq!(
        (found.access_key_id.as_str(), found.source.as_str()),
        ("AK", "instance metadata, role my-role")
    );
    let asked = asked.lock().unwrap();
    assert!(asked[0].to_lowercase().contains("x-aws-ec2-metadata-token-ttl-seconds: 21600"), "{}", asked[0]);
    assert!(asked[1..].iter().all(|r| r.to_lowercase().contains("x-aws-ec2-metadata-token: token")));
}

#[test]
fn instance_metadata_says_why_not() {
    let at = |answers| why(metadata(&vars(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &server(answers).0)])));
    assert!(at(vec![("PUT /", 403, "")]).contains("answers 403"));
    assert!(at(vec![("PUT /", 200, "T")]).contains("no IAM role"));
    assert!(at(vec![("PUT /", 200, "T"), ("GET /", 200, "../x")]).contains("can't be one"));
    assert!(at(vec![("PUT /", 200, "T"), ("GET /", 500, "")]).contains("answers 500"));
    let junk = at(vec![
        ("PUT /", 200, "T"),
        ("GET /latest/meta-data/iam/security-credentials/ ", 200, "r"),
        ("GET /", 200, "S3CRET{"),
    ]);
    assert!(junk.contains("not JSON") && !junk.contains("S3CRET"), "{junk}");
    // A port that nobody listens on: the end of the chain, not a failure.
    let free = e2e::net::local(e2e::net::free_port());
    let none = why(metadata(&vars(&[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &format!("http://{free}"))])));
    assert!(none.starts_with("not set"), "{none}");
}

#[test]
fn the_container_endpoint_with_a_token_file() {
    let (address, asked) = server(vec![("GET /creds?a=b ", 200, GOOD)]);
    let path = std::env::temp_dir().join(format!("edge-token-{}", std::process::id()));
    std::fs::write(&path, "the-token\n").unwrap();
    let url = format!("{address}/creds?a=b");
    let path_text = path.display().to_string();
    let set = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", url.as_str()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &path_text),
    ];
    let Link::Found(found) = container(&vars(&set)) else { panic!() };
    assert_eq!(found.token.unwrap().expose(), "T");
    assert!(asked.lock().unwrap()[0].to_lowercase().contains("authorization: the-token"));
    std::fs::remove_file(&path).unwrap();
    assert!(why(container(&vars(&set))).contains("cannot read the token"));
    let (address, _) = server(vec![("GET / ", 500, "")]);
    assert!(
        why(container(&vars(&[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &format!("{address}/"))])))
            .contains("answers 500")
    );
}

#[test]
fn plain_http_goes_to_near_hosts_only() {
    for (url, near) in
        [("http://example.com/x", false), ("http://10.0.0.1/x", false), ("ftp://localhost/", false)]
    {
        let text = why(container(&vars(&[("AWS_CONTAINER_CREDENTIALS_FULL_URI", url)])));
        assert_eq!(!text.contains("plain HTTP"), near, "{url}: {text}");
    }
    for host in ["localhost", "127.0.0.9", "[::1]", "169.254.170.2", "169.254.170.23", "[fd00:ec2::23]"] {
        assert!(is_near(host), "{host}");
    }
    assert!(!is_near("169.254.169.254") && !is_near("localhost.example.com"));
    assert!(
        why(container(&vars(&[("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "x")]))).contains("begin with /")
    );
    assert!(why(container(&vars(&[]))).starts_with("not set"));
}

/// The IoT provider's server: mutual TLS with a certificate of ours.
#[test]
fn aws_iot_over_mutual_tls() {
    let folder = std::env::temp_dir().join(format!("edge-iot-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut ca_params = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca_params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let ca = rcgen::CertifiedIssuer::self_signed(ca_params, ca_key).unwrap();
    let issue = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &ca).unwrap(), key)
    };
    let (device, device_key) = issue("device");
    let (host, host_key) = issue("localhost");
    for (name, text) in [("ca", ca.pem()), ("cert", device.pem()), ("key", device_key.serialize_pem())] {
        std::fs::write(folder.join(name), text).unwrap();
    }

    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(host_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![host.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (tcp, _) = listener.accept().unwrap();
        let mut stream = rustls::StreamOwned::new(rustls::ServerConnection::new(config).unwrap(), tcp);
        let mut request = Vec::new();
        let mut buffer = [0; 1024];
        while !request.ends_with(b"\r\n\r\n") {
            let n = stream.read(&mut buffer).unwrap();
            request.extend_from_slice(&buffer[..n]);
        }
        let body = r#"{"credentials":{"accessKeyId":"IOT","secretAccessKey":"S","sessionToken":"T","expiration":"2036-01-01T00:00:00Z"}}"#;
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
        stream.flush().unwrap();
        String::from_utf8(request).unwrap()
    });
    let config = IotConfig {
        url: format!("https://localhost:{port}/role-aliases/cam/credentials"),
        thing_name: Some("cam-7".into()),
        cert: folder.join("cert"),
        key: folder.join("key"),
        ca: Some(folder.join("ca")),
    };
    let found = match iot(&config) {
        Link::Found(found) => found,
        Link::NotSet(why) | Link::Failed(why) => panic!("{why}"),
    };
    assert_eq!((found.access_key_id.as_str(), found.source.as_str()), ("IOT", "AWS IoT"));
    let request = server.join().unwrap();
    assert!(request.starts_with("GET /role-aliases/cam/credentials "), "{request}");
    assert!(request.to_lowercase().contains("x-amzn-iot-thingname: cam-7"), "{request}");
    std::fs::remove_dir_all(folder).unwrap();
}

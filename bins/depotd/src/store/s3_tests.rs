//! The S3 store against real servers: s3s-fs, which checks signatures, and moto.

use std::io::Write as _;

use e2e::aws::S3 as Server;
use e2e::scratch::Scratch;
use e2e::skip;

use super::*;

fn open(server: &Server, bucket: &str, prefix: &str) -> S3 {
    let aws = crate::aws::tests::config();
    let bucket = Bucket::new(bucket, &aws.region, Some(&server.endpoint()), None).unwrap();
    S3::open(&aws, bucket, prefix.into()).unwrap()
}

fn file(scratch: &Scratch, content: &[u8]) -> File {
    File::open(scratch.write("source", content)).unwrap()
}

fn read(blob: Blob) -> Vec<u8> {
    let (mut reader, mut bytes) = (blob.reader, Vec::new());
    reader.read_to_end(&mut bytes).unwrap();
    bytes
}

fn contract(scratch: &Scratch, store: &mut S3) {
    let content: Vec<u8> = (0..500_000_u32).flat_map(u32::to_be_bytes).collect();
    let sums = store.put(&mut file(scratch, &content)).unwrap();
    assert_eq!(sums.size, 2_000_000);
    assert_eq!(store.put(&mut file(scratch, &content)).unwrap(), sums);
    let small = store.put(&mut file(scratch, b"")).unwrap();
    assert_eq!(read(store.get(&small.sha256, None).unwrap()), b"");
    let whole = store.get(&sums.sha256, None).unwrap();
    assert_eq!(whole.size, 2_000_000);
    assert_eq!(read(whole), content);
    for (start, len) in [(0, 1), (3, 1_000_000), (1_999_999, 1), (1_500_000, 500_000), (7, 0)] {
        let part = store.get(&sums.sha256, Some(Span { start, len })).unwrap();
        assert_eq!(part.size, 2_000_000);
        assert_eq!(read(part), content[start as usize..(start + len) as usize], "{start} {len}");
    }
    let mut held: Vec<u64> = store.list().unwrap().iter().map(|held| held.size).collect();
    held.sort_unstable();
    assert_eq!(held, [0, 2_000_000]);
    let age = now().0 - store.list().unwrap()[0].since.0;
    assert!((-5..600).contains(&age), "{age} s old");
    let url = store.url_of(&sums.sha256);
    assert!(url.starts_with("s3://depot/") && url.ends_with(&sums.sha256.to_string()), "{url}");
    // By its URL, as the original's rows name it.
    let row = crate::catalog::sqlite::tests::sample("a", "prod", 1, &[]);
    let row = Release { sums: None, url, ..row };
    assert_eq!(read(store.open(&row, Some(Span { start: 4, len: 4 })).unwrap()), content[4..8]);
    let elsewhere = store.open(&Release { url: "s3://other/x".into(), ..row }, None).unwrap_err();
    assert!(matches!(elsewhere, Error::Elsewhere { .. }), "{elsewhere}");
    store.remove(&sums.sha256).unwrap();
    store.remove(&sums.sha256).unwrap();
    let missing = store.get(&sums.sha256, None).unwrap_err();
    assert!(matches!(missing, Error::Missing { .. }), "{missing}");
}

#[test]
fn s3s_keeps_the_contract() {
    let scratch = Scratch::new("depot-s3s");
    let Some(server) = Server::s3s(&scratch, "depot") else {
        skip!("s3s-fs is not built (etc/tools.sh s3s)")
    };
    contract(&scratch, &mut open(&server, "depot", ""));
}

#[test]
fn moto_keeps_the_contract() {
    let scratch = Scratch::new("depot-moto");
    let Some(server) = Server::moto(&scratch) else { skip!("moto is not installed (etc/tools.sh moto)") };
    let mut store = open(&server, "depot", "some/prefix/");
    let error = store.put(&mut file(&scratch, b"x")).unwrap_err().to_string();
    assert!(error.contains("NoSuchBucket") && error.contains("make the bucket"), "{error}");
    let made = store.client.send(Call {
        method: "PUT",
        service: "s3",
        origin: store.bucket.origin(),
        host: store.bucket.host(),
        path: "/depot",
        query: &[],
        headers: &[],
        payload: Payload::Bytes(&[]),
        sha256: EMPTY_SHA256,
    });
    made.unwrap();
    contract(&scratch, &mut store);
    // More names than one page has.
    for n in 0..1005 {
        let mut source = std::fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(scratch.join("n"))
            .unwrap();
        write!(source, "{n}").unwrap();
        store.put(&mut source).unwrap();
    }
    assert_eq!(store.list().unwrap().len(), 1006);
}

#[test]
fn what_one_upload_cannot_have_is_refused_before_it_is_read() {
    let scratch = Scratch::new("depot-s3-large");
    let aws = crate::aws::tests::config();
    // Nobody listens there.
    let bucket = Bucket::new("depot", &aws.region, Some("http://127.0.0.1:9"), None).unwrap();
    let mut store = S3::open(&aws, bucket, String::new()).unwrap();
    let path = scratch.join("large");
    File::create(&path).unwrap().set_len(PUT_BYTES_MAX + 1).unwrap();
    let start = std::time::Instant::now();
    let refused = store.put(&mut File::open(&path).unwrap()).unwrap_err();
    assert!(matches!(refused, Error::Large { .. }), "{refused}");
    assert!(start.elapsed() < std::time::Duration::from_secs(1));
}

//! `depotd`'s commands with the catalog in DynamoDB and the content in S3 (moto, s3s-fs): any number of machines, no disk.

use std::process::{Command, Stdio};
use std::time::Duration;

use e2e::aws::{self, REGION, S3};
use e2e::depot::{Depot, sha256};
use e2e::env;
use e2e::scratch::Scratch;
use e2e::{need, skip};
use serde_json::Value;

/// A depot whose catalog is in `catalog` and whose content in `store`, with its table and bucket made.
fn depot(scratch: &Scratch, catalog: &S3, store: &S3, index: &str) -> Depot {
    let table = [
        "dynamodb",
        "create-table",
        "--table-name",
        "apps",
        "--key-schema",
        "AttributeName=app,KeyType=HASH",
        "AttributeName=env,KeyType=RANGE",
        "--attribute-definitions",
        "AttributeName=app,AttributeType=S",
        "AttributeName=env,AttributeType=S",
        "AttributeName=deviceAttr,AttributeType=S",
        "--global-secondary-indexes",
        "IndexName=by-attr,KeySchema=[{AttributeName=deviceAttr,KeyType=HASH},{AttributeName=env,KeyType=RANGE}],\
         Projection={ProjectionType=KEYS_ONLY}",
        "--billing-mode",
        "PAY_PER_REQUEST",
    ];
    env::run(&mut catalog.aws(&table));
    let text = format!(
        "public-keys = [\"release.pub\"]\n[catalog]\nat = \"dynamodb:apps\"\nendpoint = \"{}\"\nattr-index = \"{index}\"\n\
         [store]\nat = \"s3://depot/p\"\nendpoint = \"{}\"\n[aws]\nregion = \"{REGION}\"\n",
        catalog.endpoint(),
        store.endpoint()
    );
    let depot = Depot::with(scratch.dir("d"), &text);
    depot.done(&["keygen", "--out", "release"]);
    depot
}

fn with(depot: &Depot, arguments: &[&str]) -> Command {
    let mut command = depot.command(arguments);
    aws::credentials(&mut command);
    command
}

fn json(depot: &Depot, arguments: &[&str]) -> Value {
    serde_json::from_str(&env::run(&mut with(depot, &[arguments, &["--json"]].concat()))).unwrap()
}

#[test]
fn depotd_aws_commands_over_dynamodb_and_s3() {
    need!("aws");
    let scratch = Scratch::new("depot-aws");
    let Some(moto) = S3::moto(&scratch) else { skip!("moto is not installed (etc/tools.sh moto)") };
    let Some(s3s) = S3::s3s(&scratch, "depot") else { skip!("s3s-fs is not built (etc/tools.sh s3s)") };
    let depot = depot(&scratch, &moto, &s3s, "by-attr");
    json(&depot, &["sample", "--key", "release.key", "--size", "5000"]);
    assert_eq!(s3s.keys("depot").len(), 5);
    let shown = json(&depot, &["show", "VIDEOstreamer"]);
    let url = shown["releases"][0]["url"].as_str().unwrap().to_owned();
    assert!(url.starts_with("s3://depot/p/blobs/"), "{url}");
    let promoted =
        json(&depot, &["promote", "os_armv8", "--from", "beta", "--to", "prod", "--key", "release.key"]);
    assert_eq!(promoted["release"]["epoch"], 2);
    json(&depot, &["pause", "os_armv8", "--env", "prod"]);
    json(&depot, &["rollout", "scoreboard", "--env", "prod", "--percent", "20", "--key", "release.key"]);
    assert_eq!(json(&depot, &["verify"])["problems"].as_array().unwrap().len(), 0);
    json(&depot, &["retire", "modemFW", "--env", "prod", "--version", "1.0"]);
    // Nobody can be kept from publishing here: what is young stays.
    assert!(json(&depot, &["gc"])["removed"].as_array().unwrap().is_empty());
    // Damage is found.
    let key = url.trim_start_matches("s3://depot/");
    std::fs::write(s3s.root.join("depot").join(key), b"x").unwrap();
    let verify = with(&depot, &["verify"]).output().unwrap();
    assert_eq!(verify.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&verify.stdout).contains("videoStreamer 0.0.1 (prod, epoch 1)"));
    // The services gone, and the wrong secret.
    let mut wrong = with(&depot, &["promote", "scoreboard", "--from", "prod", "--to", "beta", "--unsigned"]);
    let refused = wrong.env("AWS_SECRET_ACCESS_KEY", "wrong").output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(69), "{said}");
    assert!(said.contains("SignatureDoesNotMatch") && !said.contains("wrong"), "{said}");
}

#[test]
fn depotd_aws_serves_over_dynamodb_and_s3() {
    need!("aws", "curl", "tar");
    let scratch = Scratch::new("depot-aws-serve");
    let Some(moto) = S3::moto(&scratch) else { skip!("moto is not installed (etc/tools.sh moto)") };
    let Some(s3s) = S3::s3s(&scratch, "depot") else { skip!("s3s-fs is not built (etc/tools.sh s3s)") };
    let depot = depot(&scratch, &moto, &s3s, "by-attr");
    json(&depot, &["sample", "--key", "release.key", "--size", "50000"]);
    let (mut daemon, base) = depot.server(&scratch, "serve", "[answers]\nttl-ms = 2000\n");
    daemon.env("AWS_ACCESS_KEY_ID", aws::KEY_ID).env("AWS_SECRET_ACCESS_KEY", aws::SECRET);
    daemon.env("AWS_EC2_METADATA_DISABLED", "true").start_ready();
    let get = |path: &str, more: &[&str]| {
        let mut curl = Command::new("curl");
        let into = scratch.join("fetched");
        curl.args(["-sS", "--max-time", "30", "-w", "%{http_code}", "-o"]).arg(&into).args(more);
        let status = env::run(curl.arg(format!("{base}{path}")));
        (status, std::fs::read(into).unwrap())
    };
    let asked = || moto.process().lines.all().iter().filter(|line| line.contains("\"POST / HTTP")).count();
    let question = "/package?cpuArch=armv8&attrGamer=prod&attrCellular=prod";
    let metadata = format!("{question}&payloadType=metadataOnly");
    // Two attributes of the index, three apps by them, four apps' releases: CDN.md counts on it.
    let before = asked();
    let (status, body) = get(&metadata, &[]);
    let details: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status.as_str(), details.as_object().unwrap().len()), ("200", 4));
    env::wait_for("moto's log", Duration::from_secs(60), || (asked() - before == 9).then_some(()));
    assert_eq!(get(question, &[]).0, "200");
    let files = env::run(Command::new("tar").arg("tzf").arg(scratch.join("fetched")));
    assert_eq!(files.lines().count(), 5, "{files}");

    // Content: one query and one row, whatever the table's size; then it is here, ranges and all.
    let blob = details["scoreboard"]["download"].as_str().unwrap();
    let before = asked();
    let (status, whole) = get(blob, &[]);
    assert_eq!((status.as_str(), whole.len()), ("200", 50_000));
    std::fs::write(scratch.join("blob"), &whole).unwrap();
    let sum = sha256(&scratch.join("blob"));
    assert_eq!(blob, format!("/blob/{sum}"));
    env::wait_for("moto's log", Duration::from_secs(60), || (asked() - before == 2).then_some(()));
    let part = get(blob, &["-H", "Range: bytes=100-199"]);
    assert!(part.0 == "206" && part.1 == whole[100..200]);
    std::fs::remove_file(s3s.root.join("depot/p/blobs").join(&sum)).unwrap();
    assert!(get(blob, &[]).1 == whole, "from the cache on disk");

    // What is published and retired elsewhere is seen when the answer's time is over.
    std::fs::write(depot.root.join("content"), b"newer").unwrap();
    let version = ["--version", "1.0.1", "--env", "prod", "--attr", "gamer", "--key", "release.key"];
    json(&depot, &[&["publish", "content", "--app", "scoreboard"][..], &version].concat());
    let newest = || {
        let details: Value = serde_json::from_slice(&get(&metadata, &[]).1).unwrap();
        (details["scoreboard"]["latestVersion"] == "1.0.1").then_some(())
    };
    env::wait_for("the release to be served", Duration::from_secs(60), newest);
    json(&depot, &["retire", "scoreboard", "--env", "prod", "--version", "1.0.0"]);
    let gone = || (get(blob, &[]).0 == "404").then_some(());
    env::wait_for("retired content to be gone", Duration::from_secs(60), gone);
    daemon.check_log();
    assert!(daemon.term().success());
}

#[test]
#[ignore = "moto serves on threads and checks a condition and writes in two steps, so that one put can overwrite another; for a real table"]
fn depotd_aws_publishers_at_the_same_time() {
    need!("aws");
    let scratch = Scratch::new("depot-aws-race");
    let Some(moto) = S3::moto(&scratch) else { skip!("moto is not installed (etc/tools.sh moto)") };
    env::run(&mut moto.aws(&["s3api", "create-bucket", "--bucket", "depot"]));
    let depot = depot(&scratch, &moto, &moto, "");
    std::fs::write(depot.root.join("content"), b"content").unwrap();
    let mut children = Vec::new();
    for n in 0..6 {
        let version = format!("1.{n}");
        let publish = [
            "publish",
            "content",
            "--app",
            "cam",
            "--version",
            &version,
            "--env",
            "prod",
            "--key",
            "release.key",
        ];
        children.push(with(&depot, &publish).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    }
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let listed = json(&depot, &["list"]);
    let mut epochs: Vec<u64> =
        listed["releases"].as_array().unwrap().iter().map(|r| r["epoch"].as_u64().unwrap()).collect();
    epochs.sort_unstable();
    assert_eq!(epochs, [1, 2, 3, 4, 5, 6]);
    assert_eq!(json(&depot, &["verify"])["problems"].as_array().unwrap().len(), 0);
}

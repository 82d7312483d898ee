//! The DynamoDB catalog against moto.

use e2e::aws::S3 as Server;
use e2e::scratch::Scratch;
use e2e::skip;

use super::*;
use crate::catalog::sqlite::tests::{contract, sample};

fn open(server: &Server, table: &str, index: Option<&str>) -> Dynamo {
    let aws = crate::aws::tests::config();
    let endpoint = server.endpoint();
    let host = endpoint.trim_start_matches("http://").to_owned();
    Dynamo::open(&aws, (endpoint.clone(), host), table.into(), index.map(str::to_owned)).unwrap()
}

/// A table as `CDN.md` describes it.
fn make(catalog: &mut Dynamo) {
    let key = |names: [&str; 2]| json!([{ "AttributeName": names[0], "KeyType": "HASH" }, { "AttributeName": names[1], "KeyType": "RANGE" }]);
    let defined: Vec<Value> = ["app", "env", "deviceAttr"]
        .map(|name| json!({ "AttributeName": name, "AttributeType": "S" }))
        .into();
    let index = json!([{
        "IndexName": "by-attr", "KeySchema": key(["deviceAttr", "env"]), "Projection": { "ProjectionType": "KEYS_ONLY" },
    }]);
    let request = json!({
        "TableName": catalog.table, "KeySchema": key(["app", "env"]), "AttributeDefinitions": defined,
        "GlobalSecondaryIndexes": index, "BillingMode": "PAY_PER_REQUEST",
    });
    catalog.call("CreateTable", &request).unwrap();
}

fn original(catalog: &mut Dynamo, app: &str, env: &str, version: &str, attr: Option<&str>) {
    let mut row = Row::new();
    let url = format!("s3://depot/{app}_{version}");
    let md5 = "900150983cd24fb0d6963f7d28e17f72".to_owned();
    for (name, value) in [("app", app), ("env", env), ("version", version), ("url", &url), ("md5", &md5)] {
        row.insert(name.into(), json!({ "S": value }));
    }
    if let Some(attr) = attr {
        row.insert("deviceAttr".into(), json!({ "S": attr }));
    }
    assert!(catalog.put(row, None).unwrap());
}

#[test]
fn moto_keeps_the_contract() {
    let scratch = Scratch::new("depot-dynamo");
    let Some(server) = Server::moto(&scratch) else { skip!("moto is not installed (etc/tools.sh moto)") };
    for (table, index) in [("indexed", Some("by-attr")), ("scanned", None)] {
        let mut catalog = open(&server, table, index);
        let error = catalog.live("a", "prod").unwrap_err().to_string();
        assert!(error.contains("ResourceNotFoundException") && error.contains("make the table"), "{error}");
        make(&mut catalog);
        contract(&mut catalog);
        assert_eq!(catalog.damage().unwrap(), [""; 0]);
        assert_eq!(catalog.version().unwrap(), None);
        // More than one page.
        for n in 0..40 {
            let mut release = sample("large", "prod", n + 1, &["big"]);
            release.statement = Some("x".repeat(60_000));
            catalog.insert(&release).unwrap();
        }
        assert_eq!(catalog.list(Some("LARGE"), None).unwrap().len(), 40);
        assert_eq!(catalog.live("large", "prod").unwrap().len(), 1);
        assert_eq!(catalog.apps_with("big", "prod").unwrap(), ["large"]);
    }
    assert!(!open(&server, "indexed", Some("other")).damage().unwrap().is_empty());
}

#[test]
fn the_original_s_rows_are_releases_beside_ours() {
    let scratch = Scratch::new("depot-original");
    let Some(server) = Server::moto(&scratch) else { skip!("moto is not installed (etc/tools.sh moto)") };
    for (table, index) in [("indexed", Some("by-attr")), ("scanned", None)] {
        let mut catalog = open(&server, table, index);
        make(&mut catalog);
        original(&mut catalog, "os_armv8", "prod", "1.1.0", None);
        original(&mut catalog, "os_armv8", "beta", "1.2.0", None);
        original(&mut catalog, "videoStreamer", "prod", "0.0.1", Some("gamer"));
        original(&mut catalog, "modemFW", "prod", "1.0", Some("cellular"));
        for spelling in ["videoStreamer", "videostreamer", "VIDEOSTREAMER"] {
            let live = catalog.live(spelling, "prod").unwrap();
            let found: Vec<_> = live.iter().map(|r| (r.app.as_str(), r.version.as_str(), r.sums)).collect();
            assert_eq!(found, [("videoStreamer", "0.0.1", None)], "{spelling}");
        }
        assert_eq!(catalog.live("os_armv8", "beta").unwrap()[0].version, "1.2.0");
        assert_eq!(catalog.apps_with("gamer", "prod").unwrap(), ["videoStreamer"]);
        assert_eq!(catalog.apps_with("gamer", "pro").unwrap(), [""; 0]);
        // Ours is newer; a staged one stands beside the original's.
        let staged = Release { rollout: 10, ..sample("videostreamer", "prod", 1, &["gamer"]) };
        catalog.insert(&staged).unwrap();
        let live = catalog.live("videoStreamer", "prod").unwrap();
        assert_eq!(live.iter().map(|r| r.epoch).collect::<Vec<_>>(), [1, 0]);
        catalog.replace(&staged, &Release { rollout: 100, ..staged.clone() }).unwrap();
        assert_eq!(catalog.live("videoStreamer", "prod").unwrap().len(), 1);
        assert_eq!(catalog.list(Some("videoStreamer"), None).unwrap().len(), 2);
        // One of the original's can be paused, too.
        let modem = catalog.live("modemfw", "prod").unwrap().remove(0);
        catalog.replace(&modem, &Release { state: State::Paused, ..modem.clone() }).unwrap();
        assert!(catalog.live("modemFW", "prod").unwrap().is_empty());
        assert_eq!(catalog.apps_with("cellular", "prod").unwrap(), [""; 0]);
    }
}

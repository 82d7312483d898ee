//! Tests of the configuration: the shortest files, and every kind of mistake.

use super::*;

fn load(text: &str, vars: &[(&str, &str)]) -> Result<Config, String> {
    let path =
        std::env::temp_dir().join(format!("s3put-config-{}-{}", std::process::id(), fastrand::u64(..)));
    std::fs::write(&path, text).unwrap();
    let vars = Vars::new(vars.iter().map(|(k, v)| (*k, (*v).to_owned())));
    let result = Config::load(&path, &vars).map_err(|e| e.to_string());
    std::fs::remove_file(&path).unwrap();
    result
}

const SOURCE: &str = "[source]\ntopics = [\"t/#\"]\n";

#[test]
fn the_shortest_files() {
    let dir = load(&format!("{SOURCE}[target]\nto = \"dir:/tmp\"\n"), &[]).unwrap();
    assert!(dir.objects.sidecar_always && dir.warnings().is_empty());
    assert_eq!(dir.filters[0].topic, "t/#");
    let s3 = load(
        &format!(
            "{SOURCE}share-group = \"g\"\n[target]\nto = \"s3://bkt/a/b/\"\nendpoint = \"http://127.0.0.1:1\"\n"
        ),
        &[],
    );
    let s3 = s3.unwrap();
    assert_eq!((s3.objects.prefix.as_str(), s3.filters[0].topic.as_str()), ("a/b/", "$share/g/t/#"));
    assert!(!s3.objects.sidecar_always && s3.objects.sidecar_overflow);
    let amazon =
        load(&format!("{SOURCE}[target]\nto = \"s3://bkt\"\n"), &[("AWS_REGION", "eu-west-1")]).unwrap();
    let TargetConfig::S3(settings) = amazon.target else { panic!() };
    assert_eq!(settings.bucket.origin(), "https://bkt.s3.eu-west-1.amazonaws.com");
    assert!(
        load("[source]\nmode = \"listen\"\n[target]\nto = \"dir:/tmp\"\n", &[]).unwrap().filters.is_empty()
    );
}

#[test]
fn mistakes_are_named_with_their_place() {
    for (text, parts) in [
        ("[target]\nto = \"ftp://x\"\n", vec![":2:", "target.to", "s3://bucket"]),
        ("[target]\nto = \"dir:x\"\n", vec!["target.to", "absolute"]),
        ("[target]\nto = \"dir:/x\"\nfile-mode = \"9\"\n", vec!["file-mode", "octal"]),
        ("[target]\nto = \"s3://b\"\nregion = \"eu-west-1\"\n", vec!["target.to", "bucket name"]),
        ("[target]\nto = \"s3://bkt/a//b\"\nregion = \"eu-west-1\"\n", vec!["target.to", "empty segment"]),
        ("[target]\nto = \"s3://bkt\"\n", vec!["target.region", "AWS_REGION"]),
        ("[target]\nto = \"s3://bkt\"\nendpoint = \"x\"\n", vec![":3:", "target.endpoint"]),
        ("[target]\nto = \"dir:/x\"\n[object]\nkey = \"x\"\n", vec![":4:", "object.key", "variable"]),
        ("[target]\nto = \"dir:/x\"\n[upload]\nworkers = 0\n", vec![":4:", "upload.workers", "1 to 64"]),
        (
            "[target]\nto = \"dir:/x\"\n[[content-type]]\ntopic = \"x\"\ntype = \"png\"\n",
            vec![":5:", "content-type[0].type"],
        ),
        ("[target]\nto = \"dir:/x\"\n", vec!["source.topics", "at least one"]),
        ("[target]\nto = \"dir:/x\"\n[source]\ntopics = [\"a/#/b\"]\n", vec!["source.topics"]),
        ("[target]\nto = \"dir:/x\"\n[source]\ntopics = [\"a\"]\nqos = 3\n", vec!["source.qos"]),
        ("[target]\nbucket = \"x\"\n", vec!["bucket"]),
        (
            "[target]\nto = \"s3://bkt\"\nregion = \"r\"\n[target.iot]\nendpoint = \"a b\"\n",
            vec!["target.iot.endpoint"],
        ),
    ] {
        let error = load(text, &[]).unwrap_err();
        assert!(parts.iter().all(|part| error.contains(part)), "{text}: {error}");
    }
}

#[test]
fn what_is_hardly_meant_is_warned_of() {
    let warn = |key: &str| {
        load(&format!("{SOURCE}[target]\nto = \"dir:/tmp\"\n[object]\nkey = \"{key}\"\n"), &[])
            .unwrap()
            .warnings()
            .join("\n")
    };
    assert!(warn("{topic}/{received-date}/{id}").contains("two objects"));
    assert!(warn("{topic}/{date}").contains("same key"));
}

//! Tests of the two tables: the shortest files, and every kind of mistake.

use super::*;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    database: DatabaseTable,
    upload: UploadTable,
}

type Checked = Result<(DbConfig, Mode, Option<UploadConfig>), String>;

fn check_with(text: &str, env: &Env) -> Checked {
    let loaded = config::parse::<Raw>(Path::new("x.toml"), text.to_owned()).map_err(|e| e.to_string())?;
    let state = Path::new("/state");
    let database = loaded.raw.database.check(&loaded, state).map_err(|e| e.to_string())?;
    let (mode, upload) = loaded.raw.upload.check(&loaded, state, env).map_err(|e| e.to_string())?;
    Ok((database, mode, upload))
}

fn check(text: &str) -> Checked {
    check_with(text, &Env::default())
}

#[test]
fn an_empty_file_keeps_everything_here() {
    let (database, mode, upload) = check("").unwrap();
    let DbConfig::Sqlite { path, busy } = database;
    assert_eq!((path, busy), ("/state/sorterd.db".into(), Duration::from_secs(10)));
    assert!(mode == Mode::Local && upload.is_none());
    let DbConfig::Sqlite { path, .. } = check("[database]\npath = \"/a/b.db\"\n").unwrap().0;
    assert_eq!(path, Path::new("/a/b.db"));
}

#[test]
fn the_mode_is_the_environments_before_the_files() {
    let text = "[upload]\nmode = \"production\"\nto = \"s3://bkt/a/b/\"\nendpoint = \"http://127.0.0.1:1\"\n";
    let (_, mode, upload) = check(text).unwrap();
    let upload = upload.unwrap();
    assert_eq!((mode, upload.prefix.as_str()), (Mode::Production, "a/b/"));
    assert_eq!(upload.spool.dir, Path::new("/state/uploads"));
    assert!(!upload.target.conditional && upload.target.bucket.name == "bkt");
    let env = |mode: &str| Env { mode: Some(mode.into()), ..Env::default() };
    let (_, mode, upload) = check_with(text, &env("local")).unwrap();
    assert!(mode == Mode::Local && upload.is_none());
    let aws = "[upload]\nto = \"s3://bkt\"\nregion = \"eu-west-1\"\n";
    let (_, mode, upload) = check_with(aws, &env("aws-dev")).unwrap();
    assert_eq!(mode, Mode::AwsDev);
    assert_eq!(upload.unwrap().target.bucket.origin(), "https://bkt.s3.eu-west-1.amazonaws.com");
    let why = check_with(text, &env("prod")).unwrap_err();
    assert!(why.contains("upload.mode") && why.contains("MODE says \"prod\""), "{why}");
}

#[test]
fn mistakes_name_their_key_and_what_was_expected() {
    let aws = "mode = \"aws-dev\"\nendpoint = \"http://127.0.0.1:1\"\n";
    for (text, parts) in [
        ("[database]\npath = \"a.db\"\n", vec!["x.toml:2:", "database.path", "absolute"]),
        ("[database]\npath = \"/\"\n", vec!["database.path", "absolute"]),
        ("[database]\nbusy-timeout-ms = 0\n", vec![":2:", "database.busy-timeout-ms", "1 to 600000"]),
        ("[upload]\nmode = \"cloud\"\n", vec![":2:", "upload.mode", "\"aws-dev\"", "\"cloud\""]),
        ("[upload]\nworkers = 65\n", vec![":2:", "upload.workers", "1 to 64"]),
        ("[upload]\nretry-max-ms = 1\n", vec!["upload.retry-max-ms", "200 to"]),
        ("[upload]\nbucket = \"x\"\n", vec![":2:", "bucket"]),
        ("[upload.spool]\nwindow = 3\n", vec!["upload.spool.window", "upload.workers"]),
        ("[upload.spool]\nsegment-bytes = 5\n", vec![":2:", "upload.spool.segment-bytes"]),
        (&format!("[upload]\n{aws}"), vec!["upload.to", "s3://bucket", "aws-dev"]),
        (&format!("[upload]\n{aws}to = \"dir:/x\"\n"), vec![":4:", "upload.to", "dir:/x"]),
        (&format!("[upload]\n{aws}to = \"s3://b\"\n"), vec!["upload.to", "bucket name"]),
        (&format!("[upload]\n{aws}to = \"s3://bkt/../x\"\n"), vec!["upload.to", ".."]),
        ("[upload]\nmode = \"aws-dev\"\nto = \"s3://bkt\"\n", vec!["upload.region", "AWS_REGION"]),
        (
            "[upload]\nmode = \"aws-dev\"\nto = \"s3://bkt\"\nendpoint = \"ftp://x\"\n",
            vec!["upload.endpoint"],
        ),
        (
            &format!("[upload]\n{aws}to = \"s3://bkt\"\nca-file = \"/none\"\n"),
            vec!["upload.ca-file", "/none"],
        ),
    ] {
        let why = check(text).map(|_| ()).expect_err(text);
        for part in parts {
            assert!(why.contains(part), "{text}: {part} is not in: {why}");
        }
    }
}

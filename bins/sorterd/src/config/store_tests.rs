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
    let database = loaded.raw.database.check(&loaded, state, env).map_err(|e| e.to_string())?;
    let (mode, upload) = loaded.raw.upload.check(&loaded, state, env).map_err(|e| e.to_string())?;
    Ok((database, mode, upload))
}

fn check(text: &str) -> Checked {
    check_with(text, &Env::default())
}

#[test]
fn an_empty_file_keeps_everything_here() {
    let (database, mode, upload) = check("").unwrap();
    let DbConfig::Sqlite { path, busy } = database else { panic!() };
    assert_eq!((path, busy), ("/state/sorterd.db".into(), Duration::from_secs(10)));
    assert!(mode == Mode::Local && upload.is_none());
    let DbConfig::Sqlite { path, .. } = check("[database]\npath = \"/a/b.db\"\n").unwrap().0 else {
        panic!()
    };
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

/// The file with a connection string, removed at the end.
struct ConnFile(PathBuf);

impl ConnFile {
    fn new(text: &str) -> Self {
        let name = format!("sorterd-conn-{}-{}", std::process::id(), fastrand::u64(..));
        let path = std::env::temp_dir().join(name);
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    fn toml(&self, more: &str) -> String {
        format!("[database]\nconn-file = {:?}\n{more}", self.0)
    }
}

impl Drop for ConnFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn postgres_comes_from_the_environment_or_a_file() {
    let file = ConnFile::new("postgresql://u:hunter2@db/d?connect_timeout=3\n");
    let DbConfig::Postgres(from_file) = check(&file.toml("query-timeout-ms = 77\n")).unwrap().0 else {
        panic!()
    };
    assert_eq!(from_file.address.name(), "postgresql://u@db:5432/d");
    assert_eq!(from_file.query_timeout, Duration::from_millis(77));
    assert_eq!(from_file.connect_timeout, Duration::from_secs(3));
    assert!(matches!(from_file.tls, Tls::Prefer(_)));
    assert!(!format!("{from_file:?}").contains("hunter2"));
    let env = |text: &str| Env { pg_conn: Some(Secret::new(text.into())), ..Env::default() };
    let with = |text: &str| check_with(&file.toml("path = \"/x\"\n"), &env(text)).map(|checked| checked.0);
    let DbConfig::Postgres(from_env) = with("postgresql://v:p@[::1]:6/e?sslmode=disable").unwrap() else {
        panic!()
    };
    assert_eq!(from_env.address.name(), "postgresql://v@[::1]:6/e");
    assert!(matches!(from_env.tls, Tls::Off));
    let DbConfig::Postgres(local) = with("postgresql://v@%2Frun/e?sslmode=verify-full").unwrap() else {
        panic!()
    };
    assert!(matches!(local.tls, Tls::Off));
    let DbConfig::Postgres(must) = with("postgresql://v@h/e?sslmode=require").unwrap() else { panic!() };
    assert!(matches!(must.tls, Tls::Require(_)));
    for (wrong, part) in [
        ("postgresql://v:hunter2@h:port/e", "expected a port"),
        ("hunter2", "expected postgresql://"),
        ("postgresql://v:hunter2@h/e?sslmode=verify-full&sslrootcert=/none.pem", "/none.pem"),
    ] {
        let why = with(wrong).unwrap_err();
        assert!(why.contains("PG_CONN") && why.contains(part) && !why.contains("hunter2"), "{why}");
    }
    let both = check(&file.toml("path = \"/x\"\n")).map(|_| ()).unwrap_err();
    assert!(both.contains("database.conn-file") && both.contains("not both"), "{both}");
    let none = check("[database]\nconn-file = \"/none/conn\"\n").map(|_| ()).unwrap_err();
    assert!(none.contains(":2:") && none.contains("/none/conn"), "{none}");
    let bad = check(&ConnFile::new("hunter2\n").toml("")).map(|_| ()).unwrap_err();
    assert!(bad.contains("database.conn-file") && !bad.contains("hunter2"), "{bad}");
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

//! `keygen` and `sample`: what one needs to begin.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use edge::fs::context;
use edge::text::bytes;
use serde_json::json;

use super::args::Given;
use super::context::Context;
use super::output::{Failure, Reply};
use super::publish::{Draft, publish};
use super::seal::How;
use crate::sign::{self, Protection, Signer};

/// Largest content of a sample, in bytes.
const SIZE_MAX: u64 = 1 << 30;

/// `keygen`
///
/// # Errors
/// Code 73: there is such a key.
pub fn keygen(given: &Given) -> Result<Reply, Failure> {
    let name = given.path("--out").unwrap_or_else(|| PathBuf::from("depot"));
    let password = given.path("--password-file");
    let protection = match &password {
        Some(file) => Protection::File(file),
        None if std::io::stdin().is_terminal() && !given.has("--json") => Protection::Terminal,
        None => Protection::None,
    };
    let (public, secret, line) = sign::keygen(&name, &protection)?;
    let protected = !matches!(protection, Protection::None);
    let text = format!(
        "{}: the public key, for public-keys in depotd.toml here and in otad.toml on every device\n{}: the secret key{}; \
         keep it off the server, and a copy of it safe\n",
        public.display(),
        secret.display(),
        if protected { ", protected by its password" } else { " (no password)" },
    );
    Ok(Reply::new(text, json!({ "public": public, "secret": secret, "key": line, "protected": protected })))
}

/// App, version, environment, attribute: what the reference's demo has.
const DEMO: &[(&str, &str, &str, Option<&str>)] = &[
    ("os_armv8", "1.1.0", "prod", None),
    ("os_armv8", "1.2.0-beta.1", "beta", None),
    ("scoreboard", "1.0.0", "prod", Some("gamer")),
    ("videoStreamer", "0.0.1", "prod", Some("gamer")),
    ("modemFW", "1.0", "prod", Some("cellular")),
];

/// `sample`
///
/// # Errors
/// With the exit code for what is wrong.
pub fn sample(given: &Given) -> Result<Reply, Failure> {
    let size = given.number("--size")?.unwrap_or(65_536);
    let seed = given.number::<u64>("--seed")?.unwrap_or(1);
    if size > SIZE_MAX {
        return Err(Failure::usage(format!("--size takes at most {SIZE_MAX} bytes")));
    }
    let how = match given.path("--key") {
        Some(key) => How::Key(Signer::load(&key, given.path("--password-file").as_deref())?),
        None => How::Unsigned,
    };
    let mut context = Context::open(given)?;
    let (mut text, mut all) = (String::new(), Vec::new());
    for (n, (app, version, env, attr)) in DEMO.iter().enumerate() {
        let draft = Draft {
            app: (*app).to_owned(),
            version: (*version).to_owned(),
            env: (*env).to_owned(),
            attrs: attr.iter().map(|a| (*a).to_owned()).collect(),
            rollout: 100,
            floor: false,
            min_epoch: 0,
            expires: None,
            epoch: None,
        };
        let mut file = content(size, seed.wrapping_add((n as u64) << 32))?;
        let reply = publish(&mut context, &how, &draft, &mut file)?;
        text += &reply.text;
        all.push(reply.json);
    }
    text += &format!(
        "each {}; ask for them: curl 'http://SERVER/package?cpuArch=armv8&attrGamer=prod'\n",
        bytes(size)
    );
    Ok(Reply::new(text, json!({ "published": all })))
}

/// A file without a name that looks random.
fn content(size: u64, seed: u64) -> Result<File, Failure> {
    let path: &Path = &std::env::temp_dir().join(format!("depotd-sample-{}", std::process::id()));
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(context("create", path))?;
    std::fs::remove_file(path).map_err(context("remove", path))?;
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut left, mut block) = (size, vec![0; 64 * 1024]);
    while left > 0 {
        let n = left.min(block.len() as u64) as usize;
        rng.fill(&mut block[..n]);
        file.write_all(&block[..n]).map_err(context("write", path))?;
        left -= n as u64;
    }
    Ok(file)
}

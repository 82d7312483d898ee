//! S3 servers of a test's own (s3s-fs, moto) and awscli as the independent reader.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::process::Process;
use crate::scratch::Scratch;
use crate::{env, net};

/// Made up for the test servers; s3s-fs checks signatures made with it.
pub const KEY_ID: &str = "AKIDEXAMPLETEST";
/// The secret to it.
pub const SECRET: &str = "rig-secret-of-no-worth";
/// The region all test servers take.
pub const REGION: &str = "us-east-1";

/// A running S3 server on 127.0.0.1.
pub struct S3 {
    /// Its port.
    pub port: u16,
    /// Where s3s-fs keeps the objects.
    pub root: PathBuf,
    process: Process,
}

impl S3 {
    /// s3s-fs, with one bucket; None when it was not built.
    pub fn s3s(scratch: &Scratch, bucket: &str) -> Option<S3> {
        let binary = env::tool("bin/s3s-fs")?;
        let port = net::free_port();
        let root = scratch.dir("s3");
        scratch.dir(&format!("s3/{bucket}"));
        let mut command = Command::new(binary);
        command.args(["--access-key", KEY_ID, "--secret-key", SECRET, "--host", "127.0.0.1", "--port"]);
        command.arg(port.to_string()).arg(&root).env("RUST_LOG", "error");
        let process = Process::start("s3s-fs", &mut command);
        net::wait_listening(port, "s3s-fs", Duration::from_secs(10));
        Some(S3 { port, root, process })
    }

    /// moto, without any bucket; None when it was not installed.
    pub fn moto(scratch: &Scratch) -> Option<S3> {
        let binary = env::tool("moto/bin/moto_server")?;
        let port = net::free_port();
        let mut command = Command::new(binary);
        command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
        let process = Process::start("moto", &mut command);
        net::wait_listening(port, "moto", Duration::from_secs(60));
        Some(S3 { port, root: scratch.dir("moto"), process })
    }

    /// `http://127.0.0.1:port`
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// An awscli command against it.
    pub fn aws(&self, arguments: &[&str]) -> Command {
        // The distribution's own, not one of some Python environment that may not work.
        let program = if PathBuf::from("/usr/bin/aws").exists() { "/usr/bin/aws" } else { "aws" };
        let mut command = Command::new(program);
        command.args(["--endpoint-url", &self.endpoint(), "--output", "json"]).args(arguments);
        credentials(&mut command);
        command
    }

    /// Keys of all objects in the bucket, sorted.
    pub fn keys(&self, bucket: &str) -> Vec<String> {
        let text = env::run(&mut self.aws(&["s3api", "list-objects-v2", "--bucket", bucket]));
        let value: Value = serde_json::from_str(if text.trim().is_empty() { "{}" } else { &text }).unwrap();
        let contents = value["Contents"].as_array().cloned().unwrap_or_default();
        let mut keys: Vec<String> = contents.iter().map(|o| o["Key"].as_str().unwrap().to_owned()).collect();
        keys.sort();
        keys
    }

    /// HEAD of an object, as awscli prints it.
    pub fn head(&self, bucket: &str, key: &str) -> Value {
        let text = env::run(&mut self.aws(&["s3api", "head-object", "--bucket", bucket, "--key", key]));
        serde_json::from_str(&text).unwrap()
    }

    /// The whole bucket copied into a folder by `aws s3 cp --recursive`.
    pub fn fetch_all(&self, bucket: &str, to: &std::path::Path) {
        let from = format!("s3://{bucket}/");
        env::run(self.aws(&["s3", "cp", "--recursive", "--quiet", &from]).arg(to));
    }
}

/// Sets the test servers' credentials and region for a child, and nothing else of AWS.
pub fn credentials(command: &mut Command) {
    for name in ["AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"] {
        command.env_remove(name);
    }
    command.env("AWS_ACCESS_KEY_ID", KEY_ID).env("AWS_SECRET_ACCESS_KEY", SECRET);
    command.env("AWS_DEFAULT_REGION", REGION).env("AWS_EC2_METADATA_DISABLED", "true").env("AWS_PAGER", "");
}

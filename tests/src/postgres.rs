//! A PostgreSQL server of a test's own, on loopback, in the test's folder.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::process::Process;
use crate::scratch::Scratch;
use crate::{env, net};

/// A running server with the user `sorter`, who needs a password, and the database `sorter`.
pub struct Postgres {
    /// Its port on 127.0.0.1.
    pub port: u16,
    data: PathBuf,
    bins: PathBuf,
    tls: bool,
    process: Option<Process>,
}

/// The password of the user `sorter`.
pub const PASSWORD: &str = "arm-pass";

impl Postgres {
    /// Makes and starts one; None when PostgreSQL is not installed, or may not run (it refuses root).
    pub fn start(scratch: &Scratch) -> Option<Postgres> {
        let bins = bins()?;
        let folder = scratch.dir("postgres");
        if rustix::process::geteuid().is_root() {
            let owned = Command::new("chown").arg("postgres").arg(&folder).status();
            owned.ok().filter(std::process::ExitStatus::success)?;
        }
        let (data, secret) = (folder.join("data"), scratch.write("postgres-password", PASSWORD));
        // Who makes the cluster is not root, and must be able to read it.
        env::run(Command::new("chmod").arg("644").arg(&secret));
        let mut init = confined(&bins.join("initdb"));
        init.args(["-N", "-U", "sorter", "-A", "scram-sha-256", "-E", "UTF8", "--locale=C"]);
        env::run(init.arg("--pwfile").arg(&secret).arg("-D").arg(&data));
        let mut postgres = Postgres { port: net::free_port(), data, bins, tls: false, process: None };
        postgres.resume();
        postgres.sql_in("postgres", "CREATE DATABASE sorter");
        Some(postgres)
    }

    /// Starts it (again).
    pub fn resume(&mut self) {
        let mut server = confined(&self.bins.join("postgres"));
        server.arg("-D").arg(&self.data).args(["-h", "127.0.0.1", "-p", &self.port.to_string(), "-k"]);
        server.arg(self.socket_folder()).args(["-c", "fsync=off", "-c", "shared_buffers=16MB"]);
        server.args(["-c", if self.tls { "ssl=on" } else { "ssl=off" }]);
        self.process = Some(Process::start("postgres", &mut server));
        env::wait_for("PostgreSQL", Duration::from_secs(30), || {
            let up = self.psql("postgres", "SELECT 1").output().ok()?;
            up.status.success().then_some(())
        });
    }

    /// Ends it as a power cut would its clients: they are all cut off.
    pub fn stop(&mut self) {
        // INT is PostgreSQL's fast shutdown.
        self.end(rustix::process::Signal::INT);
    }

    /// Ends it as a crash would: nothing is written out, the next start recovers.
    pub fn crash(&mut self) {
        self.end(rustix::process::Signal::QUIT);
    }

    /// Has TLS from the next start on, with this certificate chain and key (PEM).
    pub fn set_tls(&mut self, chain: &str, key: &str) {
        for (name, pem) in [("server.crt", chain), ("server.key", key)] {
            let path = self.data.join(name);
            std::fs::write(&path, pem).unwrap();
            env::run(Command::new("chmod").arg("600").arg(&path));
            if rustix::process::geteuid().is_root() {
                env::run(Command::new("chown").arg("postgres").arg(&path));
            }
        }
        self.tls = true;
    }

    /// From now on this user logs in by this method (of `pg_hba.conf`) from this machine.
    pub fn set_login(&self, user: &str, method: &str) {
        let path = self.data.join("pg_hba.conf");
        let rest = std::fs::read_to_string(&path).unwrap();
        let rest: String = rest.lines().filter(|l| !l.contains(user)).map(|l| format!("{l}\n")).collect();
        std::fs::write(
            &path,
            format!("host all {user} 127.0.0.1/32 {method}\nhost all {user} ::1/128 {method}\n{rest}"),
        )
        .unwrap();
        // The reload is a signal: the next session may still see the old file.
        let before = self.sql("SELECT pg_conf_load_time()");
        self.sql("SELECT pg_reload_conf()");
        env::wait_for("the reload", Duration::from_secs(30), || {
            (self.sql("SELECT pg_conf_load_time()") != before).then_some(())
        });
    }

    fn end(&mut self, signal: rustix::process::Signal) {
        if let Some(process) = self.process.take() {
            // Root's child is one further down.
            let pid = std::fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
            let pid = pid.lines().next().and_then(|pid| pid.parse().ok());
            if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(pid, signal);
            }
            let mut process = process;
            process.wait_exit(Duration::from_secs(20));
        }
    }

    /// The folder of its Unix socket.
    pub fn socket_folder(&self) -> &Path {
        self.data.parent().unwrap_or(&self.data)
    }

    /// As in `PG_CONN`.
    pub fn address(&self) -> String {
        format!("postgresql://sorter:{PASSWORD}@127.0.0.1:{}/sorter", self.port)
    }

    /// What psql prints for a query on the database `sorter`.
    pub fn sql(&self, query: &str) -> String {
        self.sql_in("sorter", query)
    }

    /// The same for another database.
    pub fn sql_in(&self, database: &str, query: &str) -> String {
        env::run(&mut self.psql(database, query)).trim().to_owned()
    }

    fn psql(&self, database: &str, query: &str) -> Command {
        let mut command = Command::new(self.bins.join("psql"));
        command.args([
            "-h",
            "127.0.0.1",
            "-p",
            &self.port.to_string(),
            "-U",
            "sorter",
            "-d",
            database,
            "-X",
            "-A",
            "-t",
        ]);
        command.args(["-c", query]).env("PGPASSWORD", PASSWORD);
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A certificate authority, and the chain and key of a server of this name that it vouches for (PEM).
pub fn certificates(name: &str) -> (String, String, String) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let ca_key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&ca_key).unwrap().pem();
    let key = KeyPair::generate().unwrap();
    let issuer = Issuer::new(params, ca_key);
    let chain = CertificateParams::new(vec![name.into()]).unwrap().signed_by(&key, &issuer).unwrap().pem();
    (ca, chain, key.serialize_pem())
}

/// A command that runs as the user `postgres` where we are root.
fn confined(program: &Path) -> Command {
    if !rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    command
}

/// The newest installed server's programs; Debian keeps them off the PATH.
fn bins() -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path().join("bin"))
        .collect();
    found.sort();
    let debian = found.into_iter().rev().find(|bins| bins.join("initdb").exists());
    debian.or_else(|| env::which("initdb")?.parent().map(Path::to_path_buf))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_goes_and_comes_back_with_what_it_knew() {
        let scratch = Scratch::new("pg");
        let Some(mut postgres) = Postgres::start(&scratch) else {
            crate::skip!("PostgreSQL is not installed")
        };
        postgres.sql("CREATE TABLE t AS SELECT 42 AS n");
        postgres.stop();
        assert!(!postgres.psql("sorter", "SELECT n FROM t").output().unwrap().status.success());
        postgres.resume();
        assert_eq!(postgres.sql("SELECT n FROM t"), "42");
    }
}

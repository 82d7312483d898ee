//! An nginx of our own: files below a scratch folder, a free port, no log.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use e2e::process::{Process, Usage};
use e2e::scratch::Scratch;
use e2e::{env, net};

/// Running.
pub struct Nginx {
    /// `http://127.0.0.1:port`.
    pub base: String,
    www: PathBuf,
    process: Process,
}

impl Nginx {
    /// Starts it and waits until it answers.
    pub fn start(scratch: &Scratch) -> Nginx {
        let (dir, port) = (scratch.dir("nginx"), net::free_port());
        let at = dir.display();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("    {name}_temp_path {at}/{name};\n"))
            .concat();
        let config = format!(
            "daemon off;\nworker_processes 1;\npid {at}/pid;\nerror_log stderr warn;\n\
             events {{ worker_connections 1024; }}\n\
             http {{\n    access_log off;\n    sendfile on;\n    tcp_nopush on;\n    keepalive_requests 100000000;\n\
             \x20   open_file_cache max=64 inactive=300s;\n    types {{ application/json json; application/x-gzip gz; }}\n\
             \x20   default_type application/octet-stream;\n{temporary}\
             \x20   server {{ listen 127.0.0.1:{port}; root {at}/www; add_header Cache-Control max-age=100; }}\n}}\n"
        );
        let www = scratch.dir("nginx/www");
        let config = scratch.write("nginx/nginx.conf", config);
        let program = env::which("nginx").unwrap();
        let mut command = Command::new(program);
        command.arg("-p").arg(&dir).arg("-c").arg(config);
        let process = Process::start("nginx", &mut command);
        let up = || std::net::TcpStream::connect(net::local(port)).ok();
        env::wait_for("nginx to listen", Duration::from_secs(10), up);
        Nginx { base: format!("http://127.0.0.1:{port}"), www, process }
    }

    /// A file to serve.
    pub fn put(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.www.join(name), bytes).unwrap();
    }

    /// Of its worker; the master only waits.
    pub fn usage(&self) -> Usage {
        let pid = self.process.pid();
        let children =
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let worker = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
        Usage::of(worker.unwrap_or(pid))
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its master ends the worker; killed at once it would leave it behind.
        self.process.term(Duration::from_secs(10));
    }
}

//! Configurations of the daemons for tests: quick reconnects, everything below `{dir}` (which
//! [`crate::daemon::Daemon::new`] replaces by the daemon's own folder).

/// One end of a relay: a broker to connect to, or a port to listen on.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// `mode = "subscribe"`: a broker on this port.
    Broker(u16),
    /// `mode = "listen"`: publishers come to this port.
    Listen(u16),
}

/// Attempts follow each other quickly: a test has no two minutes to wait.
const QUICK: &str =
    "reconnect-min-ms = 10\nreconnect-max-ms = 200\nconnect-timeout-ms = 3000\nconnack-timeout-ms = 3000\n";

/// The keys of a broker's table.
pub fn broker(port: u16, client_id: &str) -> String {
    format!("host = \"127.0.0.1\"\nport = {port}\nclient-id = \"{client_id}\"\n{QUICK}")
}

/// The table `name` for one end, with more keys for a broker.
fn end(name: &str, end: End, client_id: &str, more: &str) -> String {
    match end {
        End::Broker(port) => format!("[{name}]\nmode = \"subscribe\"\n{}{more}\n", broker(port, client_id)),
        End::Listen(port) => {
            format!("[{name}]\nmode = \"listen\"\n[{name}.listen]\naddress = \"127.0.0.1:{port}\"\n\n")
        }
    }
}

/// What every daemon has.
pub const COMMON: &str =
    "state-dir = \"{dir}/state\"\nctl-socket = \"{dir}/ctl.sock\"\ndevice-file = \"{dir}/device.toml\"\n\n";

/// `mqfwd` from one end to a broker.
#[derive(Clone, Debug)]
pub struct Mqfwd {
    /// Where it receives.
    pub local: End,
    /// Port of the broker it sends to.
    pub cloud: u16,
    /// QoS of its one route, `t/#` -> `up/…`.
    pub qos: u8,
    /// `"5"` or `"3.1.1"` for both ends.
    pub version: &'static str,
    /// More tables, such as `[spool]`.
    pub more: String,
}

impl Mqfwd {
    /// MQTT 5, no more tables.
    pub fn new(local: End, cloud: u16, qos: u8) -> Mqfwd {
        Mqfwd { local, cloud, qos, version: "5", more: String::new() }
    }

    /// The text of its file.
    pub fn toml(&self) -> String {
        let version = format!("version = \"{}\"\n", self.version);
        let local = end("local", self.local, "rig-down", &version);
        let cloud = broker(self.cloud, "rig-up");
        format!(
            "{COMMON}{local}\n[cloud]\n{cloud}{version}\n[[route]]\nfrom = \"t/#\"\nto = \"up/{{tail}}\"\nqos = {}\n\n{}",
            self.qos, self.more
        )
    }
}

/// `s3put` from one end into a target.
#[derive(Clone, Debug)]
pub struct S3put {
    /// Where it receives.
    pub source: End,
    /// QoS it subscribes with.
    pub qos: u8,
    /// Topic filter.
    pub topic: String,
    /// `dir:/…` or `s3://…`
    pub to: String,
    /// More keys of `[target]`.
    pub target: String,
    /// More tables.
    pub more: String,
}

impl S3put {
    /// Into a folder.
    pub fn to_dir(source: End, dir: &std::path::Path) -> S3put {
        let to = format!("dir:{}", dir.display());
        S3put { source, qos: 2, topic: "t/#".into(), to, target: String::new(), more: String::new() }
    }

    /// Into a bucket of a test server.
    pub fn to_s3(source: End, bucket: &str, endpoint: &str) -> S3put {
        let target =
            format!("endpoint = \"{endpoint}\"\nregion = \"{}\"\npath-style = true\n", crate::aws::REGION);
        let to = format!("s3://{bucket}");
        S3put { source, qos: 2, topic: "t/#".into(), to, target, more: String::new() }
    }

    /// The text of its file.
    pub fn toml(&self) -> String {
        let topics = format!("topics = [\"{}\"]\nqos = {}\n", self.topic, self.qos);
        let source = end("source", self.source, "rig-s3put", &topics);
        format!("{COMMON}{source}\n[target]\nto = \"{}\"\n{}\n{}", self.to, self.target, self.more)
    }
}

/// `faced` publishing to a broker (or an ingest port): its cameras as (name, source, more keys). `top` holds
/// more keys of the top level, `tables` more tables.
pub fn faced(port: u16, cameras: &[(&str, &str, &str)], top: &str, tables: &str) -> String {
    let mut text = format!(
        "ctl-socket = \"{{dir}}/ctl.sock\"\ndevice-file = \"{{dir}}/device.toml\"\ncache-dir = \"{{dir}}/cache\"\n{top}\n\
         [mqtt]\n{}\n{tables}\n",
        broker(port, "rig-faced")
    );
    for (name, source, keys) in cameras {
        text += &format!("[[camera]]\nname = \"{name}\"\nsource = \"{source}\"\n{keys}\n");
    }
    text
}

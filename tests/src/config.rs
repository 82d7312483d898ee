//! Configurations of the daemons for tests: quick reconnects, small segments, everything below `{dir}`
//! (which [`crate::daemon::Daemon::new`] replaces by the daemon's own folder).

/// One end of a relay: a broker to connect to, or a port to listen on.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// `mode = "subscribe"`: a broker on this port.
    Broker(u16),
    /// `mode = "listen"`: publishers come to this port.
    Listen(u16),
}

impl End {
    fn toml(self, client_id: &str) -> String {
        match self {
            End::Broker(port) => format!(
                "mode = \"subscribe\"\nhost = \"127.0.0.1\"\nport = {port}\nclient-id = \"{client_id}\"\nkeep-alive-s = 30\n"
            ),
            End::Listen(port) => format!("mode = \"listen\"\nlisten = \"127.0.0.1:{port}\"\n"),
        }
    }
}

/// `mqfwd` from one end to a broker, with one route `t/#` -> `up/…`; `more` is added at the end.
pub fn mqfwd(local: End, cloud_port: u16, qos: u8, more: &str) -> String {
    format!(
        "state-dir = \"{{dir}}/state\"\nctl-socket = \"{{dir}}/ctl.sock\"\ndevice-file = \"\"\n\n\
         [local]\n{}\n\
         [cloud]\nhost = \"127.0.0.1\"\nport = {cloud_port}\nclient-id = \"rig-up\"\nkeep-alive-s = 30\n\n\
         [[route]]\nfrom = \"t/#\"\nto = \"up/#\"\nqos = {qos}\n\n\
         [reconnect]\nmin-ms = 20\nmax-ms = 300\n\n{more}",
        local.toml("rig-down")
    )
}

/// `s3put` from one end into a target (`dir:/…` or `s3://…`); `target` holds more keys of that table.
pub fn s3put(source: End, to: &str, target: &str, more: &str) -> String {
    let topics = match source {
        End::Broker(_) => "topics = [\"t/#\"]\nqos = 2\n",
        End::Listen(_) => "",
    };
    format!(
        "state-dir = \"{{dir}}/state\"\nctl-socket = \"{{dir}}/ctl.sock\"\ndevice-file = \"\"\n\n\
         [source]\n{}{topics}\n\
         [target]\nto = \"{to}\"\n{target}\n\
         [reconnect]\nmin-ms = 20\nmax-ms = 300\n\n{more}",
        source.toml("rig-s3put")
    )
}

//! A mosquitto of a test's own. Its queues are unbounded (the default keeps 1000 messages and drops the
//! rest in silence), so that whatever gets lost was lost by the daemon under test.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use crate::process::Process;
use crate::scratch::Scratch;
use crate::{env, net};

/// A running mosquitto on 127.0.0.1.
pub struct Broker {
    /// Its port.
    pub port: u16,
    config: PathBuf,
    process: Option<Process>,
}

impl Broker {
    /// Starts one with the rig's settings, on a free port.
    pub fn start(scratch: &Scratch, name: &str) -> Broker {
        Broker::start_with(scratch, name, net::free_port(), "max_queued_messages 0\n")
    }

    /// Starts one on a given port, with these lines of configuration added.
    pub fn start_with(scratch: &Scratch, name: &str, port: u16, more: &str) -> Broker {
        let state = scratch.dir(&format!("{name}.state"));
        // Started by root it becomes the user it finds here, which could not write the folder.
        let text = format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\nuser root\nlog_dest stderr\n\
             log_type error\nlog_type warning\nlog_type notice\npersistence true\npersistence_location {}/\n{more}",
            state.display()
        );
        // EDGE_TRACE=1 keeps every packet it saw in a file beside its configuration.
        let traced =
            format!("log_dest file {}\nlog_type all\n", scratch.join(&format!("{name}.log")).display());
        let text = if std::env::var_os("EDGE_TRACE").is_some() { text + &traced } else { text };
        let config = scratch.write(&format!("{name}.conf"), text);
        let mut broker = Broker { port, config, process: None };
        broker.restart();
        broker
    }

    /// Ends it (SIGTERM: it writes its database) and starts it again on the same port.
    pub fn restart(&mut self) {
        self.stop();
        let mosquitto = env::which("mosquitto").expect("mosquitto is installed (make deps)");
        let mut command = Command::new(mosquitto);
        command.arg("-c").arg(&self.config);
        self.process = Some(Process::start(&format!("mosquitto:{}", self.port), &mut command));
        net::wait_listening(self.port, "mosquitto", Duration::from_secs(10));
    }

    /// Ends it with SIGTERM.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.term(Duration::from_secs(10));
        }
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        self.process.as_ref().expect("the broker is running")
    }
}

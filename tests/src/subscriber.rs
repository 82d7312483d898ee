//! The independent receiver: `mosquitto_sub` with a persistent session, each message as one JSON line.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{env, publisher};

/// One message as it arrived.
#[derive(Clone, Debug)]
pub struct Got {
    /// Topic it arrived on.
    pub topic: String,
    /// QoS it arrived with.
    pub qos: u64,
    /// Its bytes; text only (what mosquitto_sub prints as JSON).
    pub payload: String,
    /// MQTT 5 content type.
    pub content_type: Option<String>,
    /// MQTT 5 user properties (of several with one name, the last).
    pub user: BTreeMap<String, String>,
    /// Message expiry left, s.
    pub expiry_s: Option<u64>,
    /// When.
    pub at: Instant,
}

/// A running subscriber.
pub struct Subscriber {
    child: Child,
    got: Arc<Mutex<Vec<Got>>>,
}

impl Subscriber {
    /// Subscribes at QoS 2 and returns when the subscription is in force.
    pub fn start(port: u16, filter: &str, id: &str) -> Subscriber {
        let port = port.to_string();
        // Debian's 2.0.11 loses count with its default Receive Maximum of 20 and hangs up on itself.
        let receive = ["-D", "connect", "receive-maximum", "65535"];
        let base = [
            "-h",
            "127.0.0.1",
            "-p",
            &port,
            "-V",
            "5",
            "-q",
            "2",
            "-c",
            "-i",
            id,
            "-x",
            "86400",
            "-t",
            filter,
        ];
        // -E ends after SUBACK; the session it leaves keeps what arrives until the real one is there.
        env::run(Command::new("mosquitto_sub").args(base).args(receive).arg("-E"));
        let mut command = Command::new("mosquitto_sub");
        command
            .args(base)
            .args(receive)
            .args(["-F", "%j"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = command.spawn().expect("mosquitto_sub is installed (make deps)");
        let lines = BufReader::new(child.stdout.take().unwrap());
        let got = Arc::new(Mutex::new(Vec::new()));
        let shared = got.clone();
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                let value: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
                shared.lock().unwrap().push(parse(&value));
            }
        });
        Subscriber { child, got }
    }

    /// How many messages have arrived.
    pub fn count(&self) -> usize {
        self.got.lock().unwrap().len()
    }

    /// What has arrived, in order.
    pub fn got(&self) -> Vec<Got> {
        self.got.lock().unwrap().clone()
    }

    /// Waits until `n` different numbered messages have arrived; returns everything. On time-out it
    /// returns what there is: the account then says what is missing.
    pub fn wait_distinct(&self, n: usize, timeout: Duration) -> Vec<Got> {
        let start = Instant::now();
        let mut seen = HashSet::new();
        let mut looked_at = 0;
        while start.elapsed() < timeout {
            {
                let got = self.got.lock().unwrap();
                seen.extend(got[looked_at..].iter().filter_map(|g| g.payload.get(..12).map(str::to_owned)));
                looked_at = got.len();
            }
            if seen.len() >= n {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.got()
    }
}

impl Drop for Subscriber {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parse(value: &Value) -> Got {
    let text = |v: &Value| v.as_str().map(str::to_owned);
    let properties = &value["properties"];
    let user = properties["user-properties"].as_object().into_iter().flatten();
    Got {
        topic: text(&value["topic"]).unwrap_or_default(),
        qos: value["qos"].as_u64().unwrap_or(0),
        payload: text(&value["payload"]).unwrap_or_default(),
        content_type: text(&properties["content-type"]),
        user: user.map(|(k, v)| (k.clone(), text(v).unwrap_or_default())).collect(),
        expiry_s: properties["message-expiry-interval"].as_u64(),
        at: Instant::now(),
    }
}

/// Second arrivals that follow each other, as lines such as "5 from n=17 at 1003 (seq 40); first at 800 (seq 40)".
/// The same `seq` twice was sent twice by mqfwd; another one was received twice by it.
fn runs_of_duplicates(got: &[Got]) -> Vec<String> {
    let seq = |g: &Got| g.user.get("seq").cloned().unwrap_or_default();
    let mut first: HashMap<u64, usize> = HashMap::new();
    let mut runs: Vec<(usize, usize, u64, usize)> = Vec::new();
    for (at, message) in got.iter().enumerate() {
        let Some(n) = publisher::number(message.payload.as_bytes()) else { continue };
        let Some(before) = first.get(&n).copied() else {
            first.insert(n, at);
            continue;
        };
        match runs.last_mut() {
            Some((start, length, ..)) if *start + *length == at => *length += 1,
            _ => runs.push((at, 1, n, before)),
        }
    }
    let line = |(at, length, n, before): &(usize, usize, u64, usize)| {
        let (again, first) = (seq(&got[*at]), seq(&got[*before]));
        format!("{length} from n={n} at {at} (seq {again}); first at {before} (seq {first})")
    };
    runs.iter().map(line).collect()
}

/// The reckoning over numbered messages (see [`publisher::payload`]).
#[derive(Debug, Default)]
pub struct Account {
    /// Acknowledged to the publisher, never arrived.
    pub lost: Vec<u64>,
    /// Arrived more than once: number -> times.
    pub duplicates: BTreeMap<u64, usize>,
    /// For people: the runs of duplicates, with the positions at which they arrived and mqfwd's own `seq`.
    pub runs: Vec<String>,
    /// Arrived for the first time after a later one of the same topic.
    pub out_of_order: Vec<u64>,
    /// Arrived with bytes that nobody sent.
    pub damaged: usize,
    /// Different messages that arrived.
    pub distinct: usize,
}

impl Account {
    /// Compares what was acknowledged with what arrived.
    pub fn of(acked: &[u64], got: &[Got]) -> Account {
        let mut account = Account::default();
        let mut times: HashMap<u64, usize> = HashMap::new();
        let mut highest: HashMap<&str, u64> = HashMap::new();
        for message in got {
            let Some(n) = publisher::number(message.payload.as_bytes()) else {
                account.damaged += 1;
                continue;
            };
            let seen = times.entry(n).or_default();
            *seen += 1;
            if *seen == 1 {
                let highest = highest.entry(&message.topic).or_insert(n);
                if n < *highest {
                    account.out_of_order.push(n);
                }
                *highest = n.max(*highest);
            }
        }
        account.runs = runs_of_duplicates(got);
        account.distinct = times.len();
        account.lost = acked.iter().copied().filter(|n| !times.contains_key(n)).collect();
        account.duplicates = times.into_iter().filter(|(_, times)| *times > 1).collect();
        account
    }

    /// Nothing lost, nothing damaged, order kept; `once`: and nothing twice.
    pub fn check(&self, once: bool) {
        let lost = self.lost.len();
        assert!(
            lost == 0,
            "{lost} acknowledged messages never arrived, first {:?}",
            &self.lost[..lost.min(10)]
        );
        assert_eq!(self.damaged, 0, "messages arrived with bytes nobody sent");
        let wrong = self.out_of_order.len();
        assert!(
            wrong == 0,
            "{wrong} first arrivals out of order, first {:?}",
            &self.out_of_order[..wrong.min(10)]
        );
        if once {
            let twice = self.duplicates.len();
            assert!(twice == 0, "{twice} QoS 2 messages arrived twice:\n{}", self.runs.join("\n"));
        }
    }
}

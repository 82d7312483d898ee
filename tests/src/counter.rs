//! A subscriber that only counts (QoS 0, no acknowledgements to send), so that measuring costs little.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::mqtt::{self, Incoming, Version};

/// Counts what arrives on a filter.
pub struct Counter {
    count: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

impl Counter {
    /// Subscribes; returns when the subscription stands.
    pub fn start(port: u16, filter: &str) -> Counter {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the broker accepts");
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream.write_all(&mqtt::connect(Version::V5, "counter", true, None)).unwrap();
        stream.write_all(&mqtt::subscribe(Version::V5, 1, filter, 0)).unwrap();
        let mut input = Vec::new();
        let mut buffer = vec![0; 256 * 1024];
        let mut ready = false;
        while !ready {
            let n = stream.read(&mut buffer).expect("the broker answers");
            input.extend_from_slice(&buffer[..n]);
            while let Some(packet) = mqtt::take(&mut input) {
                ready |= matches!(packet, Incoming::Suback(_));
            }
        }
        let count = Arc::new(AtomicU64::new(0));
        let stop = Arc::new(AtomicBool::new(false));
        let counter = Counter { count: count.clone(), stop: stop.clone() };
        std::thread::spawn(move || {
            stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            while !stop.load(Ordering::Relaxed) {
                match stream.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(n) => input.extend_from_slice(&buffer[..n]),
                    Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                        let _ = stream.write_all(&mqtt::pingreq());
                    }
                    Err(_) => return,
                }
                let (arrived, used) = whole_publishes(&input);
                input.drain(..used);
                count.fetch_add(arrived, Ordering::Relaxed);
            }
        });
        counter
    }

    /// How many have arrived.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// How many whole PUBLISH packets the buffer begins with (others are stepped over), and their bytes.
fn whole_publishes(buffer: &[u8]) -> (u64, usize) {
    let (mut count, mut at) = (0, 0);
    while let Some((length, header)) = mqtt::frame(&buffer[at..]) {
        if buffer.len() - at < header + length {
            break;
        }
        count += u64::from(buffer[at] >> 4 == 3);
        at += header + length;
    }
    (count, at)
}

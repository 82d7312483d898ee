//! The same application with other things behind it: `gst-launch-1.0` fed by a pipe and by shared memory, OpenCV's
//! VideoWriter.

use std::process::Command;
use std::time::Duration;

use e2e::env::{self, root};
use e2e::net::free_port;
use e2e::process::{Process, Usage};
use e2e::scratch::Scratch;
use e2e::spyglass::{app, python, registry, report, viewer};
use serde_json::Value;

use super::{FPS, SETTLE, SIZE, VIEW_S, WATCH, cpu_per_frame};

/// Frames to units with the settings that the daemon has.
const ENCODE: &str = "videoconvert ! x264enc tune=zerolatency speed-preset=superfast bframes=0 key-int-max=60 \
                      bitrate=2765 ! h264parse config-interval=-1";
/// Those of the library that spyglassd replaces.
const REFERENCE: &str = "appsrc ! videoconvert ! video/x-raw,format=I420 ! x264enc bframes=0 key-int-max=45 bitrate=500 ! \
                         video/x-h264,stream-format=avc,alignment=au,profile=baseline ! fakesink sync=false";
const LAUNCH: &str = "gst-launch-1.0";

/// One of them.
pub struct Peer {
    /// Of the encoding, in ms a frame.
    pub cpu: f64,
    /// Of the process that encodes; none where that is the application.
    pub usage: Option<Usage>,
    /// What the application says of the call that hands over a frame.
    pub call: Value,
}

/// The frames through a pipe.
pub fn pipe() -> Result<Peer, String> {
    let shell = piped(&format!("{ENCODE} ! fakesink sync=false"), seconds());
    let launched = launched(&shell);
    std::thread::sleep(SETTLE);
    let (cpu, usage) = (cpu_per_frame(launched), Usage::of(launched));
    Ok(Peer { cpu, usage: Some(usage), call: report(shell, Duration::from_secs(30)) })
}

/// The frames through shmsink and shmsrc; only the process that encodes is counted.
pub fn shared_memory() -> Result<Peer, String> {
    let scratch = Scratch::new("bshm");
    let socket = scratch.path().join("shm");
    let place = socket.display();
    // Room for as many frames as a ring of spyglassd has.
    let room = frame_bytes() * 5;
    let mut feeder = piped(&format!("shmsink socket-path={place} shm-size={room} sync=false"), seconds() + 1);
    env::wait_for("shmsink to listen", Duration::from_secs(10), || socket.exists().then_some(()));
    let text = format!(
        "shmsrc socket-path={place} is-live=true do-timestamp=true ! \
         video/x-raw,format=BGR,width={},height={},framerate={FPS}/1 ! {ENCODE} ! fakesink sync=false",
        SIZE.0, SIZE.1
    );
    let mut command = Command::new(LAUNCH);
    command.arg("-q").args(text.split_whitespace()).env("GST_REGISTRY", registry());
    let launched = Process::start(LAUNCH, &mut command);
    std::thread::sleep(SETTLE);
    let (cpu, usage) = (cpu_per_frame(launched.pid()), launched.usage());
    // The call is a write to shmsink's pipe, which no application would make: it is left out.
    feeder.wait_exit(Duration::from_secs(30));
    Ok(Peer { cpu, usage: Some(usage), call: Value::Null })
}

/// OpenCV's VideoWriter in the application.
pub fn video_writer() -> Result<Peer, String> {
    let ask =
        "import cv2; print(next(l for l in cv2.getBuildInformation().splitlines() if 'GStreamer' in l))";
    let said = Command::new(python().unwrap_or("python3")).args(["-c", ask]).output();
    let said = said.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    if !said.contains("YES") {
        return Err("no cv2 with GStreamer (apt install python3-opencv)".to_owned());
    }
    let mut command = app(&format!("cv:{REFERENCE}"), "-", SIZE, FPS, seconds());
    let mut writer = Process::start("VideoWriter", &mut command);
    let begun = std::time::Instant::now();
    let mut usage = Usage::default();
    while writer.exited().is_none() && begun.elapsed() < Duration::from_secs(30) {
        usage = Some(writer.usage()).filter(|u| u.rss_kb > 0).unwrap_or(usage);
        std::thread::sleep(Duration::from_millis(200));
    }
    let call = report(writer, Duration::from_secs(1));
    let cpu = call["others_cpu_ms"].as_f64().ok_or("it reports no CPU time")?;
    Ok(Peer { cpu, usage: Some(usage), call })
}

/// What a viewer sees of RTP that `gst-launch-1.0` sends.
pub fn delay() -> Value {
    let port = free_port();
    let viewer = viewer("gst", "rtp", &port.to_string(), 2 + VIEW_S);
    std::thread::sleep(Duration::from_secs(1));
    let mut sender =
        piped(&format!("{ENCODE} ! rtph264pay ! udpsink host=127.0.0.1 port={port} sync=false"), VIEW_S);
    let seen = report(viewer, Duration::from_secs(30));
    sender.wait_exit(Duration::from_secs(30));
    seen
}

/// The application into a pipe into `gst-launch-1.0`.
fn piped(rest: &str, seconds: u32) -> Process {
    let (width, height) = SIZE;
    let script = format!(
        "{} '{}' - - {width} {height} {FPS} {seconds} | exec {LAUNCH} -q fdsrc fd=0 blocksize={} ! rawvideoparse format=bgr \
         width={width} height={height} framerate={FPS}/1 ! {rest}",
        python().unwrap_or("python3"),
        root().join("tests/spyglass_app.py").display(),
        frame_bytes()
    );
    let mut command = Command::new("bash");
    command.args(["-c", &script]).env("GST_REGISTRY", registry());
    Process::start(LAUNCH, &mut command)
}

/// The process id of the `gst-launch-1.0` that a shell has started.
fn launched(shell: &Process) -> u32 {
    env::wait_for("gst-launch-1.0 to run", Duration::from_secs(10), || {
        let pid = shell.pid();
        let children =
            std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        children.split_whitespace().filter_map(|c| c.parse::<u32>().ok()).find(|c| {
            let name = std::fs::read_to_string(format!("/proc/{c}/comm")).unwrap_or_default();
            name.starts_with("gst-launch")
        })
    })
}

/// How long an application runs that is watched.
fn seconds() -> u32 {
    (SETTLE + WATCH).as_secs() as u32 + 1
}

fn frame_bytes() -> u32 {
    SIZE.0 * SIZE.1 * 3
}

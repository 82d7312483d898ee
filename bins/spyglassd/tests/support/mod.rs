//! What the tests of the outputs share: real encoded units, a scratch folder, and whether a tool is there.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use spyglassd::h264;
use spyglassd::unit::Unit;

/// A folder of its own, removed at the end.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("spyglassd-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether all these commands exist; says which test is skipped where one doesn't.
pub fn have(test: &str, commands: &[&str]) -> bool {
    let there = |command: &&&str| {
        std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join(command).is_file()))
    };
    match commands.iter().find(|command| !there(command)) {
        Some(missing) => {
            eprintln!("skipped: {test}: {missing} is not installed");
            false
        }
        None => true,
    }
}

/// Runs it; what it printed, or a panic with what it complained of.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// `frames` pictures of a moving test pattern by x264 as the daemon sets it, a key frame every `gop`, 25 a second from
/// `wall_ms` on.
pub fn encode(
    folder: &Path,
    (width, height): (u32, u32),
    frames: usize,
    gop: u32,
    wall_ms: u64,
) -> Vec<Unit> {
    let path = folder.join(format!("{width}x{height}-{frames}-{gop}.h264"));
    if !path.exists() {
        run(Command::new("ffmpeg")
            .args(["-hide_banner", "-loglevel", "error", "-y", "-f", "lavfi", "-i"])
            .arg(format!("testsrc2=size={width}x{height}:rate=25"))
            .args(["-frames:v", &frames.to_string(), "-pix_fmt", "yuv420p", "-c:v", "libx264"])
            .args(["-preset", "superfast", "-tune", "zerolatency", "-b:v", "500k", "-x264-params"])
            .arg(format!("keyint={gop}:min-keyint={gop}:scenecut=0:bframes=0:aud=1:repeat-headers=1"))
            .args(["-f", "h264"])
            .arg(&path));
    }
    let stream = std::fs::read(&path).unwrap();
    let mut units: Vec<Vec<u8>> = Vec::new();
    for nal in h264::nals(&stream) {
        if nal[0] & 0x1F == 9 {
            units.push(Vec::new());
        }
        let unit = units.last_mut().expect("a delimiter comes first");
        unit.extend_from_slice(&[0, 0, 0, 1]);
        unit.extend_from_slice(nal);
    }
    assert_eq!(units.len(), frames);
    let unit = |(n, data): (usize, Vec<u8>)| Unit {
        pts_ns: n as u64 * 40_000_000,
        wall_ms: wall_ms + n as u64 * 40,
        key: h264::is_idr(&data),
        data: data.into(),
    };
    let units: Vec<Unit> = units.into_iter().enumerate().map(unit).collect();
    assert!(units[0].key && !units[1].key);
    let _: &Arc<[u8]> = &units[0].data;
    units
}

//! What spyglassd makes of pictures that do not fit, and of sources of its own: files, and other cameras by RTSP.

use std::process::Command;
use std::time::{Duration, Instant};

use e2e::env::{self, wait_for};
use e2e::scratch::Scratch;
use e2e::spyglass::{Raw, Spyglass, frame, have_numpy, hello, report};
use e2e::{need, skip};

/// The first picture that a player of `url` shows, `width` x `height`, a byte a pixel.
fn picture(url: &str, (width, height): (usize, usize)) -> Vec<u8> {
    let mut command = Command::new("ffmpeg");
    command.args(["-v", "error", "-nostdin", "-rtsp_transport", "tcp", "-i", url, "-frames:v", "1"]);
    let output = command.args(["-pix_fmt", "gray", "-f", "rawvideo", "-"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.stdout.len(), width * height, "{url}: {said}");
    output.stdout
}

#[test]
fn a_picture_of_another_shape_gets_bars_or_is_stretched() {
    need!("ffmpeg");
    let scratch = Scratch::new("spyx");
    let stream = |name: &str, fit: &str| {
        format!(
            "[[stream]]\nname = \"{name}\"\nwidth = 320\nheight = 160\nfit = \"{fit}\"\nsource = \"gst:videotestsrc \
             is-live=true pattern=white ! video/x-raw,width=160,height=160,framerate=15/1\"\n"
        )
    };
    let more = stream("boxed", "letterbox") + &stream("filled", "stretch");
    let spy = Spyglass::start(&scratch, "", &more);
    // The white square is in the middle third and on, with 80 columns of black on either side.
    let at = |picture: &[u8], x: usize, y: usize| picture[y * 320 + x];
    let boxed = picture(&spy.url("boxed"), (320, 160));
    for y in [4, 80, 156] {
        let row: Vec<u8> = [4, 70, 90, 160, 230, 250, 316].map(|x| at(&boxed, x, y)).into();
        let bright: Vec<bool> = row.iter().map(|pixel| *pixel > 200).collect();
        let dark: Vec<bool> = row.iter().map(|pixel| *pixel < 30).collect();
        assert_eq!(bright, [false, false, true, true, true, false, false], "row {y}: {row:?}");
        assert_eq!(dark, [true, true, false, false, false, true, true], "row {y}: {row:?}");
    }
    let filled = picture(&spy.url("filled"), (320, 160));
    assert!(filled.iter().all(|pixel| *pixel > 200), "{:?}", filled.iter().min());
    spy.daemon.check_log();
}

/// Sends frames of black from number `first` on, each when its slot is free again, until a dozen have been encoded in their
/// size; the number of the next.
fn send(spy: &Spyglass, app: &Raw, size: (u32, u32), first: u64) -> u64 {
    let (begun, mut before) = (Instant::now(), None);
    for n in first.. {
        let seen = spy.stream("cam");
        let units = seen["units"].as_u64().unwrap();
        if seen["encoder"]["width"] == size.0 && units >= *before.get_or_insert(units) + 12 {
            return n;
        }
        assert!(begun.elapsed() < Duration::from_secs(120), "no dozen units of {size:?}: {seen}");
        let slot = (n % 4) as u32;
        assert!(app.send(&frame(slot, size, 0, n * 66_000_000)));
        let released = app.receive();
        assert_eq!((released[4], released[8]), (4, slot as u8), "RELEASE: {released:?}");
        std::thread::sleep(Duration::from_millis(66));
    }
    unreachable!("there are more frames than time");
}

#[test]
fn a_stream_may_take_the_size_of_its_frames_and_begins_a_new_file_for_it() {
    need!("ffprobe");
    let scratch = Scratch::new("spyg");
    let videos = scratch.dir("videos");
    let more = format!(
        "[[stream]]\nname = \"cam\"\nfit = \"renegotiate\"\n[stream.record]\ndir = \"{}\"\n",
        videos.display()
    );
    let mut spy = Spyglass::start(&scratch, "", &more);
    let app = Raw::connect(&spy);
    assert!(app.send(&hello("cam", (320, 180), 0, 1, 4)));
    assert_eq!(app.receive()[4], 2, "RING");
    let next = send(&spy, &app, (320, 180), 0);
    assert_eq!(spy.stream("cam")["state"], "STREAMING");
    send(&spy, &app, (160, 120), next);
    drop(app);
    spy.wait_state("cam", "STOPPED");
    assert!(spy.daemon.term().success());
    let mut files: Vec<_> = std::fs::read_dir(&videos).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let sizes: Vec<String> = files
        .iter()
        .map(|file| {
            let mut probe = Command::new("ffprobe");
            probe.args([
                "-v",
                "error",
                "-count_frames",
                "-show_entries",
                "stream=width,height,nb_read_frames",
            ]);
            env::run(probe.args(["-of", "csv=p=0"]).arg(file)).trim().to_owned()
        })
        .collect();
    assert_eq!(sizes.len(), 2, "{files:?}: {sizes:?}");
    for (seen, size) in sizes.iter().zip(["320,180,", "160,120,"]) {
        let frames: u32 = seen.strip_prefix(size).unwrap_or_else(|| panic!("{sizes:?}")).parse().unwrap();
        assert!(frames >= 10, "{sizes:?}");
    }
    spy.daemon.check_log();
}

#[test]
fn a_file_begins_again_at_its_end_where_it_may() {
    need!("ffmpeg", "ffprobe");
    let scratch = Scratch::new("spyj");
    let file = scratch.path().join("one second.mp4");
    let mut make = Command::new("ffmpeg");
    make.args([
        "-v",
        "error",
        "-f",
        "lavfi",
        "-i",
        "testsrc=size=160x120:rate=25:duration=1",
        "-pix_fmt",
        "yuv420p",
    ]);
    env::run(make.args(["-c:v", "libx264"]).arg(&file));
    let stream = |name: &str, more: &str| {
        format!("[[stream]]\nname = \"{name}\"\nsource = \"file:{}\"\n{more}", file.display())
    };
    let more = stream("round", "loop = true\n") + &stream("once", "");
    let spy = Spyglass::start(&scratch, "", &more);
    let mut probe = Command::new("ffprobe");
    probe.args(["-v", "error", "-rtsp_transport", "tcp", "-count_frames", "-read_intervals", "%+5"]);
    probe.args(["-show_entries", "stream=nb_read_frames", "-of", "csv=p=0"]);
    let frames: u32 = env::run(probe.arg(spy.url("round"))).trim().parse().unwrap();
    // Five seconds hold 125 of them, the file 25.
    assert!((60..=140).contains(&frames), "{frames} frames of a file of 25");
    assert_eq!(spy.stream("round")["sessions"], 1, "it was not opened anew");
    // Without that its end is told.
    let _viewer = spy.viewer("ffmpeg", "tcp", &spy.url("once"), 10);
    spy.wait_state("once", "ERROR");
    assert!(
        spy.stream("once")["why"].as_str().unwrap().contains("came to its end"),
        "{}",
        spy.stream("once")
    );
    spy.daemon.check_log();
}

#[test]
fn a_camera_that_speaks_rtsp_is_a_source() {
    need!("ffmpeg");
    if !have_numpy() {
        skip!("python3 with numpy is not installed (make deps)");
    }
    let (scratch, behind) = (Scratch::new("spyz"), Scratch::new("spyy"));
    // The camera is another spyglassd, with a password.
    let users = scratch.write("users", "anna:s3cret\n");
    let camera = Spyglass::start(&scratch, "", &format!("[access]\npassword-file = {users:?}\n"));
    let _app = camera.app("cam", (320, 180), 15, 90);
    camera.wait_state("cam", "WAITING");
    let secret = behind.write("secret", "s3cret\n");
    let more = format!(
        "[[stream]]\nname = \"door\"\nsource = \"{}\"\nusername = \"anna\"\npassword-file = {secret:?}\n",
        camera.url("cam")
    );
    let spy = Spyglass::start(&behind, "", &more);
    assert_eq!(camera.stream("cam")["viewers"], 0, "nobody watches, so the camera is left alone");
    let seen = report(spy.viewer("ffmpeg", "tcp", &spy.url("door"), 6), Duration::from_secs(60));
    assert_eq!(seen["size"], serde_json::json!([320, 180]), "{seen}");
    assert_eq!(seen["ordered"], true, "{seen}");
    assert!(seen["pictures"].as_u64().unwrap() >= 20, "{seen}");
    assert!(!spy.daemon.lines.contain("s3cret") && !spy.daemon.status().to_string().contains("s3cret"));
    wait_for("the camera to be let go", Duration::from_secs(40), || {
        (camera.stream("cam")["viewers"] == 0).then_some(())
    });
    spy.daemon.check_log();
    camera.daemon.check_log();
}

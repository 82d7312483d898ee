//! Real pictures to work on: the photograph of an astronaut out of scikit-image's wheel (public domain),
//! and a video and stills made from it by a camera that pans and zooms over it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use crate::env;

/// sha256 of skimage/data/astronaut.png.
const ASTRONAUT_SHA256: &str = "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5";
/// A version whose wheel carries the photograph, for the Pythons of Debian 12 and Ubuntu 22.04.
const WHEEL: &str = "scikit-image>=0.19,<0.27";

/// The photograph (512x512 PNG), fetched once into `target/data`; or why it can't be had.
pub fn astronaut() -> Result<PathBuf, String> {
    // One at a time: tests that begin together would fetch it several times over.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let cache = env::root().join("target/data");
    let file = cache.join("astronaut.png");
    if file.exists() {
        return Ok(file);
    }
    std::fs::create_dir_all(&cache).map_err(|e| e.to_string())?;
    let work = cache.join(format!("wheel-{}", std::process::id()));
    // Once more, since a package index may have a bad moment.
    let fetched =
        fetch(&work).or_else(|_| fetch(&work)).inspect_err(|_| drop(std::fs::remove_dir_all(&work)))?;
    // Several tests may be at it at once: the rename makes the last one win, with the same bytes.
    std::fs::rename(fetched, &file).map_err(|e| e.to_string())?;
    let _ = std::fs::remove_dir_all(&work);
    Ok(file)
}

fn fetch(work: &Path) -> Result<PathBuf, String> {
    std::fs::create_dir_all(work).map_err(|e| e.to_string())?;
    let mut pip = Command::new("python3");
    pip.args([
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
    ]);
    pip.arg("-d").arg(work).arg(WHEEL);
    output(&mut pip)?;
    let wheel = crate::scratch::files(work).into_iter().find(|p| p.extension().is_some_and(|e| e == "whl"));
    let wheel = wheel.ok_or("pip fetched no wheel")?;
    let mut unzip = Command::new("python3");
    unzip.args(["-m", "zipfile", "-e"]).arg(&wheel).arg(work);
    output(&mut unzip)?;
    let picture = work.join("skimage/data/astronaut.png");
    let sum = output(Command::new("sha256sum").arg(&picture))?;
    if !sum.starts_with(ASTRONAUT_SHA256) {
        return Err(format!("astronaut.png of {} is another picture: {sum}", wheel.display()));
    }
    Ok(picture)
}

fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A stage for the moving camera: copies of the photograph at these places (x, y, side) on a wide grey wall.
const WALL: [(u32, u32, u32); 3] = [(40, 120, 480), (900, 60, 600), (1800, 200, 400)];
const WALL_SIZE: (u32, u32) = (2400, 720);

/// One video: the camera moves from face to face over the wall, zooming; `seconds` long, 15 fps, H.264.
pub fn video(photo: &Path, to: &Path, seconds: u32) {
    let wall = to.with_extension("wall.png");
    wall_picture(photo, &wall);
    let frames = seconds * 15;
    // zoompan shows a part of the shape of its whole input, and a face that is squeezed is none to the cascade: so the wall
    // stands in the middle of a picture of 4:3. x sweeps once from left to right; the zoom breathes.
    let (width, height) = WALL_SIZE;
    let (tall, top) = (width * 3 / 4, (width * 3 / 4 - height) / 2);
    let motion = format!(
        "pad={width}:{tall}:0:{top}:gray,\
         zoompan=z='3.2+0.35*sin(on/19)':x='(iw-iw/zoom)*on/{frames}':\
         y='{top}+({height}-ih/zoom)*(0.4+0.3*sin(on/31))':d=1:s=640x480:fps=15"
    );
    let mut command = Command::new("ffmpeg");
    command.args(["-y", "-v", "error", "-loop", "1", "-framerate", "15", "-i"]).arg(&wall);
    command.args(["-vf", &motion, "-frames:v", &frames.to_string()]);
    command
        .args(["-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-pix_fmt", "yuv420p", "-g", "15"])
        .arg(to);
    env::run(&mut command);
    let _ = std::fs::remove_file(wall);
}

fn wall_picture(photo: &Path, to: &Path) {
    let (width, height) = WALL_SIZE;
    let mut graph = String::new();
    for (i, (_, _, side)) in WALL.iter().enumerate() {
        // The middle one is seen in a mirror: another face as far as pixels go.
        let mirror = if i == 1 { ",hflip" } else { "" };
        graph += &format!("[{}:v]scale={side}:{side}:flags=lanczos{mirror}[p{i}];", i + 1);
    }
    let mut last = "[0:v]".to_owned();
    for (i, (x, y, _)) in WALL.iter().enumerate() {
        graph += &format!("{last}[p{i}]overlay={x}:{y}[o{i}];");
        last = format!("[o{i}]");
    }
    let mut command = Command::new("ffmpeg");
    command.args(["-y", "-v", "error", "-f", "lavfi", "-i", &format!("color=0x777777:s={width}x{height}")]);
    for _ in WALL {
        command.arg("-i").arg(photo);
    }
    command.args(["-filter_complex", graph.trim_end_matches(';'), "-map", &last, "-frames:v", "1"]).arg(to);
    env::run(&mut command);
}

/// Stills as a camera would take them: the photograph at several sizes and crops, `count` JPEGs in a folder.
pub fn stills(photo: &Path, dir: &Path, count: u32) {
    std::fs::create_dir_all(dir).unwrap();
    for i in 0..count {
        // The face is at about (220, 110), 100 px wide; each crop holds it, at another place and scale.
        let (x, y) = (i * 17 % 90, i * 11 % 30);
        let side = 330 + i * 23 % 90;
        let filter = format!("crop={side}:{side}:{x}:{y},scale=480:480");
        let mut command = Command::new("ffmpeg");
        command.args(["-y", "-v", "error", "-i"]).arg(photo);
        command.args(["-vf", &filter, "-q:v", "2"]).arg(dir.join(format!("{i:03}.jpg")));
        env::run(&mut command);
    }
}

//! What a person reads when the file is wrong, and that the shipped file is good.

use super::*;

fn load(text: &str) -> Result<Config, String> {
    let loaded = config::parse::<Raw>(Path::new("faced.toml"), text.to_owned()).map_err(|e| e.to_string())?;
    Config::validate(loaded).map_err(|e| e.to_string())
}

const CAMERA: &str = "[[camera]]\nname = \"a\"\nsource = \"v4l:/dev/video0\"\n";

#[test]
fn the_least_file_is_a_camera() {
    let config = load(CAMERA).unwrap();
    let camera = &config.cameras[0];
    assert_eq!(camera.detect_width, 320);
    assert!(camera.gate.enabled && !camera.stills && !config.needs_gstreamer());
    assert!(matches!(config.detector, DetectorConfig::Haar(_)));
    assert_eq!((config.faces.topic.as_str(), config.faces.qos), ("faces", Qos::AtLeastOnce));
    assert_eq!((config.mqtt.host.as_str(), config.mqtt.port), ("127.0.0.1", 1883));
    let again = load(&config::to_toml(&config.raw)).unwrap();
    assert_eq!(again.cameras[0].source, camera.source, "--print-config can be read again");
}

#[test]
fn a_folder_of_pictures_is_many_scenes_unless_told_otherwise() {
    let text = "[[camera]]\nname = \"p\"\nsource = \"images:/tmp\"\n";
    let camera = &load(text).unwrap().cameras[0];
    assert!(camera.stills && !camera.gate.enabled && camera.track.hits_min == 1);
    let camera = &load(&format!("{text}sequence = true\n")).unwrap().cameras[0];
    assert!(!camera.stills && camera.gate.enabled && camera.track.hits_min == 2);
}

#[test]
fn mistakes_name_line_key_and_expectation() {
    for (text, expected) in [
        ("", "camera: expected at least one [[camera]]"),
        ("[[camera]]\nname = \"a\"\n", "missing field `source`"),
        ("[[camera]]\nname = \"a/b\"\nsource = \"v4l:x\"\n", ":2:8: camera[0].name: expected 1 to 64"),
        ("[[camera]]\nname = \"a\"\nsource = \"usb\"\n", ":3:10: camera[0].source: expected v4l:"),
        (
            "[[camera]]\nname = \"a\"\nsource = \"v4l:x\"\nloop = true\n",
            ":4:8: camera[0].loop: expected only with",
        ),
        (
            "[[camera]]\nname = \"a\"\nsource = \"v4l:x\"\nwidth = 10\n",
            ":4:9: camera[0].width: expected width and",
        ),
        (
            "[[camera]]\nname = \"a\"\nsource = \"rtsp://h/\"\nusername = \"u\"\n",
            "camera[0].password-file: expected",
        ),
        ("[detector]\nkind = \"yolo\"\n", ":2:8: detector.kind: unknown variant `yolo`"),
        ("[detector]\nscale-factor = 1.0\n", ":2:16: detector.scale-factor: expected a number above 1"),
        ("[detector]\nmin-score = nan\n", ":2:13: detector.min-score: expected a number from 0 to 1"),
        ("[faces]\ntopic = \"a/{name}\"\n", ":2:9: faces.topic: {name} is no variable"),
        ("[faces]\nqos = 3\n", ":2:7: faces.qos: expected 0, 1 or 2, found 3"),
        ("[faces]\nstatus-topic = \"x/{camera}\"\n", ":2:16: faces.status-topic: {camera} is no variable"),
        ("[mqtt]\nport = 0\n", ":2:8: mqtt.port: expected an integer from 1"),
        ("[limits]\nqueue = \"lots\"\n", ":2:9: limits.queue: invalid value"),
        ("[limits]\nretry-min-ms = 90000\n", ":2:16: limits.retry-min-ms: expected at least 10"),
    ] {
        let file = if text.contains("[[camera]]") || text.is_empty() {
            text.to_owned()
        } else {
            format!("{text}{CAMERA}")
        };
        let error = load(&file).unwrap_err();
        assert!(error.starts_with("faced.toml") && error.contains(expected), "{text:?}: {error}");
    }
    let error =
        load("[detector]\nkind = \"yunet\"\n[[camera]]\nname = \"a\"\nsource = \"v4l:x\"\n").unwrap_err();
    assert!(
        error.contains("detector.model: expected the path of face_detection_yunet_2023mar.onnx"),
        "{error}"
    );
    let two = format!("{CAMERA}{CAMERA}");
    assert!(load(&two).unwrap_err().contains("camera[1].name: expected a name that no other camera has"));
}

#[test]
fn the_shipped_file_is_good_and_says_what_the_defaults_are() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../etc/faced.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let shipped = config::parse::<Raw>(&path, text.clone()).unwrap().raw;
    let least = config::parse::<Raw>(&path, String::new()).unwrap().raw;
    let mut without_cameras = shipped.clone();
    without_cameras.camera.clear();
    assert_eq!(config::to_toml(&without_cameras), config::to_toml(&least), "it holds the defaults");
    // Every key that the program knows is named in it, given or commented out.
    let mut all = shipped;
    all.camera.iter_mut().for_each(|c| c.gate = Some(true));
    for line in config::to_toml(&all).lines() {
        if let Some((key, _)) = line.split_once(" = ") {
            assert!(text.contains(&format!("{key} = ")), "etc/faced.toml does not mention {key}");
        }
    }
}

//! What is known about a published face, and how it is written: MQTT 5 user properties, and a JSON event.
//!
//! Owns: names and formats of the metadata. Never: holds the picture.

use std::sync::Arc;

use edge::clock::rfc3339_ms;
use edge::device::Device;
use edge::mqtt::{Message, Properties, Qos};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::convert::Area;
use crate::detect::{Detection, Score};
use crate::inbox::Inbox;

/// The inbox of a detector thread; a face to be encoded travels with its metadata.
pub type Mailbox = Inbox<Box<Face>>;

/// The metadata of one face.
#[derive(Debug, Clone)]
pub struct Face {
    /// See [`Face::sealed`]; empty before.
    pub id: String,
    /// Index of the camera.
    pub camera: usize,
    /// Name of the camera.
    pub camera_name: String,
    /// When the frame was read, Unix ms.
    pub time_ms: u64,
    /// When its picture was chosen and encoded, Unix ms; 0 before.
    pub published_ms: u64,
    /// Number of the track, unique within camera and process.
    pub track: u64,
    /// Box, score, landmarks.
    pub detection: Detection,
    /// Name of the detector.
    pub detector: &'static str,
    /// What the crop shows of the frame.
    pub crop: Area,
    /// Size of the frame.
    pub frame: (u32, u32),
    /// Variance of the Laplacian.
    pub sharpness: f32,
    /// Quality the crop was chosen by.
    pub quality: f32,
    /// In how many frames the face was seen before it was published.
    pub hits: u32,
    /// For how long, in ms.
    pub length_ms: u64,
    /// File name, for a folder of pictures.
    pub origin: Option<Arc<str>>,
}

fn moment(unix_ms: u64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * 1_000_000)
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// At most a tenth of a pixel: more would be noise.
fn tenth(v: f32) -> f64 {
    (f64::from(v) * 10.0).round() / 10.0
}

impl Face {
    /// The face with its id and the time it is published at. The id: the time in UTC, then 16 hex digits of the SHA-256 over device, camera, time, track, box and
    /// payload. Unique among all devices, sorted by time, and a pure function of what is published, so that a message
    /// sent twice has the same one.
    #[must_use]
    pub fn sealed(mut self, device: &Device, payload: &[u8], now_ms: u64) -> Face {
        self.published_ms = now_ms;
        let mut hash = Sha256::new();
        for part in [device.id.as_bytes(), self.camera_name.as_bytes()] {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let Area { x, y, w, h } = self.crop;
        for number in [self.time_ms, self.track, x.into(), y.into(), w.into(), h.into()] {
            hash.update(number.to_be_bytes());
        }
        hash.update(payload);
        let digest = hash.finalize();
        let hex: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let format = format_description!("[year][month][day]T[hour][minute][second][subsecond digits:3]Z");
        self.id = format!("{}-{hex}", moment(self.time_ms).format(&format).unwrap_or_default());
        self
    }

    /// The user properties of the crop, in the order of the documentation.
    #[must_use]
    pub fn properties(&self, device: &Device, late: bool) -> Vec<(String, String)> {
        let mut all: Vec<(&str, String)> = vec![
            ("id", self.id.clone()),
            ("device", device.id.clone()),
            ("camera", self.camera_name.clone()),
            ("time", rfc3339_ms(self.time_ms)),
            ("published", rfc3339_ms(self.published_ms)),
            ("bbox", self.numbers(&self.bbox())),
            ("crop", self.numbers(&self.crop_values())),
            ("frame", format!("{}x{}", self.frame.0, self.frame.1)),
            ("detector", self.detector.to_owned()),
        ];
        all.push(match self.detection.score {
            Score::Probability(p) => ("score", format!("{p:.4}")),
            Score::LevelWeight(weight) => ("score-raw", format!("{weight:.4}")),
        });
        if let Some(points) = &self.detection.landmarks {
            let flat: Vec<f64> = points.iter().flat_map(|(x, y)| [tenth(*x), tenth(*y)]).collect();
            all.push(("landmarks", self.numbers(&flat)));
        }
        all.push(("track", self.track.to_string()));
        all.push(("track-frames", self.hits.to_string()));
        all.push(("track-ms", self.length_ms.to_string()));
        all.push(("sharpness", format!("{:.1}", self.sharpness)));
        all.push(("quality", format!("{:.2}", self.quality)));
        if let Some(name) = &self.origin {
            all.push(("file", name.to_string()));
        }
        if let Some(place) = &device.location {
            all.push(("latitude", place.latitude.to_string()));
            all.push(("longitude", place.longitude.to_string()));
            all.extend(place.name.iter().map(|name| ("location", name.clone())));
        }
        if late {
            all.push(("late", "true".to_owned()));
        }
        all.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
    }

    /// The same as JSON: numbers are numbers, lists are lists.
    #[must_use]
    pub fn event(&self, device: &Device, late: bool) -> Value {
        let mut event = json!({
            "id": self.id,
            "device": device.id,
            "camera": self.camera_name,
            "time": rfc3339_ms(self.time_ms),
            "published": rfc3339_ms(self.published_ms),
            "bbox": self.bbox(),
            "crop": self.crop_values(),
            "frame": [self.frame.0, self.frame.1],
            "detector": self.detector,
            "track": self.track,
            "track-frames": self.hits,
            "track-ms": self.length_ms,
            "sharpness": tenth(self.sharpness),
            "quality": tenth(self.quality),
        });
        match self.detection.score {
            Score::Probability(p) => event["score"] = json!((f64::from(p) * 1e4).round() / 1e4),
            Score::LevelWeight(weight) => event["score-raw"] = json!((weight * 1e4).round() / 1e4),
        }
        if let Some(points) = &self.detection.landmarks {
            event["landmarks"] = points.iter().map(|(x, y)| json!([tenth(*x), tenth(*y)])).collect();
        }
        if let Some(name) = &self.origin {
            event["file"] = json!(&**name);
        }
        if let Some(place) = &device.location {
            event["latitude"] = json!(place.latitude);
            event["longitude"] = json!(place.longitude);
            if let Some(name) = &place.name {
                event["location"] = json!(name);
            }
        }
        if late {
            event["late"] = json!(true);
        }
        event
    }

    /// The message that carries the crop.
    #[must_use]
    pub fn crop_message(
        &self,
        device: &Device,
        topic: String,
        qos: Qos,
        content_type: &str,
        payload: Vec<u8>,
        late: bool,
    ) -> Message {
        let properties = Properties {
            content_type: Some(content_type.to_owned()),
            user: self.properties(device, late),
            ..Properties::default()
        };
        Message { topic, payload, qos, retain: false, properties }
    }

    /// The message that carries the event.
    #[must_use]
    pub fn event_message(&self, device: &Device, topic: String, qos: Qos, late: bool) -> Message {
        let properties = Properties {
            content_type: Some("application/json".to_owned()),
            payload_utf8: Some(true),
            ..Properties::default()
        };
        let payload = self.event(device, late).to_string().into_bytes();
        Message { topic, payload, qos, retain: false, properties }
    }

    fn bbox(&self) -> Vec<f64> {
        let b = self.detection.bbox;
        [b.x, b.y, b.w, b.h].map(tenth).to_vec()
    }

    fn crop_values(&self) -> Vec<f64> {
        let Area { x, y, w, h } = self.crop;
        [x, y, w, h].map(f64::from).to_vec()
    }

    fn numbers(&self, values: &[f64]) -> String {
        values.iter().map(f64::to_string).collect::<Vec<_>>().join(",")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detect::Box2;
    use edge::device::Location;

    fn face() -> Face {
        Face {
            id: String::new(),
            camera: 0,
            camera_name: "door".into(),
            time_ms: 1_795_216_523_045,
            published_ms: 0,
            track: 7,
            detection: Detection {
                bbox: Box2 { x: 10.04, y: 20.0, w: 30.26, h: 40.0 },
                score: Score::LevelWeight(4.251_23),
                landmarks: None,
            },
            detector: "haar",
            crop: Area { x: 4, y: 12, w: 42, h: 56 },
            frame: (640, 480),
            sharpness: 123.46,
            quality: 21.5,
            hits: 12,
            length_ms: 800,
            origin: None,
        }
    }

    fn device(location: Option<Location>) -> Device {
        Device { id: "nx-1".into(), location, attributes: Default::default() }
    }

    fn value<'a>(properties: &'a [(String, String)], key: &str) -> Option<&'a str> {
        properties.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    #[test]
    fn haar_gives_a_raw_score_and_yunet_a_probability_with_landmarks() {
        let sealed = face().sealed(&device(None), b"jpeg", 1_000);
        let all = sealed.properties(&device(None), false);
        assert_eq!(value(&all, "time"), Some(rfc3339_ms(1_795_216_523_045).as_str()));
        assert_eq!(value(&all, "published"), Some("1970-01-01T00:00:01.000Z"));
        assert_eq!(value(&all, "id"), Some(sealed.id.as_str()));
        assert_eq!(value(&all, "score-raw"), Some("4.2512"));
        assert_eq!((value(&all, "score"), value(&all, "landmarks"), value(&all, "late")), (None, None, None));
        assert_eq!(value(&all, "bbox"), Some("10,20,30.3,40"));
        assert_eq!((value(&all, "frame"), value(&all, "track-frames")), (Some("640x480"), Some("12")));
        assert_eq!(value(&all, "latitude"), None);

        let mut sure = face();
        sure.detection.score = Score::Probability(0.91234);
        sure.detection.landmarks = Some([(1.0, 2.0), (3.06, 4.0), (5.0, 6.0), (7.0, 8.0), (9.0, 10.0)]);
        sure.origin = Some("a.png".into());
        let place = Location { latitude: 47.1, longitude: -8.5, name: Some("gate 3".into()) };
        let here = device(Some(place));
        let all = sure.properties(&here, true);
        assert_eq!((value(&all, "score"), value(&all, "score-raw")), (Some("0.9123"), None));
        assert_eq!(value(&all, "landmarks"), Some("1,2,3.1,4,5,6,7,8,9,10"));
        assert_eq!((value(&all, "latitude"), value(&all, "longitude")), (Some("47.1"), Some("-8.5")));
        assert_eq!((value(&all, "late"), value(&all, "file")), (Some("true"), Some("a.png")));
        let event = sure.event(&here, true);
        assert_eq!(event["landmarks"][1], json!([3.1, 4.0]));
        assert_eq!(
            (&event["late"], &event["score"], &event["location"]),
            (&json!(true), &json!(0.9123), &json!("gate 3"))
        );
    }

    #[test]
    fn the_id_is_a_pure_function_of_what_is_published() {
        let id = |face: Face, device: &Device, payload: &[u8]| face.sealed(device, payload, 5).id;
        let here = device(None);
        let first = id(face(), &here, b"a");
        assert_eq!(first, id(face(), &here, b"a"));
        assert!(
            first.starts_with("2026") && first.len() == "20261121T110203045Z-0123456789abcdef".len(),
            "{first}"
        );
        assert_ne!(first, id(face(), &here, b"b"));
        let mut other = face();
        other.track = 8;
        assert_ne!(first, id(other, &here, b"a"));
        let mut there = here.clone();
        there.id = "nx-2".into();
        assert_ne!(first, id(face(), &there, b"a"));
    }
}

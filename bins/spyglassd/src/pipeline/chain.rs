//! Which elements, with which settings, for which encoder.
//!
//! Owns: the text of the encoding pipeline. Invariants: no B-frames, so that units leave in the order of their
//! pictures; key frames come when they are asked for (the core asks for one each GOP, by time), the encoder's own
//! distance is only the fence behind that. Never: builds anything.

use gst::prelude::*;
use serde::{Deserialize, Serialize};

use super::PipelineError;

/// An encoder, as the configuration names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The first of those below that works here.
    Auto,
    /// NVIDIA Jetson's.
    Nvv4l2h264enc,
    /// A V4L2 memory-to-memory device's, such as the Raspberry Pi's.
    V4l2h264enc,
    /// libx264, on the CPU.
    X264,
    /// Cisco's, on the CPU.
    Openh264,
}

/// The order of [`Kind::Auto`]: hardware first, then what costs least.
const PREFERRED: [Kind; 4] = [Kind::Nvv4l2h264enc, Kind::V4l2h264enc, Kind::X264, Kind::Openh264];

/// x264's speed presets, the fastest first.
pub const PRESETS: [&str; 10] = [
    "ultrafast",
    "superfast",
    "veryfast",
    "faster",
    "fast",
    "medium",
    "slow",
    "slower",
    "veryslow",
    "placebo",
];

/// What is done with frames of another size than the stream's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// Scaled, with black bars where the shape differs.
    Letterbox,
    /// Scaled to fill, whatever the shape.
    Stretch,
    /// The stream takes the new size.
    Renegotiate,
}

/// How to encode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Which encoder.
    pub kind: Kind,
    /// x264's speed preset.
    pub preset: String,
    /// Encoder threads; 0 = its own choice.
    pub threads: u32,
    /// Bits a second in thousands.
    pub bitrate_kbit: u32,
    /// Most frames between two key frames.
    pub gop_frames: u32,
    /// Other sizes.
    pub fit: Fit,
}

impl Kind {
    /// The element's name.
    #[must_use]
    pub fn element(self) -> &'static str {
        match self {
            Kind::Auto => "auto",
            Kind::Nvv4l2h264enc => "nvv4l2h264enc",
            Kind::V4l2h264enc => "v4l2h264enc",
            Kind::X264 => "x264enc",
            Kind::Openh264 => "openh264enc",
        }
    }

    /// What is to be done where the element is missing.
    fn remedy(self) -> &'static str {
        match self {
            Kind::Nvv4l2h264enc => "is not installed (it comes with the Jetson's own system)",
            Kind::V4l2h264enc => {
                "is not there (package gstreamer1.0-plugins-good, and a V4L2 device that encodes H.264)"
            }
            Kind::X264 | Kind::Auto => "is not installed (package gstreamer1.0-plugins-ugly)",
            Kind::Openh264 => "is not installed (package gstreamer1.0-plugins-bad)",
        }
    }

    /// Whether the element is installed and opens its device; if not, why.
    fn works(self) -> Result<(), &'static str> {
        let made = gst::ElementFactory::make(self.element()).build();
        let element = made.map_err(|_| self.remedy())?;
        let opened = element.set_state(gst::State::Ready);
        let _ = element.set_state(gst::State::Null);
        opened.map(|_| ()).map_err(|_| "is installed, but does not open its device")
    }

    /// The encoder to use: itself, or what is found for [`Kind::Auto`].
    ///
    /// # Errors
    /// [`PipelineError::NoEncoder`].
    pub fn probe(self) -> Result<Kind, PipelineError> {
        super::init()?;
        self.choose(Kind::works)
    }

    fn choose(self, works: impl Fn(Kind) -> Result<(), &'static str>) -> Result<Kind, PipelineError> {
        let tried = if self == Kind::Auto { &PREFERRED[..] } else { &[self][..] };
        let mut why = Vec::new();
        for kind in tried {
            match works(*kind) {
                Ok(()) => return Ok(*kind),
                Err(reason) => why.push(format!("{} {reason}", kind.element())),
            }
        }
        if self != Kind::Auto {
            why.push("encoder.kind = \"auto\" takes the first one that works".to_owned());
        }
        Err(PipelineError::NoEncoder(why.join("; ")))
    }

    /// Sets the rate of a running encoder; `false` where it can't be changed on the way.
    pub fn set_bitrate(self, encoder: &gst::Element, kbit: u32) -> bool {
        match self {
            Kind::X264 => encoder.set_property("bitrate", kbit.max(1)),
            Kind::Openh264 | Kind::Nvv4l2h264enc => {
                encoder.set_property("bitrate", kbit.saturating_mul(1000))
            }
            Kind::V4l2h264enc | Kind::Auto => return false,
        }
        true
    }
}

impl Settings {
    /// Whether the pipeline can be built as it is set.
    ///
    /// # Errors
    /// [`PipelineError`]; in words, the key of `[encoder]` that the encoder does not take, where it is one.
    pub fn check(&self) -> Result<(), String> {
        let Err(error) = super::parse(&self.text((64, 64), (64, 64))) else { return Ok(()) };
        let text = error.to_string();
        let keys = [("speed-preset", "preset"), ("threads", "threads"), ("multi-thread", "threads")];
        let named = |property: &str| text.contains(&format!("set property \"{property}\""));
        let key = keys.iter().find(|(property, _)| named(property)).map(|(_, key)| format!(".{key}"));
        Err(format!("encoder{}: {text}", key.unwrap_or_default()))
    }

    /// The pipeline from frames of `from` pixels to units of `to` pixels (even numbers).
    #[must_use]
    pub fn text(&self, from: (u32, u32), to: (u32, u32)) -> String {
        let Settings { preset, threads, bitrate_kbit, gop_frames, .. } = self;
        let bits = bitrate_kbit.saturating_mul(1000);
        let (encoder, raw) = match self.kind {
            Kind::Openh264 => {
                let text = format!(
                    "openh264enc name=encoder rate-control=bitrate complexity=low bitrate={bits} \
                     gop-size={gop_frames} multi-thread={threads}"
                );
                (text, "video/x-raw,format=I420")
            }
            Kind::Nvv4l2h264enc => {
                let text = format!(
                    "nvvidconv ! video/x-raw(memory:NVMM),format=NV12 ! nvv4l2h264enc name=encoder bitrate={bits} \
                     iframeinterval={gop_frames} idrinterval={gop_frames} num-B-Frames=0 insert-sps-pps=true \
                     maxperf-enable=true"
                );
                (text, "video/x-raw,format=NV12")
            }
            Kind::V4l2h264enc => {
                let text = format!(
                    "v4l2h264enc name=encoder extra-controls=\"controls,video_bitrate={bits},\
                     h264_i_frame_period={gop_frames},repeat_sequence_header=1\" ! video/x-h264,level=(string)4"
                );
                (text, "video/x-raw,format={NV12,I420}")
            }
            Kind::X264 | Kind::Auto => {
                let text = format!(
                    "x264enc name=encoder tune=zerolatency speed-preset={preset} bframes=0 \
                     key-int-max={gop_frames} bitrate={bitrate_kbit} threads={threads}"
                );
                (text, "video/x-raw,format={I420,NV12}")
            }
        };
        let (w, h) = to;
        // One column or row more is a border; anything else is a scaling.
        let odd = |from: u32, to: u32| if from % 2 == 1 && to == from + 1 { -1 } else { 0 };
        let pad = match (odd(from.0, w), odd(from.1, h)) {
            (0, 0) => String::new(),
            (right, bottom) => format!("videobox right={right} bottom={bottom} ! "),
        };
        let borders = self.fit != Fit::Stretch;
        format!(
            "appsrc name=frames format=time is-live=true block=false ! videoconvert ! {pad}\
             videoscale add-borders={borders} ! {raw},width={w},height={h},pixel-aspect-ratio=1/1 ! \
             {encoder} ! h264parse config-interval=-1 ! \
             video/x-h264,stream-format=byte-stream,alignment=au ! \
             appsink name=units sync=false async=false enable-last-sample=false"
        )
    }
}

/// The size of a stream of `width` x `height` frames: the next even numbers.
#[must_use]
pub fn even((width, height): (u32, u32)) -> (u32, u32) {
    (width.next_multiple_of(2).max(16), height.next_multiple_of(2).max(16))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(kind: Kind) -> Settings {
        Settings {
            kind,
            preset: "superfast".to_owned(),
            threads: 0,
            bitrate_kbit: 2000,
            gop_frames: 60,
            fit: Fit::Letterbox,
        }
    }

    #[test]
    fn odd_frames_get_a_border_and_others_are_scaled() {
        let settings = settings(Kind::X264);
        assert!(!settings.text((640, 480), (640, 480)).contains("videobox"));
        assert!(settings.text((641, 480), (642, 480)).contains("videobox right=-1 bottom=0"));
        assert!(!settings.text((641, 480), (640, 480)).contains("videobox"));
        assert!(settings.text((320, 200), (640, 480)).contains("add-borders=true"));
        let stretched = Settings { fit: Fit::Stretch, ..settings };
        assert!(stretched.text((320, 200), (640, 480)).contains("add-borders=false"));
        assert_eq!(even((641, 480)), (642, 480));
        assert_eq!(even((1, 2)), (16, 16));
    }

    #[test]
    fn a_key_that_the_encoder_does_not_take_is_named() {
        crate::pipeline::init().unwrap();
        for preset in PRESETS {
            Settings { preset: preset.to_owned(), ..settings(Kind::X264) }.check().unwrap();
        }
        let wrong = Settings { preset: "nonsense".to_owned(), ..settings(Kind::X264) }.check().unwrap_err();
        assert!(wrong.starts_with("encoder.preset: ") && wrong.contains("nonsense"), "{wrong}");
    }

    #[test]
    fn auto_takes_the_first_that_works_and_a_named_one_is_taken_or_refused() {
        use Kind::{Auto, Nvv4l2h264enc, Openh264, V4l2h264enc, X264};
        let order = [Nvv4l2h264enc, V4l2h264enc, X264, Openh264];
        for (n, first) in order.into_iter().enumerate() {
            let works = |kind| if order[n..].contains(&kind) { Ok(()) } else { Err("is broken") };
            assert_eq!(Auto.choose(works).unwrap(), first);
            for kind in order {
                assert_eq!(
                    kind.choose(works).is_ok(),
                    order[n..].contains(&kind),
                    "{kind:?} is never replaced"
                );
            }
        }
        let none = |_| Err("is broken");
        let all = Auto.choose(none).unwrap_err().to_string();
        assert!(order.iter().all(|kind| all.contains(&format!("{} is broken", kind.element()))), "{all}");
        let one = Openh264.choose(none).unwrap_err().to_string();
        assert!(one.contains("openh264enc is broken; encoder.kind = \"auto\" takes"), "{one}");
        assert!(!one.contains("x264enc is"), "{one}");
    }

    #[test]
    fn what_is_found_here_works_and_what_is_missing_is_named() {
        assert!(Kind::X264.probe().is_ok());
        assert!(Kind::Auto.probe().is_ok());
        if gst::ElementFactory::find("nvv4l2h264enc").is_none() {
            let error = Kind::Nvv4l2h264enc.probe().unwrap_err().to_string();
            assert!(error.contains("nvv4l2h264enc is not installed"), "{error}");
        }
    }

    #[test]
    fn each_encoder_is_told_rate_and_gop_in_its_own_units() {
        let chain = |kind| {
            let text = settings(kind).text((640, 480), (640, 480));
            let parts: Vec<String> = text.split(" ! ").map(str::to_owned).collect();
            // appsrc, videoconvert, videoscale, raw caps, then the encoder's own, then h264parse, caps, appsink.
            assert_eq!(&parts[parts.len() - 3], "h264parse config-interval=-1");
            parts[3..parts.len() - 3].to_vec()
        };
        let caps = |formats: &str| {
            format!("video/x-raw,format={formats},width=640,height=480,pixel-aspect-ratio=1/1")
        };
        let x264 = "x264enc name=encoder tune=zerolatency speed-preset=superfast bframes=0 key-int-max=60 bitrate=2000 \
                    threads=0";
        assert_eq!(chain(Kind::X264), [&caps("{I420,NV12}"), x264]);
        let openh264 = "openh264enc name=encoder rate-control=bitrate complexity=low bitrate=2000000 gop-size=60 \
                        multi-thread=0";
        assert_eq!(chain(Kind::Openh264), [&caps("I420"), openh264]);
        let jetson = "nvv4l2h264enc name=encoder bitrate=2000000 iframeinterval=60 idrinterval=60 num-B-Frames=0 \
                      insert-sps-pps=true maxperf-enable=true";
        let moved = "video/x-raw(memory:NVMM),format=NV12";
        assert_eq!(chain(Kind::Nvv4l2h264enc), [&caps("NV12"), "nvvidconv", moved, jetson]);
        let v4l2 = "v4l2h264enc name=encoder extra-controls=\"controls,video_bitrate=2000000,h264_i_frame_period=60,\
                    repeat_sequence_header=1\"";
        assert_eq!(chain(Kind::V4l2h264enc), [&caps("{NV12,I420}"), v4l2, "video/x-h264,level=(string)4"]);
    }
}

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

    /// Whether the element is installed and opens its device.
    fn works(self) -> bool {
        let Ok(element) = gst::ElementFactory::make(self.element()).build() else { return false };
        let opened = element.set_state(gst::State::Ready).is_ok();
        let _ = element.set_state(gst::State::Null);
        opened
    }

    /// The encoder to use: itself, or what is found for [`Kind::Auto`].
    ///
    /// # Errors
    /// [`PipelineError::NoEncoder`].
    pub fn probe(self) -> Result<Kind, PipelineError> {
        super::init()?;
        let tried = if self == Kind::Auto { &PREFERRED[..] } else { &[self][..] };
        let found = tried.iter().copied().find(|kind| kind.works());
        found.ok_or_else(|| {
            PipelineError::NoEncoder(tried.iter().map(|k| k.element()).collect::<Vec<_>>().join(", "))
        })
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

    #[test]
    fn odd_frames_get_a_border_and_others_are_scaled() {
        let settings = Settings {
            kind: Kind::X264,
            preset: "superfast".to_owned(),
            threads: 0,
            bitrate_kbit: 2000,
            gop_frames: 60,
            fit: Fit::Letterbox,
        };
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
    fn an_encoder_that_is_not_there_is_named() {
        assert!(Kind::X264.probe().is_ok());
        assert!(matches!(Kind::Auto.probe().unwrap(), Kind::Nvv4l2h264enc | Kind::V4l2h264enc | Kind::X264));
        let error = Kind::Nvv4l2h264enc.probe();
        if let Err(error) = error {
            assert!(error.to_string().contains("nvv4l2h264enc"), "{error}");
        }
    }
}

//! Hands moving test frames to spyglassd: `cargo run -p spyglassd --example produce -- SOCKET NAME [FRAMES]`.
//!
//! What an application in Rust does: HELLO, take the memory, then for each frame a copy into a free slot and one message.
//! It never waits: without a free slot the frame is dropped and counted.

use std::error::Error;
use std::fs::File;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use spyglassd::frames::geometry::Format;
use spyglassd::frames::wire::{BYTES_MAX, Frame, Hello, Message};

const SIZE: (u32, u32) = (640, 360);
const FPS: u32 = 30;

type Received = Option<(Message, Option<OwnedFd>)>;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [socket, name, rest @ ..] = &args[..] else {
        return Err("usage: produce SOCKET NAME [FRAMES]".into());
    };
    let frames: u64 = rest.first().map_or(Ok(u64::MAX), |n| n.parse())?;
    let link =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::connect(&link, &SocketAddrUnix::new(socket.as_str())?)?;
    let (width, height) = SIZE;
    let hello =
        Hello { name: name.clone(), width, height, stride: 0, format: Format::Bgr, fps: (FPS, 1), slots: 0 };
    send(&link, &Message::Hello(hello))?;
    // Only this answer is waited for.
    let (answer, memory) = receive(&link, RecvFlags::empty())?.ok_or("the daemon says nothing")?;
    let Message::Ring { slots, slot_bytes } = answer else {
        return Err(format!("refused: {answer:?}").into());
    };
    let memory = File::from(memory.ok_or("the daemon sent no memory")?);
    let (mut free, mut dropped): (Vec<u32>, u64) = ((0..slots).collect(), 0);
    let begun = Instant::now();
    for n in 0..frames {
        while let Some((message, _)) = receive(&link, RecvFlags::DONTWAIT)? {
            match message {
                Message::Release { slot } => free.push(slot),
                other => return Err(format!("the daemon says {other:?}").into()),
            }
        }
        match free.pop() {
            None => dropped += 1,
            Some(slot) => {
                // A mapping would save the system call; this example stays without unsafe code.
                memory.write_all_at(&picture(n), u64::from(slot) * slot_bytes)?;
                let pts_ns = u64::try_from(begun.elapsed().as_nanos())?;
                send(&link, &Message::Frame(Frame { slot, width, height, stride: 0, pts_ns, dropped }))?;
            }
        }
        let next = begun + Duration::from_secs(n + 1) / FPS;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    println!("{frames} frames, {dropped} dropped");
    Ok(())
}

/// A bar that moves over a gradient.
fn picture(n: u64) -> Vec<u8> {
    let (width, height) = (SIZE.0 as usize, SIZE.1 as usize);
    let bar = (n as usize * 4) % width;
    let mut pixels = Vec::with_capacity(width * height * 3);
    for y in 0..height {
        for x in 0..width {
            let inside = (bar..bar + 40).contains(&x);
            pixels.extend(if inside {
                [255; 3]
            } else {
                [(x * 255 / width) as u8, (y * 255 / height) as u8, 64]
            });
        }
    }
    pixels
}

fn send(link: &OwnedFd, message: &Message) -> Result<(), Box<dyn Error>> {
    rustix::net::send(link, &message.encode(), SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The next message, with the memory that may come with it; `None` when nothing waits.
fn receive(link: &OwnedFd, flags: RecvFlags) -> Result<Received, Box<dyn Error>> {
    let mut packet = [0u8; BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let got = match rustix::net::recvmsg(link, &mut [IoSliceMut::new(&mut packet)], &mut control, flags) {
        Ok(got) => got.bytes,
        Err(rustix::io::Errno::AGAIN) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if got == 0 {
        return Err("the daemon hung up".into());
    }
    let memory = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    Ok(Some((Message::decode(&packet[..got])?, memory)))
}

"""A viewer for the tests of spyglassd: plays a stream with ffmpeg or gst-launch, reads the bar code of each picture.

    spyglass_view.py ffmpeg|gst tcp|udp URL SECONDS
    spyglass_view.py gst rtp PORT SECONDS              (bare RTP over UDP)

SECONDS count from the first picture; without one it ends 20 s later. At the end, one line of JSON: pictures, size, order, delays from the application's clock to here in ms, and the time from
the start of the player to its first picture.
"""

import ctypes
import json
import subprocess
import sys
import threading
import time

import numpy


def numbers(picture):
    height, width = picture.shape
    values = []
    for row in range(2):
        value = 0
        for bit in range(32):
            left, right = bit * width // 32, (bit + 1) * width // 32
            value = value << 1 | int(picture[row * 16 + 8, (left + right) // 2] > 128)
        values.append(value)
    return values


def player(kind, transport, url):
    if kind == "ffmpeg":
        return ["ffmpeg", "-v", "error", "-nostdin", "-fflags", "nobuffer", "-flags", "low_delay",
                "-probesize", "32", "-analyzeduration", "0", "-rtsp_transport", transport, "-i", url, "-an", "-vsync", "passthrough",
                "-f", "image2pipe", "-c:v", "pgm", "-pix_fmt", "gray", "-flush_packets", "1", "-"]
    source = ["rtspsrc", "location=" + url, "protocols=" + transport, "latency=0"]
    if transport == "rtp":
        caps = "application/x-rtp,media=video,clock-rate=90000,encoding-name=H264"
        source = ["udpsrc", "address=127.0.0.1", "port=" + url, "caps=" + caps]
    return ["gst-launch-1.0", "-q"] + source + [
        "!", "rtph264depay", "!", "avdec_h264", "max-threads=1", "!", "videoconvert", "!", "video/x-raw,format=GRAY8",
        "!", "pnmenc", "!", "fdsink", "fd=1", "sync=false"]


def main():
    kind, transport, url, seconds = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
    begun = time.monotonic()
    # The player ends with this program, however that is ended: 1 is PR_SET_PDEATHSIG, 9 is KILL.
    process = subprocess.Popen(
        player(kind, transport, url), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: ctypes.CDLL(None).prctl(1, 9))
    # Reading ends with the player, also when no more pictures come.
    end = threading.Timer(seconds + 20, process.kill)
    end.start()
    pictures, first, size = [], None, None
    try:
        while process.stdout.readline() == b"P5\n":
            words = []
            while len(words) < 3:
                line = process.stdout.readline()
                if not line:
                    break
                if not line.startswith(b"#"):
                    words += line.split()
            if len(words) < 3:
                break
            size = (int(words[0]), int(words[1]))
            data = process.stdout.read(size[0] * size[1])
            if len(data) < size[0] * size[1]:
                break
            now = time.monotonic()
            if first is None:
                # How long a player takes to start on a busy machine is not how long it plays.
                first = now
                end.cancel()
                end = threading.Timer(seconds, process.kill)
                end.start()
            picture = numpy.frombuffer(data, numpy.uint8).reshape(size[1], size[0])
            number, ticks = numbers(picture)
            delay = ((int(now * 10000) - ticks) & 0xffffffff) / 10
            pictures.append((number, delay, now))
    finally:
        end.cancel()
        process.kill()
        error = process.stderr.read().decode("utf-8", "replace")[-500:]
        process.wait()
    numbers_seen = [p[0] for p in pictures]
    delays = sorted(p[1] for p in pictures[len(pictures) // 3:])
    report = {"pictures": len(pictures), "size": size, "error": error,
              "ordered": all(a < b for a, b in zip(numbers_seen, numbers_seen[1:])),
              "numbers": numbers_seen}
    if pictures:
        span = pictures[-1][2] - pictures[0][2]
        report.update({
            "first_ms": (first - begun) * 1e3, "fps": (len(pictures) - 1) / span if span else 0,
            "delay_ms_p50": delays[len(delays) // 2], "delay_ms_p95": delays[int(len(delays) * .95)],
            "delay_ms_max": delays[-1], "missing": numbers_seen[-1] - numbers_seen[0] + 1 - len(pictures)})
    print(json.dumps(report), flush=True)


main()

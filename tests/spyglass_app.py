"""An application for the tests of spyglassd: frames with a bar code of time and number, through edge_spyglass.

    spyglass_app.py SOCKET NAME WIDTH HEIGHT FPS SECONDS [plain|bare]

SOCKET may also be "-", the raw frames to standard output, or "cv:PIPELINE", OpenCV's VideoWriter with that pipeline.
The code is two rows of 32 blocks at the top of the picture: 32 bits of the frame's number, 32 bits of CLOCK_MONOTONIC in
units of 100 us. "plain": the size and rate are left for the daemon to find out. "bare": each frame is also copied into
memory of its own, once before and once after put() in turn, so that what put() costs has something beside it: at
its own place ("bare_before"), and while what it woke up is at work ("bare_after").
At the end, or when interrupted (SIGINT), one line of JSON (on standard error where standard output has the frames).
"""

import json
import os
import signal
import sys
import time

import numpy

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../bins/spyglassd/python"))
from edge_spyglass import SpyGlass  # noqa: E402


def draw(frame, number, ticks):
    height, width = frame.shape[:2]
    for row, value in enumerate((number, ticks)):
        for bit in range(32):
            on = value >> (31 - bit) & 1
            frame[row * 16:row * 16 + 16, bit * width // 32:(bit + 1) * width // 32] = 235 if on else 16


class Raw(object):
    """The frames as they are, to standard output."""

    sent = dropped = 0
    error, state = "", "STREAMING"

    def start_streaming(self, *_):
        pass

    def put(self, frame, timestamp=None):
        sys.stdout.buffer.write(frame)

    def stop_streaming(self):
        pass


class Writer(Raw):
    """OpenCV's VideoWriter, as the reference has it."""

    def __init__(self, pipeline):
        self.pipeline = pipeline
        self.writer = None

    def start_streaming(self, fps, width, height):
        import cv2
        self.writer = cv2.VideoWriter(self.pipeline, cv2.CAP_GSTREAMER, 0, float(fps), (width, height), True)
        if not self.writer.isOpened():
            sys.exit("VideoWriter does not open " + self.pipeline)

    def put(self, frame, timestamp=None):
        self.writer.write(frame)

    def stop_streaming(self):
        self.writer.release()


def open_output(path, name):
    if path == "-":
        return Raw()
    if path.startswith("cv:"):
        return Writer(path[3:])
    return SpyGlass(name, socket_path=path)


def timed(costs, call, *arguments, **named):
    before = time.perf_counter()
    call(*arguments, **named)
    costs.append(time.perf_counter() - before)


def percentiles(what, costs):
    costs = sorted(costs)
    return {"%s_ms_p%d" % (what, p): costs[int(len(costs) * p / 100)] * 1e3 for p in (50, 95, 99)}


def main():
    path, name = sys.argv[1:3]
    width, height, fps = map(int, sys.argv[3:6])
    seconds = float(sys.argv[6])
    output = open_output(path, name)
    if sys.argv[7:] == ["plain"]:
        output.start_streaming()
    else:
        output.start_streaming(fps, width, height)
    base = numpy.linspace(30, 200, width, dtype=numpy.uint8)[None, :, None].repeat(height, 0).repeat(3, 2).copy()
    private = numpy.ones_like(base) if sys.argv[7:] == ["bare"] else None
    begun, all_cpu, own_cpu, put_cpu = time.monotonic(), time.process_time(), time.thread_time(), 0
    number, costs, bare_before, bare_after, interrupted = 0, [], [], [], []
    signal.signal(signal.SIGINT, lambda *_: interrupted.append(True))
    while time.monotonic() - begun < seconds and not interrupted:
        frame = base.copy()
        x = number * 4 % max(1, width - 40)
        frame[height // 2:height // 2 + 40, x:x + 40] = (40, 40, 230)
        now = time.monotonic()
        draw(frame, number, int(now * 10000) & 0xffffffff)
        if private is not None and number % 2:
            timed(bare_before, numpy.copyto, private, frame)
        before = time.thread_time()
        timed(costs, output.put, frame, timestamp=now)
        put_cpu += time.thread_time() - before
        if private is not None and number % 2 == 0:
            timed(bare_after, numpy.copyto, private, frame)
        number += 1
        time.sleep(max(0, begun + number / fps - time.monotonic()))
    # What is neither put() nor this loop is another thread's: the encoder of a VideoWriter.
    others_cpu = (time.process_time() - all_cpu) - (time.thread_time() - own_cpu)
    report = {
        "frames": number, "sent": output.sent, "dropped": output.dropped, "state": output.state, "error": output.error,
        "put_cpu_ms": put_cpu / number * 1e3, "others_cpu_ms": others_cpu / number * 1e3,
    }
    report.update(percentiles("put", costs))
    if bare_before:
        report.update(percentiles("bare_before", bare_before))
        report.update(percentiles("bare_after", bare_after))
    output.stop_streaming()
    print(json.dumps(report), file=sys.stderr if path == "-" else sys.stdout, flush=True)


main()

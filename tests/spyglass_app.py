"""An application for the tests of spyglassd: frames with a bar code of time and number, through edge_spyglass.

    spyglass_app.py SOCKET NAME WIDTH HEIGHT FPS SECONDS [plain]       (SOCKET "-": the raw frames to standard output)

The code is two rows of 32 blocks at the top of the picture: 32 bits of the frame's number, 32 bits of CLOCK_MONOTONIC in
units of 100 us. "plain": the size and rate are left for the daemon to find out. At the end, one line of JSON.
"""

import json
import os
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


def main():
    path, name = sys.argv[1:3]
    width, height, fps = map(int, sys.argv[3:6])
    seconds = float(sys.argv[6])
    spyglass = SpyGlass("-" if path == "-" else name, socket_path=path)
    if path == "-" or sys.argv[7:] == ["plain"]:
        spyglass.start_streaming()
    else:
        spyglass.start_streaming(fps, width, height)
    base = numpy.linspace(30, 200, width, dtype=numpy.uint8)[None, :, None].repeat(height, 0).repeat(3, 2).copy()
    begun = time.monotonic()
    number, costs = 0, []
    while time.monotonic() - begun < seconds:
        frame = base.copy()
        x = number * 4 % max(1, width - 40)
        frame[height // 2:height // 2 + 40, x:x + 40] = (40, 40, 230)
        now = time.monotonic()
        draw(frame, number, int(now * 10000) & 0xffffffff)
        before = time.perf_counter()
        if path == "-":
            sys.stdout.buffer.write(frame)
        else:
            spyglass.put(frame, timestamp=now)
        costs.append(time.perf_counter() - before)
        number += 1
        time.sleep(max(0, begun + number / fps - time.monotonic()))
    costs.sort()
    report = {
        "frames": number, "sent": spyglass.sent, "dropped": spyglass.dropped, "state": spyglass.state,
        "error": spyglass.error, "put_ms_p50": costs[len(costs) // 2] * 1e3,
        "put_ms_p99": costs[int(len(costs) * .99)] * 1e3,
    }
    spyglass.stop_streaming()
    if path != "-":
        print(json.dumps(report), flush=True)


main()

"""Checks edge_spyglass.py against a daemon made here, which looks into the memory that it shares.

    spyglass_client.py FOLDER [bare]          (exits with 0, or with the assertion that failed)

"bare": as on a machine without numpy; frames are bytes, bytearrays and memoryviews. The oldest Python that is promised
is 3.6, so this file keeps to it, too.
"""

import ast
import logging
import mmap
import os
import pathlib
import random
import socket
import struct
import sys
import tempfile

CLIENT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "../bins/spyglassd/python/edge_spyglass.py")
BARE = sys.argv[2:] == ["bare"]
if BARE:
    sys.modules["numpy"] = None
else:
    import numpy

sys.path.insert(0, os.path.dirname(CLIENT))
from edge_spyglass import SpyGlass, SpyGlassError, State, USE_LAST_VALUE  # noqa: E402

WIDTH, HEIGHT, SLOTS, SLOT_BYTES = 64, 48, 3, 64 * 48 * 3
SIZE = () if not BARE else (WIDTH, HEIGHT)


class Daemon(object):
    """The other end: one client, one ring."""

    def __init__(self, path):
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(path)
        self.listener.listen(1)
        self.listener.settimeout(5)

    def grant(self):
        """Answers a HELLO; the size and the rate that it says."""
        self.link, _ = self.listener.accept()
        self.link.settimeout(5)
        hello = self.link.recv(512)
        assert hello[:6] == b"SPY1\x01\x00", "HELLO"
        with tempfile.TemporaryFile() as memory:
            memory.truncate(SLOTS * SLOT_BYTES)
            self.memory = mmap.mmap(memory.fileno(), SLOTS * SLOT_BYTES)
            packet = struct.pack("<4sHHIIQQ", b"SPY1", 2, 32, SLOTS, 0, SLOT_BYTES, 0)
            rights = struct.pack("i", memory.fileno())
            self.link.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        width, height, _, _, fps, per = struct.unpack_from("<6I", hello, 8)
        return width, height, float(fps) / per

    def frame(self):
        """The slot, and what is in it."""
        words = struct.unpack("<4sHHIIIIQQ", self.link.recv(512))
        assert words[:3] == (b"SPY1", 3, 40) and words[4:7] == (WIDTH, HEIGHT, 0), words
        start = words[3] * SLOT_BYTES
        return words[3], self.memory[start:start + SLOT_BYTES]

    def release(self, slot):
        self.link.send(struct.pack("<4sHHII", b"SPY1", 4, 16, slot, 0))

    def refuse(self, why):
        self.link.send(struct.pack("<4sHH248s", b"SPY1", 5, 256, why))
        self.link.close()

    def hung_up(self):
        """Whether the client did."""
        return self.link.recv(512) == b""


class Heard(logging.Handler):
    """What loggers are told."""

    def __init__(self):
        logging.Handler.__init__(self)
        self.lines = []

    def emit(self, record):
        self.lines.append("%s: %s" % (record.name, record.getMessage()))


def pixels(seed):
    return bytes(bytearray(random.Random(seed).getrandbits(8) for _ in range(SLOT_BYTES)))


def picture(seed):
    """What an application has: an array, or without numpy bytes."""
    return pixels(seed) if BARE else numpy.frombuffer(pixels(seed), numpy.uint8).reshape(HEIGHT, WIDTH, 3)


def kinds(client):
    """The same pixels in three kinds of frames: ways to put the frames 1, 2 and 3."""
    if BARE:
        padded = memoryview(b"head" + pixels(3) + b"tail")
        return [lambda: client.put(pixels(1), WIDTH, HEIGHT),
                lambda: client.put(bytearray(pixels(2)), width=WIDTH, height=HEIGHT),
                lambda: client.put(padded[4:-4], WIDTH, HEIGHT)]
    wide = numpy.zeros((HEIGHT, WIDTH + 9, 3), numpy.uint8)
    wide[:, 4:4 + WIDTH] = picture(2)
    return [lambda: client.put(picture(1)),
            lambda: client.put(wide[:, 4:4 + WIDTH]),
            lambda: client.put(pixels(3), WIDTH, HEIGHT)]


def refused(call, *words):
    """That a mistake is told to the application, and in which words."""
    try:
        call()
    except SpyGlassError as error:
        assert all(word in str(error) for word in words), error
    else:
        raise AssertionError("%r was taken" % (words,))


def mistakes(client):
    """Mistakes of the application are told to it, and cost no slot."""
    free = sorted(client._free)
    assert free, "slots to be lost"
    for timestamp in (-5.0, float("nan"), float("inf"), -float("inf"), 1e300, 2.0 ** 63 / 1e9, "now", [1]):
        refused(lambda: client.put(picture(1), *SIZE, timestamp=timestamp), "timestamp", "expected seconds")
    for width, height in ((64.0, 48.0), ("64", "48")):
        refused(lambda: client.put(pixels(1), width, height), "width and height")
    refused(lambda: client.put(pixels(1), 0, 0), "width and height")
    refused(lambda: client.put(b"short", WIDTH, HEIGHT), "5 bytes")
    refused(lambda: client.put(memoryview(pixels(1) * 2)[::2], WIDTH, HEIGHT), "expected", "in one piece")
    refused(lambda: client.put(None), "expected", "NoneType")
    if not BARE:
        refused(lambda: client.put(picture(1).astype(numpy.float32)), "expected", "uint8")
        refused(lambda: client.put(picture(1)[:, :, 0]), "expected (height, width, 3)")
        refused(lambda: client.put(picture(1)[:0]), "at least one pixel")
    assert sorted(client._free) == free, "%r of %r are left" % (client._free, free)


def frames_and_slots(path):
    daemon = Daemon(path)
    client = SpyGlass("cam", socket_path=path)
    client.start_streaming()
    assert not client.put(picture(0), *SIZE), "the daemon has not answered"
    daemon.grant()
    held = []
    for number, give in enumerate(kinds(client)):
        assert give(), client.error
        slot, seen = daemon.frame()
        assert seen == pixels(number + 1), "the pixels of frame %d" % (number + 1)
        held.append(slot)
    assert sorted(held) == list(range(SLOTS)), "a slot is the daemon's until it is released: %r" % held
    assert not client.put(picture(4), *SIZE), "no slot is free"
    for slot in (held[1], held[0]):
        daemon.release(slot)
        assert client.put(picture(5), *SIZE, timestamp=2 ** 33), client.error
        assert daemon.frame() == (slot, pixels(5))
    assert (client.sent, client.dropped, client.state) == (5, 2, "STREAMING")
    for slot in range(SLOTS):
        daemon.release(slot)
    assert client.put(picture(6), *SIZE)
    daemon.release(daemon.frame()[0])
    mistakes(client)
    # The daemon's last word is kept, also when every slot is free and nothing is left to be heard.
    assert client.put(picture(7), *SIZE)
    daemon.release(daemon.frame()[0])
    client._listen()
    assert len(client._free) == SLOTS
    daemon.refuse(b"enough")
    assert not client.put(picture(8), *SIZE)
    assert (client.state, client.error) == ("ERROR", "enough"), client.error
    client.stop_streaming()


def calls_of_the_reference(path):
    """What applications written for backpack's class do: begin, end, begin again, with and without arguments."""
    daemon = Daemon(path)
    client = SpyGlass("cam", socket_path=path)
    assert (client.video_fps, client.video_width, client.video_height) == (None, None, None)
    assert client.state == SpyGlass.State.STOPPED == "STOPPED" and SpyGlass.State is State
    assert client.put(picture(1), *SIZE) is False and client.put(None) is False, "a frame while stopped is no mistake"
    assert (client.dropped, client.sent) == (2, 0)

    def session(said, seed, *arguments, **named):
        client.start_streaming(*arguments, **named)
        # Nobody accepts while it begins, so the answer comes after its tenth of a second.
        client.put(picture(0), *SIZE)
        assert client.state == SpyGlass.State.STARTING, client.error
        assert client.state is State.WARMUP and client.state is State.START_WARMUP
        heard = daemon.grant()
        assert heard == said, "%r %r: the daemon heard %r" % (arguments, named, heard)
        assert client.put(picture(seed), *SIZE) is True and daemon.frame()[1] == pixels(seed)
        assert client.state == SpyGlass.State.STREAMING and (client.sent, client.dropped) == (1, 1)
        assert (client.video_fps or 0, client.video_width, client.video_height) == (said[2], said[0], said[1])

    session((WIDTH, HEIGHT, 0), 1, fps=None, width=None, height=None)
    # A second start stops what is running.
    old, daemon.link = daemon.link, None
    session((WIDTH, HEIGHT, 12.5), 2, 12.5)
    assert old.recv(512) == b"", "the first connection is closed"
    old.close()
    # Again without arguments, while it runs and after an end: as before.
    session((WIDTH, HEIGHT, 12.5), 3)
    client.stop_streaming()
    assert daemon.hung_up() and client.state == SpyGlass.State.STOPPED
    assert client.put(picture(1), *SIZE) is False
    client.stop_streaming()
    session((WIDTH, HEIGHT, 12.5), 4)
    session((80, 50, 12.5), 5, USE_LAST_VALUE, 80.0, 50.0)
    session((80, 50, 0), 6, fps=0)
    # A width without a height, and the other way round: the first frame's.
    session((WIDTH, HEIGHT, 30), 7, 30, 99, None)
    session((WIDTH, HEIGHT, 30), 8, height=77, width=0)
    # A mistake in a start leaves what is running.
    for wrong in ({"fps": -1}, {"fps": 1001}, {"fps": float("nan")}, {"width": -64, "height": 48}, {"width": 1 << 16}):
        refused(lambda: client.start_streaming(**wrong), "expected fps from 0 to 1000")
    assert client.state == "STREAMING" and client.put(picture(9), *SIZE) and daemon.frame()[1] == pixels(9)
    client.stop_streaming()


def constructors_of_the_reference(path):
    client = SpyGlass(stream_region="us-east-1", stream_name="panorama-video", credentials_handler=object(),
                      dotenv_path="/nowhere/.env", gst_log_file="/nowhere/gst.log", gst_log_level="WARNING",
                      parent_logger=logging.getLogger("app"))
    assert client.name == "panorama-video" and client.logger.name == "app.SpyGlass"
    for name in ("", "a" * 65, "a b", ".a", "\u00e4", None, 5):
        refused(lambda: SpyGlass(name), "name", "expected")
    for slots in (-1, 33):
        refused(lambda: SpyGlass(slots=slots), "slots", "expected 0 to 32")
    # Trouble is no exception, but the logger hears of it, once.
    heard = Heard()
    logging.getLogger("app").addHandler(heard)
    logging.getLogger("app").propagate = False
    gone = SpyGlass("cam", pathlib.Path(path), parent_logger=logging.getLogger("app"))
    with gone:
        for _ in range(3):
            gone._ask_at = 0.0
            assert not gone.put(picture(1), *SIZE)
        assert gone.state == SpyGlass.State.ERROR and str(gone.state) == "ERROR"
        assert gone.error == "cannot connect to %s: No such file or directory; is spyglassd running?" % path
    assert heard.lines == ["app.SpyGlass: cam: cannot connect to %s: No such file or directory; is spyglassd running?"
                           % path], heard.lines
    # Of a path that no socket can have, Python says so itself.
    long = SpyGlass("cam", "/" + "a" * 108, parent_logger=logging.getLogger("app"))
    long.start_streaming()
    assert not long.put(picture(1), *SIZE)
    assert "too long" in long.error, long.error


def main():
    with open(CLIENT) as source:
        # The grammar of the oldest Python that is promised, where this one can check it.
        ast.parse(source.read(), CLIENT, **({"feature_version": (3, 6)} if sys.version_info >= (3, 8) else {}))
    for number, check in enumerate((frames_and_slots, calls_of_the_reference, constructors_of_the_reference)):
        check(os.path.join(sys.argv[1], "fake%d%s.sock" % (number, "b" if BARE else "")))


main()

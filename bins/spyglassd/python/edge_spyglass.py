"""Show what your application sees: hand its frames to spyglassd, the daemon that re-streams them.

    from edge_spyglass import SpyGlass

    spyglass = SpyGlass("my-app")
    spyglass.start_streaming()
    while True:
        ...
        spyglass.put(frame)        # a numpy array (height, width, 3), BGR as OpenCV has it; or bytes, see put()
    spyglass.stop_streaming()

Nothing in here waits for a viewer: put() copies the frame into memory that it shares with the daemon and sends one small
message; without a daemon, or without a free slot, the frame is dropped and counted. Once after start_streaming(), so
that the first frame is not lost, the daemon's answer is waited for, a tenth of a second at most; never again. The daemon
may start later, stop and come back. Standard library only; numpy is used for the copy when the frame is a numpy array.
Python 3.6 and later, Linux. The protocol is described in spyglassd's README.

An application written for backpack's SpyGlass, KVSSpyGlass or RTSPSpyGlass changes the import, and its constructor's
arguments where it has no use for a name:

    from edge_spyglass import SpyGlass as KVSSpyGlass

start_streaming(), put(), stop_streaming(), state, State, logger, video_fps, video_width, video_height and USE_LAST_VALUE
are there and mean the same. Of the constructor's arguments, parent_logger and stream_name are used; gst_log_file,
gst_log_level, dotenv_path, stream_region and credentials_handler are accepted and ignored, for encoding and uploading are
the daemon's (see its OUTPUTS.md). Different: there is no warm-up, the states of it are STARTING, and put() is True from
the first frame on; a frame that is no picture is a SpyGlassError; the object needs no subclass.
"""

import array
import enum
import errno
import logging
import mmap
import operator
import os
import select
import socket
import struct
import time

__all__ = ["SpyGlass", "SpyGlassError", "State", "USE_LAST_VALUE"]
__version__ = "0.1.0"

DEFAULT_SOCKET = "/run/edge/spyglassd/frames.sock"
#: For start_streaming(): what the last session had; in the first one, what the frames turn out to have.
USE_LAST_VALUE = -999

_FORMATS = {"BGR": (1, 3), "RGB": (2, 3), "BGRA": (3, 4), "GRAY8": (4, 1), "NV12": (5, 0), "I420": (6, 0)}
_HEADER = struct.Struct("<4sHH")
_HELLO = struct.Struct("<4sHH8I64s")
_RING = struct.Struct("<4sHHIIQQ")
_FRAME = struct.Struct("<4sHHIIIIQQ")
_RELEASE = struct.Struct("<4sHHII")
_MAGIC = b"SPY1"
_ASK_AGAIN_S = 1.0
_FIRST_ANSWER_S = 0.1
# A daemon that went away is an answer of send(), also in an application that wants SIGPIPE.
_NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)
# The pages of the slots are made when the memory comes, not under a frame: a page fault is some microseconds, a 720p frame
# has 675 pages, and the slots beyond the second are needed first when the machine is busy anyway. A larger ring is for
# whoever asks for it: of it, so much is made at once, from its end on, where the slots are that are used first.
_TOUCHED_BYTES = 128 << 20


class SpyGlassError(RuntimeError):
    """A mistake in how the class is used. Trouble with the daemon is never an exception: see SpyGlass.error."""


class State(str, enum.Enum):
    """What SpyGlass.state says. Each is equal to its name, too."""

    STOPPED = "STOPPED"      # start_streaming() was not called
    STARTING = "STARTING"    # started; the daemon has not answered yet
    STREAMING = "STREAMING"  # frames are handed over
    ERROR = "ERROR"          # the daemon is not there or refused (SpyGlass.error says why); tried again each second
    START_WARMUP = "STARTING"  # other names of STARTING
    WARMUP = "STARTING"

    def __str__(self):
        return self.value


class SpyGlass(object):
    """One stream of frames to spyglassd."""

    State = State

    def __init__(self, name="app", socket_path=None, pixel_format="BGR", slots=0, parent_logger=None,
                 stream_name=None, gst_log_file=None, gst_log_level=None, dotenv_path=None, stream_region=None,
                 credentials_handler=None):
        """name (or stream_name): the stream's, 1 to 64 letters, digits, '-', '_', '.', not beginning with '.'.
        socket_path: where the daemon listens (default: $EDGE_SPYGLASS_SOCKET, else
        /run/edge/spyglassd/frames.sock). pixel_format: BGR, RGB, BGRA, GRAY8, NV12 or I420. slots: frames that may be
        on their way at once, at most 32, 0 = the daemon's choice. parent_logger: the parent of the logger that is
        told why frames are not handed over, when that changes. The others are accepted and ignored."""
        name = name if stream_name is None else stream_name
        if pixel_format not in _FORMATS:
            raise SpyGlassError("pixel_format %r: expected one of %s" % (pixel_format, ", ".join(sorted(_FORMATS))))
        encoded = name.encode("ascii", "replace") if isinstance(name, str) else b""
        if not 1 <= len(encoded) <= 64 or not all(chr(c).isalnum() or c in b"-_." for c in encoded) \
                or encoded.startswith(b"."):
            raise SpyGlassError("name %r: expected 1 to 64 letters, digits, '-', '_' or '.', not beginning with '.'"
                                % (name,))
        if not 0 <= slots <= 32:
            raise SpyGlassError("slots %r: expected 0 to 32" % (slots,))
        self.name = name
        self.logger = (parent_logger.getChild if parent_logger else logging.getLogger)(type(self).__name__)
        self.pixel_format = pixel_format
        self.error = ""       #: why frames are not handed over
        self.sent = 0         #: frames handed over since start_streaming()
        self.dropped = 0      #: frames dropped since start_streaming(), by whatever cause; also those put while stopped
        self._path = os.fspath(socket_path) if socket_path else os.environ.get("EDGE_SPYGLASS_SOCKET") or DEFAULT_SOCKET
        self._wanted_slots = slots
        self._running = False
        self._fps = 0          # as declared; 0 = the daemon finds out
        self._size = None      # the size said in HELLO
        self._socket = None
        self._memory = None
        self._slots = 0
        self._slot_bytes = 0
        self._free = []
        self._answered = False
        self._no_slot = 0      # of this connection
        self._ask_at = 0.0
        self._first = False    # the daemon's first answer is still to be waited for
        self._pid = os.getpid()

    # The life cycle.

    def start_streaming(self, fps=USE_LAST_VALUE, width=USE_LAST_VALUE, height=USE_LAST_VALUE):
        """Begins; what was begun before is stopped first. Of what is None or 0, the first frame says the size, and the
        daemon finds out the rate on the way; so it is with a width without a height. With a size, the daemon is told
        at once and has its memory ready for the first frame. What is left out is as in the last session."""
        last = self._size or (0, 0)
        fps = self._fps if fps == USE_LAST_VALUE else fps or 0
        width = last[0] if width == USE_LAST_VALUE else width or 0
        height = last[1] if height == USE_LAST_VALUE else height or 0
        if not 0 <= fps <= 1000 or not 0 <= width <= 65535 or not 0 <= height <= 65535:
            raise SpyGlassError("fps %r, width %r, height %r: expected fps from 0 to 1000, width and height from 0 to 65535"
                                % (fps, width, height))
        self.stop_streaming()
        self._fps = fps
        self._size = (int(width), int(height)) if int(width) and int(height) else None
        self._running = True
        self.sent = self.dropped = 0
        self._ask_at = 0.0
        self._first = True
        if self._size:
            self._connect(time.monotonic())
            self._await_first()

    def stop_streaming(self):
        """Ends. Frames on their way still arrive. start_streaming() begins anew."""
        self._hang_up("")
        self._running = False

    def __enter__(self):
        if not self._running:
            self.start_streaming()
        return self

    def __exit__(self, *_):
        self.stop_streaming()

    @property
    def state(self):
        """One of State."""
        if not self._running:
            return State.STOPPED
        if self._answered:
            return State.STREAMING
        return State.ERROR if self.error else State.STARTING

    @property
    def video_fps(self):
        """Frames a second as declared; None when the daemon finds out."""
        return self._fps or None

    @property
    def video_width(self):
        """Pixels a row as declared, else of the first frame; None before it."""
        return self._size[0] if self._size else None

    @property
    def video_height(self):
        """Rows as declared, else of the first frame; None before it."""
        return self._size[1] if self._size else None

    # Frames.

    def put(self, frame, width=0, height=0, timestamp=None):
        """Hands a frame over; False when it was dropped, as all are that come before start_streaming() or after
        stop_streaming().

        frame: a numpy array of uint8, (height, width, channels) or (height, width), its rows may be padded; or any
        bytes-like object with packed rows, then with width and height. timestamp: seconds on any clock that never
        goes back, from 0 on; the default is now."""
        if not self._running:
            self.dropped += 1
            return False
        if self._pid != os.getpid():
            # After a fork the connection is the parent's.
            self._forget()
            self._pid = os.getpid()
        # Whatever can be wrong with the arguments is found before a slot is taken.
        ns = _nanoseconds(timestamp)
        pixels, width, height = self._geometry(frame, width, height)
        size = _packed(self.pixel_format, width, height)
        slot = self._slot(width, height, size)
        if slot is None:
            self.dropped += 1
            return False
        start = slot * self._slot_bytes
        try:
            if pixels is not None:
                self._memory[start:start + size] = pixels
            else:
                self._copy_rows(frame, start, size)
            packet = _FRAME.pack(_MAGIC, 3, _FRAME.size, slot, width, height, 0, ns, self._no_slot)
        except BaseException:
            self._free.append(slot)
            raise
        try:
            self._socket.send(packet, _NO_SIGNAL)
        except (BlockingIOError, InterruptedError):
            self._free.append(slot)
            self.dropped += 1
            return False
        except OSError as error:
            self._gone(error)
            self.dropped += 1
            return False
        self.sent += 1
        return True

    def _geometry(self, frame, width, height):
        """The frame as packed bytes (None: rows are padded) and its size in pixels."""
        dtype = getattr(frame, "dtype", None)
        channels = _FORMATS[self.pixel_format][1]
        if dtype is None:
            try:
                view = memoryview(frame).cast("B")
                width, height = operator.index(width), operator.index(height)
            except TypeError as error:
                raise SpyGlassError("a frame of %s: expected a numpy array of uint8, or bytes in one piece with width "
                                    "and height in pixels (%s)" % (type(frame).__name__, error))
            if width <= 0 or height <= 0:
                raise SpyGlassError("a frame of bytes needs its width and height")
            if len(view) != _packed(self.pixel_format, width, height):
                raise SpyGlassError(
                    "%d bytes: %s of %dx%d has %d"
                    % (len(view), self.pixel_format, width, height, _packed(self.pixel_format, width, height)))
            return view, width, height
        if getattr(dtype, "str", "") != "|u1":
            raise SpyGlassError("a frame of %s: expected a numpy array of uint8" % dtype)
        shape = frame.shape
        if 0 in shape:
            raise SpyGlassError("shape %r: expected at least one pixel" % (shape,))
        packed = frame if frame.flags.c_contiguous else None
        if channels == 0:
            # OpenCV's planar pictures have one and a half times the rows.
            if len(shape) != 2 or shape[0] % 3 or shape[1] % 2:
                raise SpyGlassError("shape %r: expected (height * 3 / 2, width), both even, for %s"
                                    % (shape, self.pixel_format))
            return packed, shape[1], shape[0] * 2 // 3
        if tuple(shape[2:]) != ((channels,) if channels > 1 else tuple(shape[2:3])) or len(shape) not in (2, 3):
            raise SpyGlassError("shape %r: expected (height, width%s) for %s"
                                % (shape, ", %d" % channels if channels > 1 else "", self.pixel_format))
        if channels == 1 and len(shape) == 3 and shape[2] != 1:
            raise SpyGlassError("shape %r: expected one channel for %s" % (shape, self.pixel_format))
        return packed, shape[1], shape[0]

    def _copy_rows(self, frame, start, size):
        """Copies a numpy array whose rows are not packed."""
        import numpy
        slot = numpy.frombuffer(self._memory, numpy.uint8, size, start)
        numpy.copyto(slot.reshape(frame.shape), frame)

    # The connection.

    def _slot(self, width, height, size):
        """A free slot that holds size bytes, or None."""
        if self._socket is None:
            self._size = (width, height)
            self._connect(time.monotonic())
        self._await_first()
        self._listen()
        if not self._answered:
            return None
        if size > self._slot_bytes:
            self._size = (width, height)
            self._hello()
            self._listen()
            if not self._answered or size > self._slot_bytes:
                return None
        if not self._free:
            self._no_slot += 1
            return None
        return self._free.pop()

    def _await_first(self):
        if self._first and self._socket is not None and not self._answered:
            select.select([self._socket], [], [], _FIRST_ANSWER_S)
            self._listen()
        self._first = False

    def _connect(self, now):
        if now < self._ask_at:
            return
        self._ask_at = now + _ASK_AGAIN_S
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            link.setblocking(False)
            link.connect(self._path)
        except OSError as error:
            link.close()
            hint = ""
            if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
                hint = "; is spyglassd running?"
            elif error.errno == errno.EACCES:
                hint = "; this user must be in the group of the socket (edge)"
            # A path that is too long is found by Python, not by the system: that error has no number.
            return self._complain("cannot connect to %s: %s%s" % (self._path, error.strerror or error, hint))
        self._socket = link
        self._no_slot = 0
        self._hello()

    def _hello(self):
        self._drop_memory()
        width, height = self._size
        packet = _HELLO.pack(
            _MAGIC, 1, _HELLO.size, width, height, 0, _FORMATS[self.pixel_format][0],
            int(round(self._fps * 1000)), 1000, self._wanted_slots, 0, self.name.encode("ascii"))
        try:
            self._socket.send(packet, _NO_SIGNAL)
        except OSError as error:
            self._gone(error)

    def _listen(self):
        """Reads what the daemon has said; all of it, where it has to answer, else no more than slots it holds."""
        while self._answered and len(self._free) < self._slots:
            try:
                packet = self._socket.recv(512)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                return self._hang_up("the daemon is gone (%s)" % error.strerror)
            self._heard(packet, ())
        while self._socket is not None and not self._answered:
            try:
                packet, extra, _, _ = self._socket.recvmsg(
                    512, socket.CMSG_SPACE(4), getattr(socket, "MSG_CMSG_CLOEXEC", 0))
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                return self._hang_up("the daemon is gone (%s)" % error.strerror)
            descriptors = array.array("i")
            for level, kind, data in extra:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    descriptors.frombytes(data[:len(data) - len(data) % descriptors.itemsize])
            try:
                self._heard(packet, descriptors)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)

    def _heard(self, packet, descriptors):
        if not packet:
            return self._hang_up(self.error or "the daemon hung up")
        kind = _kind(packet)
        if kind == 4 and len(packet) == _RELEASE.size:
            self._free.append(_RELEASE.unpack(packet)[3])
        elif kind == 2 and len(packet) == _RING.size and descriptors:
            slots, slot_bytes = _RING.unpack(packet)[3], _RING.unpack(packet)[5]
            self._drop_memory()
            self._memory = mmap.mmap(descriptors[0], slots * slot_bytes)
            self._slots = slots
            self._slot_bytes = slot_bytes
            # The last one released is used next: it is the one that caches still know.
            self._free = list(range(slots))
            size = slots * slot_bytes
            for at in range(max(0, size - _TOUCHED_BYTES) // mmap.PAGESIZE * mmap.PAGESIZE, size, mmap.PAGESIZE):
                self._memory[at] = 0
            self._answered = True
            self.error = ""
        elif kind == 5:
            self._hang_up(packet[_HEADER.size:].rstrip(b"\0").decode("utf-8", "replace"))
        else:
            self._hang_up("the daemon speaks another protocol than SPY1")

    def _drop_memory(self):
        self._answered = False
        self._free = []
        self._slot_bytes = 0
        memory, self._memory = self._memory, None
        if memory is not None:
            try:
                memory.close()
            except BufferError:
                pass  # A view of it is still alive; it goes with the last one.

    def _hang_up(self, why):
        self._drop_memory()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
            self._ask_at = time.monotonic() + _ASK_AGAIN_S
        self._complain(why)

    def _complain(self, why):
        """Why frames are not handed over, "" when nothing is wrong; the logger hears of it once."""
        if why and why != self.error:
            self.logger.warning("%s: %s", self.name, why)
        self.error = why

    def _gone(self, error):
        """The daemon did not take a message. If it said why before it hung up, that is the reason."""
        try:
            packet = self._socket.recv(512)
            while _kind(packet) not in (0, 5):
                packet = self._socket.recv(512)
        except OSError:
            packet = b""
        if packet:
            self._heard(packet, ())
        if self._socket is not None:
            self._hang_up("the daemon is gone (%s)" % error.strerror)

    def _forget(self):
        self._hang_up("")
        self._ask_at = 0.0


def _kind(packet):
    """The type of a message; 0 of what is none."""
    return _HEADER.unpack_from(packet)[1] if len(packet) >= _HEADER.size else 0


def _nanoseconds(timestamp):
    """Seconds as the protocol has them; None is now."""
    if timestamp is None:
        return int(time.monotonic() * 1e9)
    try:
        seconds = float(timestamp)
    except (TypeError, ValueError):
        seconds = -1.0
    # Half of what 64 bits hold: some 292 years. A number that is none is not in between, either.
    if not 0 <= seconds < (1 << 63) / 1e9:
        raise SpyGlassError("timestamp %r: expected seconds on a clock that never goes back, from 0 on" % (timestamp,))
    return int(seconds * 1e9)


def _packed(pixel_format, width, height):
    """Bytes of a frame with packed rows."""
    channels = _FORMATS[pixel_format][1]
    if channels:
        return width * height * channels
    rows = (height + 1) // 2
    if pixel_format == "NV12":
        row = width + width % 2
        return row * height + row * rows
    return width * height + 2 * ((width + 1) // 2) * rows

"""Checks edge_spyglass.py against a daemon made here, which looks into the memory that it shares.

    spyglass_client.py FOLDER                 (exits with 0, or with the assertion that failed)
"""

import mmap
import os
import socket
import struct
import sys

import numpy

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../bins/spyglassd/python"))
from edge_spyglass import SpyGlass, SpyGlassError  # noqa: E402

WIDTH, HEIGHT, SLOTS, SLOT_BYTES = 64, 48, 3, 64 * 48 * 3


class Daemon(object):
    """The other end: one client, one ring."""

    def __init__(self, path):
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.bind(path)
        self.listener.listen(1)

    def grant(self):
        self.link, _ = self.listener.accept()
        self.link.settimeout(5)
        assert self.link.recv(512)[:6] == b"SPY1\x01\x00", "HELLO"
        memory = os.memfd_create("ring")
        os.ftruncate(memory, SLOTS * SLOT_BYTES)
        self.memory = mmap.mmap(memory, SLOTS * SLOT_BYTES)
        packet = struct.pack("<4sHHIIQQ", b"SPY1", 2, 32, SLOTS, 0, SLOT_BYTES, 0)
        rights = struct.pack("i", memory)
        self.link.sendmsg([packet], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        os.close(memory)

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


def picture(seed):
    return numpy.random.RandomState(seed).randint(0, 256, (HEIGHT, WIDTH, 3)).astype(numpy.uint8)


def main():
    path = os.path.join(sys.argv[1], "fake.sock")
    daemon = Daemon(path)
    client = SpyGlass("cam", socket_path=path)
    client.start_streaming()
    assert not client.put(picture(0)), "the daemon has not answered"
    daemon.grant()
    # Packed rows, padded rows, bytes: the same pixels arrive.
    wide = numpy.zeros((HEIGHT, WIDTH + 9, 3), numpy.uint8)
    wide[:, 4:4 + WIDTH] = picture(2)
    held = []
    for number, give in enumerate([
            lambda: client.put(picture(1)),
            lambda: client.put(wide[:, 4:4 + WIDTH]),
            lambda: client.put(picture(3).tobytes(), WIDTH, HEIGHT)]):
        assert give(), client.error
        slot, pixels = daemon.frame()
        assert pixels == picture(number + 1).tobytes(), "the pixels of frame %d" % (number + 1)
        held.append(slot)
    assert sorted(held) == list(range(SLOTS)), "a slot is the daemon's until it is released: %r" % held
    assert not client.put(picture(4)), "no slot is free"
    for slot in (held[1], held[0]):
        daemon.release(slot)
        assert client.put(picture(5)), client.error
        assert daemon.frame() == (slot, picture(5).tobytes())
    # Mistakes of the application are told to it, and cost no slot.
    for wrong in (picture(1).astype(numpy.float32), picture(1)[:, :, 0], b"short"):
        try:
            client.put(wrong, WIDTH, HEIGHT)
            raise AssertionError("%r was taken" % (wrong,))
        except SpyGlassError as error:
            assert "expected" in str(error) or "bytes" in str(error), error
    assert (client.sent, client.dropped, client.state) == (5, 2, "STREAMING")
    # The daemon's last word is kept, also when every slot is free and nothing is left to be heard.
    for slot in range(SLOTS):
        daemon.release(slot)
    assert client.put(picture(6))
    daemon.release(daemon.frame()[0])
    assert client.put(picture(7))
    daemon.release(daemon.frame()[0])
    client._listen()
    assert len(client._free) == SLOTS
    daemon.refuse(b"enough")
    assert not client.put(picture(8))
    assert (client.state, client.error) == ("ERROR", "enough"), client.error
    client.stop_streaming()


main()

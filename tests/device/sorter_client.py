#!/usr/bin/python3
"""An arm for a device that has nothing but Python: WebSocket by hand, pictures drawn elsewhere (`sorter_arm.py draw`).

    sorter_client.py send FOLDER SESSION [FIRST [END]]    the pictures of the folder, one connection each
    sorter_client.py ask FOLDER SESSION FILE              what to do; held against what was drawn, and written to FILE
"""
import base64
import json
import os
import socket
import struct
import sys

PORT = 6000
TIMEOUT_S = 120
# Of pulse width: two pixels of a box that is a little off.
TOLERANCE = 8.0
TEXT, BINARY = 1, 2
ITEM, CONTAINER = 0, 1


def connect():
    stream = socket.create_connection(("127.0.0.1", PORT), TIMEOUT_S)
    key = base64.b64encode(os.urandom(16)).decode()
    head = ("GET / HTTP/1.1", f"Host: 127.0.0.1:{PORT}", "Upgrade: websocket", "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", "")
    stream.sendall("\r\n".join(head).encode())
    answer = b""
    while b"\r\n\r\n" not in answer:
        more = stream.recv(1)
        if not more:
            raise OSError(f"no upgrade: {answer!r}")
        answer += more
    if b" 101 " not in answer:
        raise OSError(f"no upgrade: {answer!r}")
    return stream


def exactly(stream, count):
    data = b""
    while len(data) < count:
        more = stream.recv(count - len(data))
        if not more:
            raise OSError("the connection ended before the answer")
        data += more
    return data


def ask(kind, payload):
    """A message on a connection of its own, and its answer."""
    with connect() as stream:
        mask = os.urandom(4)
        masked = bytes(b ^ mask[n & 3] for n, b in enumerate(payload))
        stream.sendall(bytes([0x80 | kind, 0x80 | 127]) + struct.pack(">Q", len(payload)) + mask + masked)
        length = exactly(stream, 2)[1] & 127
        if length == 126:
            length = struct.unpack(">H", exactly(stream, 2))[0]
        elif length == 127:
            length = struct.unpack(">Q", exactly(stream, 8))[0]
        return json.loads(exactly(stream, length))


def send(scene, folder, session, first=0, end=None):
    wrong = 0
    for name in scene["pictures"][int(first):None if end is None else int(end)]:
        headers = {"command": "recv_img_proc", "arm_id": "arm1", "session_id": session, "image_name": name}
        with open(os.path.join(folder, name), "rb") as file:
            answer = ask(BINARY, json.dumps(headers).encode() + b"___SPLIT___" + file.read())
        print(f"{name}: {answer}")
        wrong += answer is not True
    return wrong


def nearest(things, kind, place):
    """Number of the drawn thing at this place, or None."""
    off = lambda thing: max(abs(a - b) for a, b in zip(thing["servo"], place))
    number = min((n for n, thing in enumerate(things) if thing["kind"] == kind), key=lambda n: off(things[n]))
    return number if off(things[number]) <= TOLERANCE else None


def commands(scene, session, file):
    question = {"command": "get_commands_of_session", "arm_id": "arm1", "session_id": session,
                "arm_constants": scene["arm_constants"]}
    answer = ask(TEXT, json.dumps(question).encode())
    with open(file, "w") as out:
        json.dump(answer, out)
    if not isinstance(answer, list):
        print(answer)
        return 1
    things = scene["things"]
    moves = [(nearest(things, ITEM, item), nearest(things, CONTAINER, to)) for item, to in answer]
    items = sorted(n for n, thing in enumerate(things) if thing["kind"] == ITEM)
    pairs = {(things[item]["look"], to) for item, to in moves if item is not None}
    looks, targets = {look for look, _ in pairs}, {to for _, to in pairs}
    print(f"{len(answer)} commands for {len(items)} items of {len(looks)} looks into {len(targets)} containers")
    # Every item once, each look into one container of its own.
    right = sorted(item if item is not None else -1 for item, _ in moves) == items
    return 0 if right and None not in targets and len(pairs) == len(looks) == len(targets) else 1


def main():
    action, folder, session, *more = sys.argv[1:]
    with open(os.path.join(folder, "scene.json")) as file:
        scene = json.load(file)
    return send(scene, folder, session, *more) if action == "send" else commands(scene, session, *more)


if __name__ == "__main__":
    sys.exit(1 if main() else 0)

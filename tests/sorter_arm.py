"""A sorting arm for the tests, the demo and the bench of sorterd: draws a scene, sends its pictures, asks what to do.

    sorter_arm.py self-test                       the formulas against values worked out by hand
    sorter_arm.py draw SCENE FOLDER [--seed N]    the pictures of a scene as files
    sorter_arm.py play HOST:PORT SCENE [--arm A] [--session S] [--seed N] [--after] [--stitch] [--tolerance PW] [--show]
                                                  a session; the answer is held against what was drawn
    sorter_arm.py load HOST:PORT COUNT [--folder F]     so many pictures, five at once: rate and times of the answers
    sorter_arm.py log HOST:PORT                   one record through Python's own logging.handlers.HTTPHandler

One connection a picture, five at once, as arms do. Ends with one line of JSON; exit code 1 when something was not right.
"""
import argparse
import json
import logging
import logging.handlers
import os
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import sorter_scene as scene

AT_ONCE = 5
TIMEOUT_S = 60


def connect(host):
    import websocket  # `log` and `draw` need none

    return websocket.create_connection(f"ws://{host}/", timeout=TIMEOUT_S)


def send_picture(host, headers, picture):
    """The answer to one picture, and how long it took from connecting to it, in ms."""
    begun = time.monotonic()
    socket = connect(host)
    try:
        socket.send_binary(json.dumps(headers).encode() + b"___SPLIT___" + picture)
        answer = json.loads(socket.recv())
    finally:
        socket.close()
    return answer, (time.monotonic() - begun) * 1000


def send_all(host, messages):
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda message: send_picture(host, *message), messages))


def ask(host, text, answered=True):
    socket = connect(host)
    try:
        socket.send(json.dumps(text))
        return json.loads(socket.recv()) if answered else None
    finally:
        socket.close()


def fetch(host, path):
    with urllib.request.urlopen(f"http://{host}{path}", timeout=TIMEOUT_S) as answer:
        return json.load(answer)


def pictures(args, table, command):
    for base, name in zip(table.bases, table.names()):
        headers = {"command": command, "arm_id": args.arm, "session_id": args.session, "image_name": name}
        yield headers, table.picture(base)


# --- Holding the answer against what was drawn.

def from_boxes(table, session):
    """The right commands, worked out from the boxes that the daemon found: exact to the last digit."""
    sightings = {scene.ITEM: [], scene.CONTAINER: []}
    images = [image for image in session["images"] if not image["after"]]
    for image in sorted(images, key=lambda image: float(image["image"].rsplit(".", 1)[0])):
        base, size = float(image["image"].rsplit(".", 1)[0]), (image["width"], image["height"])
        for found in sorted(image["objects"], key=lambda found: found["id"]):
            kind = scene.ITEM if found["class"] == 0 else scene.CONTAINER
            where = scene.position(found["box"], base, size, table.arm)
            sightings[kind].append((*where, found["id"]))
    items, containers = scene.unique(sightings[scene.ITEM]), scene.unique(sightings[scene.CONTAINER])
    return scene.commands(items, containers, lambda item: table.nearest(item[0], item[1], scene.ITEM)[0].look)


def numbering(table, session):
    """The order in which the detector numbered what is on a picture."""
    boxes = {}
    for image in session["images"]:
        boxes[image["image"]] = sorted(image["objects"], key=lambda found: found["id"])

    def order(base, thing):
        x, y = thing.pixel(base, table.arm)
        found = boxes.get(f"{base}.jpg", [])
        middle = lambda f: abs((f["box"][0] + f["box"][2]) / 2 - x) + abs((f["box"][1] + f["box"][3]) / 2 - y)
        return min(range(len(found)), key=lambda n: middle(found[n]), default=0)

    return order


def difference(got, want):
    """The greatest difference of two lists of commands; None when they are not of one length."""
    if not isinstance(got, list) or len(got) != len(want):
        return None
    flat = lambda commands: [value for command in commands for pair in command for value in pair]
    return max((abs(a - b) for a, b in zip(flat(got), flat(want))), default=0.0)


def missed(table, session):
    """Things that are drawn on a picture and not found, and boxes where nothing is drawn."""
    problems = []
    for image in session["images"]:
        if image["after"]:
            continue
        base = int(image["image"].split(".")[0])
        left = list(image["objects"])
        for thing in table.things:
            if not thing.seen(base, table.arm):
                continue
            x, y = thing.pixel(base, table.arm)
            hit = [f for f in left if (f["class"] == 0) == (thing.kind == scene.ITEM)
                   and abs((f["box"][0] + f["box"][2]) / 2 - x) < 8 and abs((f["box"][1] + f["box"][3]) / 2 - y) < 8]
            if len(hit) != 1:
                problems.append(f"{image['image']}: {len(hit)} boxes for a {thing.shape} at {x:.0f},{y:.0f}")
            left = [f for f in left if f not in hit]
        problems += [f"{image['image']}: a box of class {f['class']} around nothing: {f['box']}" for f in left]
    return problems


def play(args):
    table = scene.Scene(args.scene, args.seed)
    arm = dict(table.arm, arm_id=args.arm)
    sent = send_all(args.host, list(pictures(args, table, "recv_img_proc")))
    report = {"answers": [answer for answer, _ in sent], "times_ms": [round(ms, 1) for _, ms in sent]}
    problems = [f"{name}: answered {answer}" for (answer, _), name in zip(sent, table.names()) if answer is not True]
    question = {"command": "get_commands_of_session", "arm_id": args.arm, "session_id": args.session, "arm_constants": arm}
    begun = time.monotonic()
    report["commands"] = got = ask(args.host, question)
    report["commands_ms"] = round((time.monotonic() - begun) * 1000, 1)
    if got != ask(args.host, question):
        problems.append("asked twice, it answers differently")
    session = fetch(args.host, f"/api/sessions/{args.arm}/{args.session}")
    problems += missed(table, session)
    exact = difference(got, from_boxes(table, session))
    report["drawn"] = table.expected(numbering(table, session))
    report["off_exact"], report["off_drawn"] = exact, difference(got, report["drawn"])
    if exact is None or exact > 1e-6:
        problems.append(f"not what the formulas make of its own boxes: off by {exact}")
    if report["off_drawn"] is None or report["off_drawn"] > args.tolerance:
        problems.append(f"not what was drawn: off by {report['off_drawn']}")
    if args.after:
        after = send_all(args.host, list(pictures(args, table, "recv_img_after")))
        problems += [f"after: answered {answer}" for answer, _ in after if answer is not True]
    if args.stitch:
        ask(args.host, {"command": "stitch_after_image", "arm_id": args.arm, "session_id": args.session}, answered=False)
    return dict(report, problems=problems)


def show(args, report):
    """For people: each command beside what is right by the drawing."""
    table = scene.Scene(args.scene, args.seed)
    times = sorted(report["times_ms"])
    print(f"scene {args.scene}: {len(table.bases)} pictures, answered within {times[-1]:.0f} ms each (five at once), "
          f"{len(report['commands'])} commands in {report['commands_ms']:.0f} ms")
    print("      from (servo 0, 1)      to (servo 0, 1)        what is right                               ")
    for n, (got, want) in enumerate(zip(report["commands"], report["drawn"]), 1):
        thing, _ = table.nearest(*want[0], scene.ITEM)
        what = f"{scene.NAMES[thing.look]} {thing.shape}"
        values = [f"({a:7.1f}, {b:7.1f})" for a, b in (*got, *want)]
        print(f"  {n:2}  {values[0]}  -> {values[1]}    {values[2]} -> {values[3]}  {what}")
    for problem in report["problems"]:
        print(f"  NOT RIGHT: {problem}")
    if not report["problems"]:
        print(f"  all of it right, within {report['off_drawn']:.1f} of pulse width of what was drawn")


def load(args):
    """Pictures as fast as five connections at a time go, all in sessions of their own by tens."""
    if args.folder:
        names = sorted(name for name in os.listdir(args.folder) if name.endswith(".jpg"))
        images = [(name, open(os.path.join(args.folder, name), "rb").read()) for name in names]
    else:
        table = scene.Scene("sort", args.seed)
        images = [(f"{base}.jpg", table.picture(base)) for base in table.bases]
    messages = []
    for n in range(args.count):
        name, picture = images[n % len(images)]
        session = f"load{n // len(images)}"
        headers = {"command": "recv_img_proc", "arm_id": args.arm, "session_id": session, "image_name": name}
        messages.append((headers, picture))
    send_picture(args.host, *messages[0])
    begun = time.monotonic()
    sent = send_all(args.host, messages)
    took = time.monotonic() - begun
    times = sorted(ms for _, ms in sent)
    wrong = sum(answer is not True for answer, _ in sent)
    return {
        "pictures": args.count, "per_second": args.count / took, "p50_ms": times[len(times) // 2],
        "p95_ms": times[int(len(times) * 0.95)], "problems": [f"{wrong} pictures refused"] if wrong else [],
    }


def draw(args):
    table = scene.Scene(args.scene, args.seed)
    os.makedirs(args.folder, exist_ok=True)
    for base, name in zip(table.bases, table.names()):
        with open(os.path.join(args.folder, name), "wb") as file:
            file.write(table.picture(base))
    things = [{"kind": t.kind, "look": t.look, "servo": [t.servo0, table.servo1(t)]} for t in table.things]
    return {"pictures": table.names(), "arm_constants": table.arm, "things": things, "problems": []}


def log(args):
    """What the service that sorterd replaces sent to the panel: a record whose only argument is a dict."""
    logger = logging.getLogger("sorterbot_cloud")
    logger.setLevel(logging.INFO)
    # A formatter before it is what gives a record its `asctime`.
    console = logging.StreamHandler(sys.stderr)
    console.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(console)
    logger.addHandler(logging.handlers.HTTPHandler(args.host, "/log/", method="POST"))
    logger.info("Received picture %(log_type)s", {"arm_id": args.arm, "session_id": args.session, "log_type": "1500", "bm_id": 2})
    return {"problems": []}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    for name in ("self-test", "draw", "play", "load", "log"):
        action = actions.add_parser(name)
        if name in ("play", "load", "log"):
            action.add_argument("host")
        if name in ("play", "draw"):
            action.add_argument("scene", choices=sorted(scene.SCENES))
        if name == "draw":
            action.add_argument("folder")
        if name == "load":
            action.add_argument("count", type=int)
            action.add_argument("--folder")
        if name == "play":
            action.add_argument("--after", action="store_true")
            action.add_argument("--stitch", action="store_true")
            action.add_argument("--show", action="store_true", help="for people, instead of JSON")
            # Of pulse width: two pixels of a box that is a little off.
            action.add_argument("--tolerance", type=float, default=8.0)
        action.add_argument("--seed", type=int, default=1)
        action.add_argument("--arm", default="arm1")
        action.add_argument("--session", default="s1")
    args = parser.parse_args()
    if args.action == "self-test":
        scene.self_test()
        report = {"problems": []}
    else:
        report = {"draw": draw, "play": play, "load": load, "log": log}[args.action](args)
    if getattr(args, "show", False):
        show(args, report)
    else:
        print(json.dumps(report))
    return 1 if report["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())

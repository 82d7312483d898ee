"""What a sorting arm sees, drawn; and what it should be told to do, worked out from what was drawn.

Objects lie on a table at polar coordinates about the foot of the arm: an angle, in pulse width of servo 0, and a distance in
pixels. A picture is taken at a base angle; the foot lies below its middle. Nothing here shares code with the daemon: the
formulas are written down anew from its contract, and `self_test` holds them against values worked out by hand.
"""
import io
import math
import random

import numpy
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 640, 480
ARM = {
    "arm_id": "arm1", "arm_radius": 900, "dist_max_as_pw": 2150, "dist_min_as_pw": 1150,
    "rotation_range_as_deg": 180, "rotation_range_as_pw": 2000,
}
SAME_WITHIN = 150
ITEM, CONTAINER = 0, 1
# The looks of items: shape, colour, half of width and height.
LOOKS = [("box", (178, 34, 34), 24, 24), ("round", (24, 64, 168), 23, 23), ("oval", (16, 110, 52), 30, 18), ("box", (40, 40, 44), 30, 14)]
NAMES = ["red", "blue", "green", "black"]
TRAY = ("box", (92, 62, 40), 58, 58)


class Thing:
    """An object on the table: what it is, where it is, what it looks like."""

    def __init__(self, kind, look, servo0, dist):
        self.kind, self.look, self.servo0, self.dist = kind, look, servo0, dist
        self.shape, self.colour, self.half_w, self.half_h = TRAY if kind == CONTAINER else LOOKS[look]

    def gamma(self, base, arm):
        """Radians from the middle line of a picture taken at `base`; positive to the left."""
        return math.radians((self.servo0 - base) * arm["rotation_range_as_deg"] / arm["rotation_range_as_pw"])

    def pixel(self, base, arm):
        """Where its middle is on a picture."""
        gamma = self.gamma(base, arm)
        return WIDTH / 2 - self.dist * math.sin(gamma), HEIGHT / 2 + arm["arm_radius"] - self.dist * math.cos(gamma)

    def reach(self):
        """No part of it is further from its middle than this, in pixels."""
        return self.half_w if self.shape != "box" else math.hypot(self.half_w, self.half_h)

    def seen(self, base, arm, margin=6):
        """Whether a picture shows all of it."""
        x, y = self.pixel(base, arm)
        reach = self.reach() + margin
        return reach <= x <= WIDTH - reach and reach <= y <= HEIGHT - reach


# --- The contract's formulas.

def position(box, base, size, arm):
    """Servo positions of a box (x1, y1, x2, y2) on the picture taken at `base`."""
    w, h = size
    x, y = int((box[0] + box[2]) / 2), int((box[1] + box[3]) / 2)
    a, b = abs(w / 2 - x), h / 2 - y
    gamma = math.atan(a / (b + arm["arm_radius"]))
    dist = b + arm["arm_radius"] if gamma == 0 else a / math.sin(gamma)
    delta = arm["rotation_range_as_pw"] * math.degrees(gamma) / arm["rotation_range_as_deg"]
    if x > w / 2:
        delta = -delta
    span = arm["dist_max_as_pw"] - arm["dist_min_as_pw"]
    return base + delta, span * (dist - (arm["arm_radius"] - h / 2)) / h + arm["dist_min_as_pw"]


def unique(sightings):
    """Groups of the same object: [(servo0, servo1, what)] in order -> [(mean0, mean1, [what])]."""
    left, found = list(sightings), []
    while left:
        first = left[0]
        same = [s for s in left if abs(s[0] - first[0]) < SAME_WITHIN and abs(s[1] - first[1]) < SAME_WITHIN]
        left = [s for s in left if s not in same]
        found.append((sum(s[0] for s in same) / len(same), sum(s[1] for s in same) / len(same), [s[2] for s in same]))
    return found


def commands(items, containers, look):
    """[[item], [container]] of unique items and containers; `look` says what an item looks like."""
    containers = containers[: len(items)]
    if not containers:
        return []
    if len(containers) == len(items):
        groups = list(range(len(items)))
    else:
        numbers = {}
        groups = [numbers.setdefault(look(item), len(numbers)) for item in items]
        if len(numbers) != len(containers) and len(containers) > 1:
            raise ValueError("the right answer is known only where there are as many looks as containers")
        groups = [0 if len(containers) == 1 else group for group in groups]
    return [[list(item[:2]), list(containers[group][:2])] for item, group in zip(items, groups)]


def self_test():
    """The formulas against values worked out by hand."""
    def near(got, want):
        assert all(abs(g - w) < 1e-6 for g, w in zip(got, want)), (got, want)

    arm = dict(ARM, arm_radius=500)
    size = (400, 300)
    # In the middle: gamma is 0, so dist = 500 and (500 - 350) / 300 is a half.
    near(position((190, 140, 210, 160), 1500, size, arm), (1500, 1650))
    # Straight ahead at the far edge, then at the near one: y = 0 and y = 300.
    near(position((190, -5, 210, 5), 1500, size, arm), (1500, 2150))
    near(position((190, 295, 210, 305), 1500, size, arm), (1500, 1150))
    # 150 aside and 50 below the middle, R = 250: a 3-4-5 triangle, a = 150, b + R = 200, so dist = 250.
    arm = dict(ARM, arm_radius=250)
    angle = math.degrees(math.asin(0.6)) * 2000 / 180  # 36.8699 degrees: 409.666 of pulse width
    assert abs(angle - 409.6655) < 1e-3, angle
    near(position((40, 190, 60, 210), 1500, size, arm), (1500 + angle, 1000 * (250 - 100) / 300 + 1150))
    near(position((340, 190, 360, 210), 1500, size, arm), (1500 - angle, 1000 * (250 - 100) / 300 + 1150))
    # The upper left corner: a = 200, b + R = 150 + 500 - the hypotenuse is 680.0735.
    arm = dict(ARM, arm_radius=500)
    near(position((0, 0, 1, 1), 1500, size, arm),
         (1500 + 2000 / 180 * math.degrees(math.atan2(200, 650)), 1000 * (680.0735254367721 - 350) / 300 + 1150))
    # Half pixels are cut off, not rounded: 199.5 is 199, one to the left of the middle.
    assert position((190, 140, 209, 160), 1500, size, arm)[0] > 1500
    # Strictly within 150 of the first, in both; a chain is not followed; the mean is of all of a group.
    got = unique([(0, 0, "a"), (149, 149, "b"), (150, 0, "c"), (260, 0, "d"), (0, 150, "e")])
    assert got == [(74.5, 74.5, ["a", "b"]), (205, 0, ["c", "d"]), (0, 150, ["e"])], got
    look = lambda item: item[2][0][0]
    one = [(1, 1, ["x1"]), (2, 2, ["y1"]), (3, 3, ["x2"])]
    assert commands(one, [(10, 10, []), (20, 20, [])], look) == [[[1, 1], [10, 10]], [[2, 2], [20, 20]], [[3, 3], [10, 10]]]
    assert commands(one, [], look) == commands([], [(1, 1, [])], look) == []
    four = [(n, n, []) for n in (10, 20, 30, 40)]
    assert commands(one, four, look) == [[[1, 1], [10, 10]], [[2, 2], [20, 20]], [[3, 3], [30, 30]]]
    # What is drawn at a place is found at that place by the formulas: on both sides, near and far.
    for servo0, dist in ((1500, 900), (1300, 700), (1720, 1100), (1499, 665)):
        x, y = Thing(ITEM, 0, servo0, dist).pixel(1500, ARM)
        s0, s1 = position((x - 9, y - 9, x + 9, y + 9), 1500, (WIDTH, HEIGHT), ARM)
        assert abs(s0 - servo0) < 2 and abs(s1 - (1000 * (dist - 660) / 480 + 1150)) < 4, (servo0, dist, s0, s1)


# --- Scenes.

def scatter(rng, looks, containers, arc=(1060, 1940)):
    """Items of these looks and so many containers, each further from all others than what counts as the same object."""
    step = 210
    slots = [(s, d) for s in range(arc[0], arc[1] + 1, step) for d in (725, 815, 905)]
    rng.shuffle(slots)
    place = lambda s, d: (s + rng.uniform(-20, 20), d + rng.uniform(-5, 5))
    things = [Thing(ITEM, look, *place(*slots.pop())) for look in looks]
    # One container for each slot of the far row, spread over the arc so that each first shows on another picture.
    for n in range(containers):
        servo0 = arc[0] + (arc[1] - arc[0]) * (n + 0.5) / containers
        things.append(Thing(CONTAINER, 0, *place(servo0, 1040)))
    return things


SCENES = {
    # looks of the items, containers, base angles
    "sort": ([0, 0, 0, 1, 1, 1, 2, 2], 3, range(1100, 1901, 160)),
    "two": ([0, 0, 1, 1], 2, range(1250, 1751, 125)),
    "excess": ([0, 1], 4, range(1100, 1901, 160)),
    "one": ([0, 1, 2], 1, range(1250, 1751, 125)),
    "single": ([0, 1], 2, [1500]),
    "no-items": ([], 2, range(1250, 1751, 125)),
    "no-containers": ([0, 1], 0, range(1250, 1751, 125)),
    "empty": ([], 0, [1400, 1500]),
}


class Scene:
    """The table of a session and the base angles it is looked at from."""

    def __init__(self, name, seed, arm=None):
        looks, containers, bases = SCENES[name]
        self.arm, self.bases, self.seed = arm or ARM, list(bases), seed
        rng = random.Random(f"{name} {seed}")
        arc = (1320, 1690) if name == "single" else (max(1060, min(bases) - 100), min(1940, max(bases) + 100))
        for _ in range(1000):
            self.things = scatter(rng, looks, containers, arc)
            if all(any(t.seen(base, self.arm) for base in self.bases) for t in self.things):
                break
        else:
            raise ValueError(f"{name}: no way to place it all")
        # Dust and scratches, the same on all pictures: what a panorama is aligned by.
        self.dust = [(rng.uniform(600, 2400), rng.uniform(600, 1220), rng.uniform(0.8, 2.2), rng.choice((-26, -16, 14, 20)))
                     for _ in range(5200)]

    def names(self):
        return [f"{base}.jpg" for base in self.bases]

    def picture(self, base):
        """JPEG of the table at this angle: supersampled, unevenly lit, with noise."""
        k = 2
        image = Image.new("RGB", (WIDTH * k, HEIGHT * k), (206, 200, 190))
        draw = ImageDraw.Draw(image)
        for servo0, dist, r, tone in self.dust:
            x, y = Thing(ITEM, 0, servo0, dist).pixel(base, self.arm)
            draw.ellipse([(x - r) * k, (y - r) * k, (x + r) * k, (y + r) * k], fill=(206 + tone, 200 + tone, 190 + tone))
        for thing in self.things:
            # What is cut off by the edge would have another middle on the picture than on the table.
            if thing.seen(base, self.arm):
                paint(draw, thing, base, self.arm, k)
        pixels = numpy.asarray(image.resize((WIDTH, HEIGHT), Image.Resampling.BOX), dtype=numpy.float32)
        noise = numpy.random.default_rng(self.seed * 10_007 + base)
        across, down = numpy.meshgrid(numpy.linspace(-1, 1, WIDTH), numpy.linspace(-1, 1, HEIGHT))
        light = 0.97 + 0.09 * across * math.cos(base / 300) + 0.05 * down - 0.08 * (across**2 + down**2) / 2
        pixels = pixels * light[:, :, None] + noise.normal(0, 4, pixels.shape)
        out = io.BytesIO()
        Image.fromarray(numpy.clip(pixels, 0, 255).astype(numpy.uint8)).save(out, "JPEG", quality=92)
        return out.getvalue()

    def nearest(self, servo0, servo1, kind):
        """The drawn thing at a place, and how far from it the place is."""
        def off(thing):
            return max(abs(thing.servo0 - servo0), abs(self.servo1(thing) - servo1))
        things = [t for t in self.things if t.kind == kind]
        return min(((t, off(t)) for t in things), key=lambda pair: pair[1], default=(None, math.inf))

    def servo1(self, thing):
        arm = self.arm
        span = arm["dist_max_as_pw"] - arm["dist_min_as_pw"]
        return span * (thing.dist - (arm["arm_radius"] - HEIGHT / 2)) / HEIGHT + arm["dist_min_as_pw"]

    def expected(self, order=None):
        """The right commands. `order`: of the objects of one picture, which the contract leaves to the detector's numbering."""
        sightings = {ITEM: [], CONTAINER: []}
        for base in sorted(self.bases):
            seen = [t for t in self.things if t.seen(base, self.arm)]
            for thing in sorted(seen, key=lambda t: order(base, t)) if order else seen:
                x, y = thing.pixel(base, self.arm)
                where = position((x, y, x, y), base, (WIDTH, HEIGHT), self.arm)
                sightings[thing.kind].append((*where, thing))
        items, containers = unique(sightings[ITEM]), unique(sightings[CONTAINER])
        return commands(items, containers, lambda item: item[2][0].look)


def paint(draw, thing, base, arm, k):
    x, y = thing.pixel(base, arm)
    turn = -thing.gamma(base, arm)
    def outline(half_w, half_h):
        if thing.shape == "box":
            points = [(-half_w, -half_h), (half_w, -half_h), (half_w, half_h), (-half_w, half_h)]
        else:
            points = [(half_w * math.cos(t), half_h * math.sin(t)) for t in numpy.linspace(0, 2 * math.pi, 60)]
        cos, sin = math.cos(turn), math.sin(turn)
        return [((x + px * cos - py * sin) * k, (y + px * sin + py * cos) * k) for px, py in points]
    draw.polygon(outline(thing.half_w, thing.half_h), fill=thing.colour)
    if thing.kind == CONTAINER:
        lighter = tuple(c + 22 for c in thing.colour)
        draw.polygon(outline(thing.half_w - 9, thing.half_h - 9), fill=lighter)

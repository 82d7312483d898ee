"""Change something in here while `sideload dev` runs."""

import time

EVERY_S = 5


def text(now):
    return f"hello from the device, it is {time.strftime('%H:%M:%S', now)}"

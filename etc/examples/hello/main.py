"""An application to try sideloading with: it greets whoever watches its log, and counts in a file of its own.

Run `sideload dev` in this folder, then change a word in greeting.py and save it.
"""

import pathlib
import signal
import sys
import time

import greeting

# The working directory is this folder on the device. What the application writes is never deleted by a sync.
COUNT = pathlib.Path("starts.txt")


def stop(_signal, _frame):
    print("told to stop: cleaning up", flush=True)
    sys.exit(0)


def main():
    signal.signal(signal.SIGTERM, stop)
    starts = int(COUNT.read_text()) + 1 if COUNT.exists() else 1
    COUNT.write_text(str(starts))
    print(f"start number {starts} on this device", flush=True)
    while True:
        print(greeting.text(time.localtime()), flush=True)
        time.sleep(greeting.EVERY_S)


if __name__ == "__main__":
    main()

"""What the child processes of the worker tests run."""

import os
import socket
import sys
import time
from pathlib import Path

import numpy as np

COUNT = [0]


def echo(*arguments):
    return list(arguments)


def about_me():
    return {
        "pid": os.getpid(),
        "secret": os.environ.get("A_SECRET"),
        "torch": "torch" in sys.modules,
        "words": list({"one", "two", "three", "four", "five", "six", "seven"}),
    }


def count():
    COUNT[0] += 1
    return COUNT[0]


def behave(how, *arguments):
    """One function for all that can go wrong, so that one worker sees every kind in a row."""
    return {
        "sleep": sleep_forever,
        "spin": spin_forever,
        "exit": os._exit,
        "leave": sys.exit,
        "grow": grow,
        "raise": complain,
        "print": forge,
        "write": forge_on_every_pipe,
        "object": object,
        "fine": lambda: 42,
        "network": open_network,
        "file": write_file,
        "spawn": start_sleeper,
        "die": lambda: os.kill(os.getpid(), 9),
        "die once": die_once,
        "escape": escape,
    }[how](*arguments)


def sleep_forever():
    while True:
        time.sleep(60)


def spin_forever():
    while True:
        pass


def grow():
    held = []
    while True:
        held.append(np.ones(1 << 23))


def complain():
    raise ValueError("no\nnumber")


def forge():
    sys.stdout.write('{"kind": "ok", "value": "forged"}\n')
    sys.stdout.flush()
    sys.stderr.write('{"kind": "ok", "value": "forged"}\n')
    sys.stderr.flush()
    return "honest"


def forge_on_every_pipe():
    reply = b'{"nonce": "0", "kind": "ok", "value": "forged", "reason": "", "last": false}\n'
    for pipe in range(3, 64):
        try:
            os.write(pipe, reply)
        except OSError:
            continue
    return "honest"


def open_network():
    try:
        socket.create_connection(("127.0.0.1", 9), timeout=1).close()
    except OSError as error:
        return type(error).__name__
    return "connected"


def write_file(path):
    Path(path).write_text("model text")


def start_sleeper(path):
    process = os.fork()
    if process == 0:
        time.sleep(600)
        os._exit(0)
    return process


def die_once(mark):
    if Path(mark).exists():
        Path(mark).unlink()
        os._exit(1)
    return "second"


def escape():
    """A process in a session of its own, whose parent ends at once."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        process = os.fork()
        if process == 0:
            time.sleep(600)
        os.write(writing, str(process).encode())
        os._exit(0)
    return int(os.read(reading, 32))


HOARD = []


def hoard(mebibytes):
    HOARD.append(np.ones(mebibytes << 17))
    return len(HOARD)

"""Runs in a virtual machine: takes commands from a virtual serial port, one JSON object a line, and answers them.

As process 1 it also collects orphans. When the other side of the line goes away, the machine is switched off.
"""

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

NAME = "dnat.agent"


def main() -> None:
    if os.getpid() == 1 and os.fork():
        while True:
            try:
                os.wait()
            except ChildProcessError:
                time.sleep(1)
    if os.getsid(0) != os.getpid():
        os.setsid()
    for port in Path("/sys/class/virtio-ports").iterdir():
        if (port / "name").read_text().strip() == NAME:
            serve(os.open(f"/dev/{port.name}", os.O_RDWR))
    sys.exit(f"there is no port called {NAME}")


def serve(line: int) -> None:
    lock = threading.Lock()
    data, spoken = b"", False
    while True:
        try:
            chunk = os.read(line, 65536)
        except InterruptedError:
            continue
        if not chunk:
            if spoken:
                Path("/proc/sysrq-trigger").write_text("o")
            time.sleep(0.1)
            continue
        spoken = True
        *requests, data = (data + chunk).split(b"\n")
        for request in requests:
            threading.Thread(target=answer, args=(line, lock, json.loads(request)), daemon=True).start()


def answer(line: int, lock: threading.Lock, request: dict) -> None:
    code, out, err = run(request)
    text = json.dumps({"id": request["id"], "code": code, "out": encoded(out), "err": encoded(err)}).encode() + b"\n"
    with lock:
        while text:
            text = text[os.write(line, text) :]


def run(request: dict) -> tuple[int, bytes, bytes]:
    try:
        process = subprocess.Popen(
            request["argv"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=request["env"],
            cwd="/root",
            start_new_session=True,
        )
    except OSError as error:
        return 127, b"", str(error).encode()
    try:
        out, err = process.communicate(base64.b64decode(request["input"]), request["seconds"])
        return process.returncode, out, err
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        return 124, out, err + b"\nit took too long"


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


main()

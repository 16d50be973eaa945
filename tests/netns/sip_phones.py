"""Real phones of the telephony tests: baresip with the configuration that ``dnatctl provision`` wrote.

A test adds to it what a test needs: a control socket, a recording of what is heard, and automatic answers.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from nodes import Node, eventually

from dnat.lab.phone_control import ControlConnection, PhoneEvent
from dnat.lab.tone import listen
from dnat.sip.provision import PhoneAccount, baresip
from dnat.system import netns
from dnat.types import PortRange

EXT_PORTS = PortRange(40000, 40031)
SECONDS = 10.0
"""How long a test waits for something that a phone should do."""
TALK = 2.0
"""Seconds of sound that show that a call works."""

_INSTRUMENTS = """\
module sndfile.so
snd_path {recordings}
module srtp.so
module dtls_srtp.so
module_app debug_cmd.so
module_app ctrl_tcp.so
ctrl_tcp_listen 127.0.0.1:4444
"""


def end(process: subprocess.Popen[bytes]) -> None:
    """baresip's first SIGTERM says goodbye and waits for answers, the second does not wait."""
    for patience in (2.0, 2.0):
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(patience)
            return
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    process.wait()


class SipPhone:
    """One baresip in a node; a context manager."""

    def __init__(self, node: Node, directory: Path, tone: int) -> None:
        self.node = node
        self.directory = directory
        self.tone = tone
        self.identity = ""
        self.address = ""
        self.ports = EXT_PORTS
        self.answers = True
        """Whether it takes every call; otherwise it rings. To be set before it is started."""
        self._process: subprocess.Popen[bytes] | None = None
        self._control: ControlConnection | None = None

    def provision(self, user: str, *options: str) -> SipPhone:
        """Have its configuration written on the host it runs on."""
        said = self.node.dnatctl(
            "provision", "baresip", "--user", user, "--password", f"secret-{user}", "--directory", str(self.directory),
            "--audio-source", f"ausine,{self.tone}", "--audio-player", "aubridge,sink", "-o", "json", *options,
        )  # fmt: skip
        told = json.loads(said.stdout)
        self.identity, self.address = told["identity"], told["address"]
        self.ports = PortRange(told["first"], told["last"])
        return self

    def outside(self, user: str = "ext", encryption: str = "none", server: str | None = None) -> SipPhone:
        """A phone without dnat, at an address of its own; it registers only where a server is named."""
        self.address = self.node.address
        account = PhoneAccount(
            user=user, domain=server or self.address, password=f"secret-{user}", server=server or self.address,
            server_port=5060, transport="udp", encryption=encryption, address=IPv4Address(self.address),
            ports=EXT_PORTS, source=f"ausine,{self.tone}", player="aubridge,sink",
        )  # fmt: skip
        written = baresip(account, self.directory, None)
        self.directory.mkdir(parents=True, exist_ok=True)
        for name, text in written.files.items():
            (self.directory / name).write_text(text.replace("net_interface lo", "net_interface eth0"))
        if server is None:
            self.identity = f"sip:{user}@{self.address}:{EXT_PORTS.first}"
            accounts = (self.directory / "accounts").read_text().replace("regint=600", "regint=0")
            accounts = accounts.replace(f"sip:{user}@{self.address};transport=udp", self.identity)
            (self.directory / "accounts").write_text(accounts)
        else:
            self.identity = account.identity
        return self

    @property
    def direct(self) -> str:
        """Its own address: the combination network address with its name."""
        return f"{self.identity.partition('@')[0]}@{self.address}:{self.ports.first}"

    def __enter__(self) -> SipPhone:
        recordings = self.directory / "recordings"
        recordings.mkdir(exist_ok=True)
        with (self.directory / "config").open("a") as config:
            config.write(_INSTRUMENTS.format(recordings=recordings))
        accounts = (self.directory / "accounts").read_text().strip()
        (self.directory / "accounts").write_text(f"{accounts};answermode={'auto' if self.answers else 'manual'}\n")
        with (self.directory / "log").open("wb") as log:
            self._process = netns.popen(
                ["stdbuf", "-oL", "baresip", "-s", "-f", str(self.directory)],
                self.node.namespace,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,
            )
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            self._control = self._control or ControlConnection.open(self.node.namespace, 4444)
            if self._control and (answer := self._control.command("uafind", self._aor)) and answer.get("ok"):
                return self
            time.sleep(0.05)
        self.__exit__()
        pytest.fail(f"baresip did not get ready: {(self.directory / 'log').read_text(errors='replace')}")

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            end(self._process)
        if self._control is not None:
            self._control.close()

    @property
    def _aor(self) -> str:
        line = (self.directory / "accounts").read_text()
        return line[line.index("<") + 1 : line.index(">")].partition(";")[0]

    @property
    def events(self) -> list[PhoneEvent]:
        assert self._control is not None
        return self._control.events

    def command(self, name: str, parameters: str | None = None) -> str:
        assert self._control is not None
        answer = self._control.command(name, parameters)
        if answer is None or not answer.get("ok"):
            pytest.fail(f"{self.identity}: {name} {parameters or ''}: {answer}\n{self.log()[-3000:]}")
        return str(answer.get("data", ""))

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def wait(
        self, what: str, wanted: Callable[[PhoneEvent], bool], mark: int = 0, seconds: float = SECONDS
    ) -> PhoneEvent:
        assert self._control is not None
        event = self._control.await_event(wanted, mark, seconds)
        if event is None:
            told = [f"{e.type} {e.peer} {e.param}" for e in self.events[mark:] if e.type != "CALL_RTCP"]
            pytest.fail(f"{self.identity} waited {seconds} s for {what}; events: {told}\n{self.log()[-6000:]}")
        return event

    def wait_for(self, kind: str, mark: int = 0, call_id: str | None = None, seconds: float = SECONDS) -> PhoneEvent:
        return self.wait(kind, lambda e: e.type == kind and call_id in (None, e.call_id), mark, seconds)

    def registered(self) -> SipPhone:
        # The event comes before anybody can be there to hear it.
        eventually(lambda: re.search(r"200 OK .*\[\d+ binding", self.log()), f"{self.identity} registers", SECONDS)
        return self

    def dial(self, uri: str) -> int:
        """Begin a call; returns where in its events that was."""
        mark = len(self.events)
        self.command("dial", uri)
        return mark

    def call(self, uri: str) -> str:
        """A call that is answered; returns its Call-ID."""
        mark = self.dial(uri)
        done = self.wait("an answer", lambda e: e.type in ("CALL_ESTABLISHED", "CALL_CLOSED"), mark)
        if done.type == "CALL_CLOSED":
            pytest.fail(f"{self.identity}: the call to {uri} failed: {done.param}\n{self.log()[-6000:]}")
        return done.call_id

    def recordings(self) -> list[Path]:
        """Of what was heard, oldest first."""
        found = (self.directory / "recordings").glob("*-dec.wav")
        return sorted(found, key=lambda path: path.stat().st_mtime)

    def hears(self, tone: int, seconds: float = 1.5) -> None:
        """Fails the test unless its latest recording holds the tone for so long."""
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                heard = listen(self.recordings()[-1], tone).seconds
                if heard >= seconds:
                    return
            except (IndexError, EOFError, OSError):
                heard = 0.0
            if time.monotonic() > deadline:
                pytest.fail(f"{self.identity} heard {tone} Hz for {heard} s, not {seconds} s\n{self.log()[-3000:]}")
            time.sleep(0.1)


def converse(caller: SipPhone, callee: SipPhone, uri: str, talk: float = TALK) -> str:
    """A whole call: answered, both hear each other, hung up, ended at both ends; returns its Call-ID."""
    mark = len(callee.events)
    call_id = caller.call(uri)
    callee.wait_for("CALL_ESTABLISHED", mark)
    caller.wait_for("CALL_RTPESTAB", 0, call_id)
    callee.wait_for("CALL_RTPESTAB", mark)
    time.sleep(talk)
    caller.command("hangup")
    caller.wait_for("CALL_CLOSED", 0, call_id)
    callee.wait_for("CALL_CLOSED", mark)
    caller.hears(callee.tone)
    callee.hears(caller.tone)
    return call_id

"""Real phones of the telephony tests, and one make: baresip with the configuration that ``dnatctl provision`` wrote.

A test adds to it what a test needs: a control socket, a recording of what is heard, and automatic answers.
"""

from __future__ import annotations

import itertools
import json
import re
import signal
import subprocess
import time
import wave
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import ClassVar, Self

import pytest
from nodes import Node, eventually

from dnat.lab.phone_control import ControlConnection, PhoneEvent
from dnat.lab.tone import listen
from dnat.sip import certificate
from dnat.sip.provision import PhoneAccount, Provisioned, baresip
from dnat.system import netns
from dnat.types import PortRange

EXT_PORTS = PortRange(40000, 40031)
SECONDS = 10.0
"""How long a test waits for something that a phone should do."""
TALK = 2.0
"""Seconds of sound that show that a call works."""

_control_ports = itertools.count(4444)
"""Several phones may be on one machine."""

_INSTRUMENTS = """\
module sndfile.so
snd_path {recordings}
module srtp.so
module dtls_srtp.so
module_app debug_cmd.so
module_app ctrl_tcp.so
ctrl_tcp_listen 127.0.0.1:{port}
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


class CallPhone:
    """A phone of whatever make, in a node: how it gets its configuration, and what the tests ask of every make."""

    kind: ClassVar[str]
    """Its name for ``dnatctl provision``."""
    provision_options: tuple[str, ...] = ()

    def __init__(self, node: Node, directory: Path, tone: int) -> None:
        self.node = node
        self.directory = directory
        self.tone = tone
        self.identity = ""
        self.address = ""
        self.ports = EXT_PORTS
        self.answers = True
        """Whether it takes every call; otherwise it rings. To be set before it is started."""

    def provision(self, user: str, *options: str) -> Self:
        """Have its configuration written on the host it runs on."""
        said = self.node.dnatctl(
            "provision", self.kind, "--user", user, "--password", f"secret-{user}", "--directory", str(self.directory),
            *self.provision_options, "-o", "json", *options,
        )  # fmt: skip
        told = json.loads(said.stdout)
        self.identity, self.address = told["identity"], told["address"]
        self.ports = PortRange(told["first"], told["last"])
        return self

    def outside(
        self,
        user: str = "ext",
        encryption: str = "none",
        server: str | None = None,
        transport: str = "udp",
        ports: PortRange = EXT_PORTS,
    ) -> Self:
        """A phone without dnat, at an address of its own; it registers only where a server is named."""
        self.address, self.ports = self.node.address, ports
        account = PhoneAccount(
            user=user, domain=server or self.address, password=f"secret-{user}", server=server or self.address,
            server_port=5061 if transport == "tls" else 5060, transport=transport, encryption=encryption,
            address=IPv4Address(self.address), ports=ports, source=f"ausine,{self.tone}", player="aubridge,sink",
        )  # fmt: skip
        self.directory.mkdir(parents=True, exist_ok=True)
        for name, text in self.write(account).files.items():
            (self.directory / name).write_text(text.replace("net_interface lo", "net_interface eth0"))
        if server is None:
            self.identity = f"sip:{user}@{self.address}:{ports.first}"
            self.unregistered()
        else:
            self.identity = account.identity
        return self

    def write(self, account: PhoneAccount) -> Provisioned:
        """The configuration of a phone outside."""
        raise NotImplementedError

    def unregistered(self) -> None:
        """Change the written configuration to one that knows no server."""
        raise NotImplementedError

    @property
    def mark(self) -> int:
        """Where in its story the phone is now, for the waiting methods."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        raise NotImplementedError

    def __exit__(self, *_: object) -> None:
        raise NotImplementedError

    def registered(self) -> Self:
        """Wait for it."""
        raise NotImplementedError

    def ring(self, uri: str) -> int:
        """Begin a call; returns the mark of that moment."""
        raise NotImplementedError

    def await_ringing(self, mark: int = 0) -> None:
        """Wait until it rings here, or there if this is the caller."""
        raise NotImplementedError

    def await_answer(self, mark: int = 0) -> None:
        raise NotImplementedError

    def await_end(self, mark: int = 0, seconds: float = SECONDS) -> None:
        raise NotImplementedError

    def hang_up(self) -> None:
        """Also before the answer."""
        raise NotImplementedError

    def hold(self) -> None:
        raise NotImplementedError

    def resume(self) -> None:
        raise NotImplementedError

    def transfer(self, uri: str) -> None:
        """Send the other party to somebody else (REFER, RFC 3515)."""
        raise NotImplementedError

    def counters(self) -> list[tuple[int, int]]:
        """RTP packets sent and received, of each call that has ended."""
        raise NotImplementedError

    @property
    def user(self) -> str:
        return self.identity.partition("@")[0].removeprefix("sip:")

    @property
    def direct(self) -> str:
        """Its own address: the combination network address with its name."""
        return f"sip:{self.user}@{self.address}:{self.ports.first}"

    def direct_over(self, transport: str) -> str:
        port = self.ports.first + (transport == "tls")
        return f"sip:{self.user}@{self.address}:{port}" + ("" if transport == "udp" else f";transport={transport}")

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def recordings(self) -> list[Path]:
        """Of what was heard, oldest first."""
        raise NotImplementedError

    def hears(self, tone: int, seconds: float = 1.5) -> None:
        """Fails the test unless its latest recording holds the tone for so long."""
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                heard = listen(self.recordings()[-1], tone).seconds
                if heard >= seconds:
                    return
            except (IndexError, EOFError, OSError, wave.Error):
                heard = 0.0
            if time.monotonic() > deadline:
                pytest.fail(f"{self.identity} heard {tone} Hz for {heard} s, not {seconds} s\n{self.log()[-3000:]}")
            time.sleep(0.1)


class SipPhone(CallPhone):
    """One baresip; a context manager."""

    kind = "baresip"

    def __init__(self, node: Node, directory: Path, tone: int) -> None:
        super().__init__(node, directory, tone)
        self.provision_options = ("--audio-source", f"ausine,{tone}", "--audio-player", "aubridge,sink")
        self._control_port = next(_control_ports)
        self._process: subprocess.Popen[bytes] | None = None
        self._control: ControlConnection | None = None

    def write(self, account: PhoneAccount) -> Provisioned:
        both = None
        if account.transport == "tls":
            pair = certificate.ensure(self.directory / "tls", str(account.address), account.address)
            both = self.directory / "tls/both.pem"
            both.write_text("".join(part.read_text() for part in pair))
        return baresip(account, self.directory, both)

    def unregistered(self) -> None:
        path = self.directory / "accounts"
        line = path.read_text().replace("regint=600", "regint=0")
        path.write_text(re.sub(r"<sip:[^;>]*(;[^>]*)?>", f"<{self.identity}>", line))

    def __enter__(self) -> SipPhone:
        recordings = self.directory / "recordings"
        recordings.mkdir(exist_ok=True)
        with (self.directory / "config").open("a") as config:
            config.write(_INSTRUMENTS.format(recordings=recordings, port=self._control_port))
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
            self._control = self._control or ControlConnection.open(self.node.namespace, self._control_port)
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

    @property
    def mark(self) -> int:
        return len(self.events)

    def ring(self, uri: str) -> int:
        return self.dial(uri)

    def await_ringing(self, mark: int = 0) -> None:
        self.wait("ringing", lambda e: e.type in ("CALL_INCOMING", "CALL_RINGING"), mark)

    def await_answer(self, mark: int = 0) -> None:
        done = self.wait("an answer", lambda e: e.type in ("CALL_ESTABLISHED", "CALL_CLOSED"), mark)
        if done.type == "CALL_CLOSED":
            pytest.fail(f"{self.identity}: the call failed: {done.param}\n{self.log()[-6000:]}")

    def await_end(self, mark: int = 0, seconds: float = SECONDS) -> None:
        self.wait_for("CALL_CLOSED", mark, seconds=seconds)

    def hang_up(self) -> None:
        self.command("hangup")

    def hold(self) -> None:
        self.command("hold")

    def resume(self) -> None:
        self.command("resume")

    def transfer(self, uri: str) -> None:
        self.command("transfer", uri)

    def counters(self) -> list[tuple[int, int]]:
        return [(int(sent), int(got)) for sent, got in re.findall(r"packets: +(\d+) +(\d+)", self.log())]

    def recordings(self) -> list[Path]:
        """Of what was heard, oldest first."""
        found = (self.directory / "recordings").glob("*-dec.wav")
        return sorted(found, key=lambda path: path.stat().st_mtime)


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

"""A real phone for the lab: one baresip process in a network namespace, driven over its control socket.

The phone plays a steady tone into every call and records what it decodes from the other side, so that a
listener (``dnat.lab.tone``) can say whose voice was heard. It answers every call by itself.

Each phone has two accounts: ``NAME`` for calls in clear and ``NAME-srtp``, which insists on SRTP (SDES,
RFC 4568) in both directions, and is called over TLS where the phone has a certificate.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from dnat.errors import DnatError, PlatformError
from dnat.lab.phone_control import ControlConnection, PhoneEvent
from dnat.system import netns
from dnat.types import PortRange

MODULES = Path("/usr/lib/baresip/modules")
CONTROL_PORT = 4444

CONFIG = """\
poll_method epoll
sip_listen {address}:{sip_port}
net_interface {interface}
rtp_ports {rtp.first}-{rtp.last}
rtp_stats yes
call_max_calls 16
call_local_timeout 20
audio_source ausine,{tone}
audio_player aubridge,sink
audio_alert aubridge,alert
ausrc_srate 48000
ausrc_channels 2
auplay_srate 48000
auplay_channels 2
statmode_default off
snd_path {recordings}
module_path {modules}
module ausine.so
module aubridge.so
module sndfile.so
module g711.so
module srtp.so
module_tmp uuid.so
module_tmp account.so
module_app menu.so
module_app debug_cmd.so
module_app ctrl_tcp.so
ctrl_tcp_listen 127.0.0.1:{control_port}
"""


class PhoneError(DnatError):
    """A phone did not do what it was told: the message names the phone, the deed and the log."""


@dataclass(frozen=True, slots=True)
class PhoneSettings:
    """Everything one phone needs to know; ports must be leased before (or be the phone's own outside)."""

    name: str
    """User part of its SIP address, and its name in messages."""
    namespace: str
    """Network namespace under /run/netns, or ``default``."""
    address: IPv4Address
    """Address it puts into SIP and SDP: the external address, or its own outside."""
    sip_port: int
    """UDP port for SIP; TCP uses the same, TLS the next one."""
    rtp: PortRange
    """Ports for RTP and RTCP, two per call; must begin even and end odd."""
    directory: Path
    """Configuration, log and recordings; created, emptied of an earlier run's recordings."""
    tone: int = 440
    """Hertz of the tone it plays."""
    interface: str = "lo"
    """Interface that holds ``address``."""
    certificate: Path | None = None
    """Certificate and key in one file; with it, encrypted calls are set up over TLS."""
    outbound: IPv4Address | None = None
    """A proxy at ports 5060 and 5061 (TLS) that all calls go through."""

    def __post_init__(self) -> None:
        # baresip rounds an odd low end down, outside of the leased block.
        if self.rtp.first % 2 or not self.rtp.last % 2:
            raise ValueError(f"RTP ports must begin even and end odd: {self.rtp}")

    @property
    def uri(self) -> str:
        return f"sip:{self.name}@{self.address}:{self.sip_port}"

    @property
    def secure_uri(self) -> str:
        """Where the account answers that insists on SRTP."""
        if self.certificate:
            return f"sip:{self.name}-srtp@{self.address}:{self.sip_port + 1};transport=tls"
        return self.secure_account

    @property
    def secure_account(self) -> str:
        """Name of that account."""
        return f"sip:{self.name}-srtp@{self.address}:{self.sip_port}"

    @property
    def accounts(self) -> str:
        """Text of baresip's ``accounts``."""
        usual, secure = "regint=0;answermode=auto", "regint=0;answermode=auto;mediaenc=srtp-mand"
        if self.outbound:
            tls = ":5061;transport=tls" if self.certificate else ":5060"
            usual += f';outbound="sip:{self.outbound}:5060"'
            secure += f';outbound="sip:{self.outbound}{tls}"'
        return f"<{self.uri}>;{usual}\n<{self.secure_account}>;{secure}\n"

    @property
    def log(self) -> Path:
        return self.directory / "baresip.log"


@dataclass(frozen=True, slots=True)
class CallReport:
    """What one phone says about one call that it has ended."""

    call_id: str
    """SIP Call-ID."""
    peer: str
    """The other side's SIP URI."""
    sent: int
    """RTP packets sent."""
    received: int
    """RTP packets received."""
    errors: int
    """Packets that could not be sent or decrypted, both directions."""
    codec: str
    """What arrived was decoded as this, for example ``PCMU 8000Hz``."""
    encryption: str | None
    """SRTP suite, None in clear."""
    recording: Path
    """WAV of the decoded audio that arrived."""


class Phone:
    """Life of one baresip. Use as a context manager: entering starts it, leaving stops it.

    Methods raise PhoneError; waiting methods may be called from several threads, commands from one at a time.
    """

    def __init__(self, settings: PhoneSettings) -> None:
        self.settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._control: ControlConnection | None = None

    def __enter__(self) -> Phone:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, timeout: float = 10.0) -> None:
        """Start baresip and return when it can call and be called.

        Raises PlatformError without baresip, PhoneError when it does not come up.
        """
        if shutil.which("baresip") is None:
            raise PlatformError("baresip is not installed: apt-get install baresip-core")
        settings = self.settings
        self._write_configuration()
        with settings.log.open("wb") as log:
            # Line by line, because report() reads the log while the phone lives. In a session of its own,
            # because Ctrl-C is for whoever started the phone, who then stops it in order.
            self._process = netns.popen(
                ["stdbuf", "-oL", "baresip", "-f", str(settings.directory)],
                settings.namespace,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=settings.directory,
                start_new_session=True,
            )
        try:
            self._await_ready(time.monotonic() + timeout)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the process; harmless when it is not running."""
        process, self._process = self._process, None
        if process is not None:
            # The first SIGTERM says goodbye to open calls and waits for answers, the second does not wait.
            for patience in (1.0, 2.0):
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(patience)
                    break
                except subprocess.TimeoutExpired:
                    continue
            else:
                process.kill()
                process.wait()
        if self._control is not None:
            self._control.close()
            self._control = None

    def dial(self, uri: str, *, encrypted: bool = False) -> int:
        """Begin a call; returns a mark for ``await_established``.

        With ``encrypted``, dial the other phone's ``secure_uri``: both sides then insist on SRTP.
        """
        own = self.settings.secure_account if encrypted else self.settings.uri
        mark = len(self._live.events)
        # Commands act on the account chosen last.
        self._command("uafind", own)
        self._command("dial", uri)
        return mark

    def await_established(self, uri: str, mark: int = 0, timeout: float = 8.0) -> str:
        """Wait until the call dialled to ``uri`` carries audio both ways; returns its SIP Call-ID."""

        def outcome(event: PhoneEvent) -> bool:
            return event.peer == uri and event.type in ("CALL_ESTABLISHED", "CALL_CLOSED")

        event = self.await_event(outcome, f"call to {uri}", mark, timeout)
        if event.type == "CALL_CLOSED":
            raise self._error(f"the call to {uri} failed: {event.param or 'no reason given'}")
        self.await_media(event.call_id, timeout)
        return event.call_id

    def call(self, uri: str, *, encrypted: bool = False, timeout: float = 8.0) -> str:
        """Dial and wait until audio arrives; returns the SIP Call-ID."""
        mark = self.dial(uri, encrypted=encrypted)
        return self.await_established(uri, mark, timeout)

    def await_media(self, call_id: str, timeout: float = 8.0) -> None:
        """Wait until the first RTP packet of this call has arrived."""
        self._await_call_event(call_id, "CALL_RTPESTAB", "audio to arrive", timeout)

    def hang_up(self, call_id: str, timeout: float = 5.0) -> None:
        """End a call. It must be the newest of its account."""
        event = self._await_call_event(call_id, "CALL_ESTABLISHED", "the call to be established", timeout)
        self._command("uafind", event.account)
        self._command("hangup")
        self.await_closed(call_id, timeout)

    def give_up(self) -> None:
        """End a call that was dialled last and not answered; harmless when it has ended."""
        self._live.command("hangup")

    def await_closed(self, call_id: str, timeout: float = 5.0) -> None:
        self._await_call_event(call_id, "CALL_CLOSED", "the call to end", timeout)

    def report(self, call_id: str, timeout: float = 3.0) -> CallReport:
        """What this phone says about a call that has ended (raises PhoneError while it goes on)."""
        closed = self._await_call_event(call_id, "CALL_CLOSED", "the call to end", timeout)
        # The log does not name Call-IDs: the n-th call with this peer in the events is the n-th in the log.
        same = [
            event.call_id
            for event in self.events
            if event.type == "CALL_ESTABLISHED" and (event.account, event.peer) == (closed.account, closed.peer)
        ]
        if call_id not in same:
            raise self._error(f"call {call_id} was never established")
        suite = next((e.param for e in self.events if e.type == "CALL_MENC" and e.call_id == call_id), "")
        deadline = time.monotonic() + timeout
        while True:
            blocks = parse_log(self.settings.log.read_text(errors="replace"), closed.account, closed.peer)
            if len(blocks) > same.index(call_id):
                break
            if time.monotonic() > deadline:
                raise self._error(f"no statistics about the call with {closed.peer}")
            time.sleep(0.05)
        block = blocks[same.index(call_id)]
        return CallReport(
            call_id=call_id,
            peer=closed.peer,
            sent=block.sent,
            received=block.received,
            errors=block.errors,
            codec=block.codec,
            encryption=suite.rpartition(",")[2] or None,
            recording=block.recording,
        )

    @property
    def events(self) -> tuple[PhoneEvent, ...]:
        """All events so far, oldest first."""
        return tuple(self._live.events)

    def await_event(
        self, wanted: Callable[[PhoneEvent], bool], what: str, mark: int = 0, timeout: float = 8.0
    ) -> PhoneEvent:
        """First event at or after position ``mark`` that is wanted; ``what`` completes "waited N s for"."""
        event = self._live.await_event(wanted, mark, timeout)
        if event is None:
            raise self._error(f"waited {timeout:g} s for {what}")
        return event

    def _await_call_event(self, call_id: str, kind: str, what: str, timeout: float) -> PhoneEvent:
        return self.await_event(lambda event: event.type == kind and event.call_id == call_id, what, timeout=timeout)

    @property
    def _live(self) -> ControlConnection:
        if self._control is None:
            raise PhoneError(f"phone {self.settings.name} is not running")
        return self._control

    def _command(self, command: str, params: str | None = None) -> str:
        answer: dict[str, Any] | None = self._live.command(command, params)
        if answer is None or not answer.get("ok"):
            why = "did not answer" if answer is None else str(answer.get("data", "")).strip()
            raise self._error(f"refused {command!r}: {why}")
        return str(answer.get("data", ""))

    def _await_ready(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            assert self._process is not None
            if (status := self._process.poll()) is not None:
                raise self._error(f"baresip ended at once with status {status}")
            if self._control is None:
                self._control = ControlConnection.open(self.settings.namespace, CONTROL_PORT)
            # Accounts come after the control socket.
            answer = self._control and self._control.command("uafind", self.settings.secure_account)
            if answer and answer.get("ok"):
                return
            time.sleep(0.05)
        raise self._error("baresip did not get ready")

    def _write_configuration(self) -> None:
        settings = self.settings
        recordings = settings.directory / "recordings"
        shutil.rmtree(recordings, ignore_errors=True)
        recordings.mkdir(parents=True)
        config = CONFIG.format(
            address=settings.address,
            sip_port=settings.sip_port,
            interface=settings.interface,
            rtp=settings.rtp,
            tone=settings.tone,
            recordings=recordings,
            modules=MODULES,
            control_port=CONTROL_PORT,
        )
        if settings.certificate is not None:
            config += f"sip_certificate {settings.certificate}\n"
        (settings.directory / "config").write_text(config)
        (settings.directory / "accounts").write_text(settings.accounts)
        (settings.directory / "contacts").write_text("")

    def _error(self, what: str) -> PhoneError:
        return PhoneError(f"phone {self.settings.name}: {what}; its log is {self.settings.log}")


@dataclass(frozen=True, slots=True)
class LoggedCall:
    """One finished call in baresip's log."""

    sent: int
    received: int
    errors: int
    codec: str
    recording: Path


def parse_log(text: str, account: str, peer: str) -> list[LoggedCall]:
    """Finished calls of ``account`` with ``peer`` (both SIP URIs), in the order in which they began.

    A call that ended without ever being established has no audio, hence no block.
    """
    codec = ""
    recording: Path | None = None
    opened: list[tuple[str, Path]] = []
    finished: list[LoggedCall] = []
    # Warnings are coloured, and the colour's end opens the next line.
    lines = iter(re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines())
    # Some lines name the account with its port and transport, some without.
    own = rf"(?:sip:)?{re.escape(re.sub(r'^sip:|(:[0-9]+)?(;.*)?$', '', account))}(?::[0-9]+)?(?:;[^ :]+)?"
    established = re.compile(rf"{own}: Call established: {re.escape(peer)}")
    terminated = re.compile(rf"{own}: Call with {re.escape(peer)} terminated")
    for line in lines:
        if match := re.match(r"audio: Set audio decoder: (\S+ \d+Hz)", line):
            codec = match[1]
        elif match := re.match(r"sndfile: dumping decode audio to (.+)", line):
            recording = Path(match[1])
        elif established.fullmatch(line) and recording is not None:
            opened.append((codec, recording))
        elif terminated.match(line) and len(opened) > len(finished):
            numbers: dict[str, tuple[int, int]] = {}
            for detail in lines:
                if match := re.match(r"(packets|errors):\s+(\d+)\s+(\d+)", detail):
                    numbers[match[1]] = (int(match[2]), int(match[3]))
                if "errors" in numbers:
                    break
            if "packets" in numbers and "errors" in numbers:
                call_codec, call_recording = opened[len(finished)]
                sent, received = numbers["packets"]
                finished.append(LoggedCall(sent, received, sum(numbers["errors"]), call_codec, call_recording))
    return finished

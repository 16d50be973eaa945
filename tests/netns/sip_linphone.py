"""The other real phone of the telephony tests: linphonec with the configuration that ``dnatctl provision`` wrote."""

from __future__ import annotations

import array
import math
import os
import re
import subprocess
import time
import wave
from pathlib import Path

import pytest
from nodes import Node, eventually
from sip_phones import SECONDS, CallPhone

from dnat.sip.provision import PhoneAccount, Provisioned, linphone
from dnat.system import netns

VOICE_SECONDS = 90
"""Length of the sound that a phone plays: longer than any call of the tests."""

# The judges tell sound in clear from noise, which takes a codec that does not compress.
_CODECS = """
[audio_codec_0]
mime=PCMU
rate=8000
channels=1
enabled=1

[audio_codec_1]
mime=opus
rate=48000
channels=2
enabled=0

[audio_codec_2]
mime=speex
rate=16000
channels=1
enabled=0

[audio_codec_3]
mime=speex
rate=8000
channels=1
enabled=0

[audio_codec_4]
mime=PCMA
rate=8000
channels=1
enabled=0
"""


def voice(path: Path, tone: int, seconds: int = VOICE_SECONDS) -> Path:
    """A recording of a tone, hertz."""
    # Whole periods of a second repeat without a click.
    second = array.array("h", (int(8000 * math.sin(math.tau * tone * n / 8000)) for n in range(8000)))
    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(second.tobytes() * seconds)
    return path


class LinPhone(CallPhone):
    """One linphonec in a node; a context manager. It is told by its standard input, and tells by its output."""

    kind = "linphone"

    def __init__(self, node: Node, directory: Path, tone: int) -> None:
        super().__init__(node, directory, tone)
        self._process: subprocess.Popen[str] | None = None

    def write(self, account: PhoneAccount) -> Provisioned:
        return linphone(account, self.directory)

    def unregistered(self) -> None:
        path = self.directory / "linphonerc"
        text = re.sub(r"\[(proxy_0|auth_info_0)\]\n(?:.+\n)*", "", path.read_text())
        path.write_text(text.replace("[sip]\n", f"[sip]\ncontact={self.identity}\n"))

    def __enter__(self) -> LinPhone:
        home = self.directory / "home"
        (home / ".local/share/linphone").mkdir(parents=True)
        rc = self.directory / "linphonerc"
        rc.write_text(rc.read_text() + _CODECS)
        with (self.directory / "log").open("w") as log:
            self._process = netns.popen(
                ["stdbuf", "-oL", "linphonec", "-c", str(rc), "-d", "2", "-l", str(self.directory / "debug")],
                self.node.namespace,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
                env={**os.environ, "HOME": str(home)},
                cwd=self.directory,
                start_new_session=True,
            )
        self.tell("soundcard use files", f"play {voice(self.directory / 'voice.wav', self.tone)}")
        self.tell(f"record {self.directory}/heard.wav", f"autoanswer {'enable' if self.answers else 'disable'}")
        self.wait_log(r"Auto answer (en|dis)abled", "it gets ready")
        return self

    def __exit__(self, *_: object) -> None:
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdin is not None
        process.stdin.close()

    def tell(self, *commands: str) -> None:
        assert self._process is not None and self._process.stdin is not None
        for command in commands:
            self._process.stdin.write(command + "\n")
            self._process.stdin.flush()

    def wait_log(self, pattern: str, what: str, mark: int = 0, seconds: float = SECONDS) -> re.Match[str]:
        """Wait until its output, from ``mark`` on, has a match."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.log()[mark:])):
            if time.monotonic() > deadline:
                pytest.fail(f"{self.identity} waited {seconds} s: {what}\n{self.log()[-3000:]}")
            time.sleep(0.05)
        return found

    def registered(self) -> LinPhone:
        debug = self.directory / "debug"
        eventually(lambda: "to [LinphoneRegistrationOk]" in debug.read_text(), f"{self.identity} registers", SECONDS)
        return self

    @property
    def mark(self) -> int:
        return len(self.log())

    def ring(self, uri: str) -> int:
        mark = self.mark
        self.tell(f"call {uri}")
        return mark

    def await_ringing(self, mark: int) -> None:
        self.wait_log(r"(?i)ringing|is contacting you|incoming", "it rings", mark)

    def await_answer(self, mark: int = 0) -> None:
        self.wait_log(r"connected|Media streams established", "an answer", mark)

    def await_end(self, mark: int = 0, seconds: float = SECONDS) -> None:
        self.wait_log(r"Call \d+ with .* (ended|error|declined)|Call \d+ .*ended", "the end of the call", mark, seconds)

    def hang_up(self) -> None:
        self.tell("terminate")

    def hold(self) -> None:
        self.tell("pause")

    def resume(self) -> None:
        self.tell("resume")

    def transfer(self, uri: str) -> None:
        self.tell(f"transfer {uri}")

    def counters(self) -> list[tuple[int, int]]:
        # It tells them whenever the media change, from the beginning of the call.
        told = re.findall(
            r"message-(sent|received) +(\d+) packets|(LinphoneCallReleased)",
            (self.directory / "debug").read_text(errors="replace"),
        )
        calls: list[tuple[int, int]] = []
        latest: dict[str, int] = {}
        for name, number, released in [*told, ("", "", "end")]:
            if not released:
                latest[name] = int(number)
            elif latest:
                calls.append((latest["sent"], latest["received"]))
                latest = {}
        return calls

    def recordings(self) -> list[Path]:
        path = self.directory / "heard.wav"
        return [path] if path.exists() else []

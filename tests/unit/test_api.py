"""The local API's server on a real socket: versions, limits, and clients that behave badly."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from users import user

from dnat.client import Client
from dnat.client.aio import AsyncClient
from dnat.config import ApiSettings, HostSettings
from dnat.daemon import api
from dnat.daemon.host import HostRole
from dnat.daemon.privileged import Privileged
from dnat.daemon.programs import Programs
from dnat.daemon.session import UNREAD_OCTETS, Session
from dnat.errors import NotRunningError, PlatformError, UsageError
from dnat.instance import Instance
from dnat.system.journal import Journal

NOBODY = 65534
JSON = st.recursive(st.none() | st.text(), st.lists)


@pytest.fixture
def path() -> Iterator[Path]:
    """A socket that every user reaches."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory) / "api.sock"


async def echo(text: str = "", count: int = 1) -> str:
    return text * count


class Scene:
    """A server and what it saw."""

    def __init__(self, path: Path, group: str = "*") -> None:
        self.path = path
        self.sessions: list[Session] = []
        self.ended: list[Session] = []
        self.server = api.ApiServer(
            path,
            readers={"echo": echo, "name": self.name},
            writers={"change": echo},
            watchers={"watch": self.watch},
            programs={"lease": self.watch},
            group=group,
        )

    async def name(self, name: str) -> str:
        return name

    async def watch(self, session: Session) -> int:
        self.sessions.append(session)
        session.on_end.append(lambda: self.ended.append(session))
        return len(self.sessions)


def play(story: Callable[[Scene], Awaitable[None]], path: Path, group: str = "*") -> None:
    """Run a story with a server."""

    async def run() -> None:
        scene = Scene(path, group)
        await scene.server.start()
        await story(scene)
        scene.server.stop()

    asyncio.run(run())


async def raw(path: Path, octets: bytes) -> list[dict[str, Any]]:
    """What the server answers to octets and the end of the stream."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(octets)
    writer.write_eof()
    said = await reader.read()
    writer.close()
    return [json.loads(line) for line in said.splitlines()]


async def eventually(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not check():
            await asyncio.sleep(0.01)


def test_the_highest_common_version_is_spoken(path: Path) -> None:
    async def story(scene: Scene) -> None:
        client = await AsyncClient.connect(scene.path)
        assert await client.call("hello") == {"version": 1, "versions": [1]}
        assert (await client.call("hello", versions=[1, 7]))["version"] == 1
        with pytest.raises(UsageError, match="speaks version 1"):
            await client.call("hello", versions=[7])
        assert await client.call("echo", text="still served") == "still served"
        client.close()

    play(story, path)


def test_what_is_not_allowed_is_refused_and_said(path: Path) -> None:
    async def story(scene: Scene) -> None:
        with user(NOBODY):
            client = await AsyncClient.connect(scene.path)
        assert await client.call("echo", text="x") == "x"
        if os.geteuid() == 0:
            with pytest.raises(PlatformError, match="for root"):
                await client.call("change")
            with pytest.raises(PlatformError, match='group "no such group"'):
                await client.call("lease")
        with pytest.raises(UsageError, match='no method "nonsense"'):
            await client.call("nonsense")
        with pytest.raises(UsageError, match="wrong parameters"):
            await client.call("echo", nonsense=1)
        client.close()

    play(story, path, group="no such group")


@settings(max_examples=60)
@given(
    st.lists(
        st.binary(max_size=300) | st.recursive(st.none() | st.text(), st.lists).map(lambda x: json.dumps(x).encode())
    )
)
def test_garbage_is_answered_line_by_line(lines: list[bytes]) -> None:
    """Each line gets one refusal, and the next client is served."""
    lines = [line.replace(b"\n", b"") for line in lines]

    async def story(scene: Scene) -> None:
        answers = await raw(scene.path, b"".join(line + b"\n" for line in lines))
        assert [answer["error"]["kind"] for answer in answers] == ["UsageError"] * len(lines)
        assert await raw(scene.path, b'{"method": "echo", "parameters": {"text": "x"}}\n') == [{"result": "x"}]

    with tempfile.TemporaryDirectory() as directory:
        play(story, Path(directory) / "api.sock")


@pytest.mark.parametrize(
    ("method", "parameters", "words"),
    [
        ("echo", {"text": 5}, "'text': Expected `str`, got `int`"),
        ("echo", {"text": "x", "count": True}, "'count': Expected `int`, got `bool`"),
        ("echo", {"text": None}, "'text'"),
        ("change", {"many": 1}, "'many' is not one of text, count"),
        ("name", {}, "'name' is missing"),
        ("name", {"name": ["x"]}, "'name': Expected `str`, got `array`"),
        ("name", {"name": "x", "self": 1}, "'self' is not one of name"),
        ("name", {"name": "\udcff"}, "in UTF-8"),
    ],
)
def test_parameters_are_checked_before_anything_is_done(
    path: Path, method: str, parameters: dict[str, Any], words: str
) -> None:
    """What a method is given has the types that it says; it never works with half of it."""

    async def story(scene: Scene) -> None:
        (answer,) = await raw(scene.path, json.dumps({"method": method, "parameters": parameters}).encode() + b"\n")
        assert answer["error"]["kind"] == "UsageError"
        assert words in answer["error"]["message"]

    play(story, path)


def test_a_line_without_an_end_costs_its_sender_the_connection(path: Path) -> None:
    async def story(scene: Scene) -> None:
        reader, writer = await asyncio.open_unix_connection(scene.path)
        writer.write(b"x" * 5 * api.LINE_OCTETS)
        said = await reader.readline()
        assert f"at most {api.LINE_OCTETS} octets" in said.decode()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()
        assert await raw(scene.path, b'{"method": "echo"}\n') == [{"result": ""}]

    play(story, path)


def test_a_client_in_mid_sentence_holds_up_nobody(path: Path) -> None:
    async def story(scene: Scene) -> None:
        slow = [await asyncio.open_unix_connection(scene.path) for _ in range(20)]
        for _, writer in slow:
            writer.write(b'{"method": ')
        assert await raw(scene.path, b'{"method": "echo"}\n') == [{"result": ""}]
        for _, writer in slow:
            writer.close()

    play(story, path)


def test_who_does_not_read_misses_events_and_is_told(path: Path) -> None:
    """The server keeps what it may, and no more; another watcher gets everything."""
    event = {"event": "granted", "padding": "x" * 1000}

    async def story(scene: Scene) -> None:
        slow, quick = await AsyncClient.connect(scene.path), await AsyncClient.connect(scene.path)
        # A reader that asyncio does not read ahead for.
        slow._reader._transport.pause_reading()  # type: ignore[attr-defined]
        for client in (slow, quick):
            client._writer.write(b'{"method": "watch"}\n')
        await eventually(lambda: len(scene.sessions) == 2)
        assert (await quick._read())["result"]
        for _ in range(3000):
            for session in scene.sessions:
                session.tell(event)
            assert await quick.event() == event
        unread = max(session._writer.transport.get_write_buffer_size() for session in scene.sessions)
        assert UNREAD_OCTETS < unread < UNREAD_OCTETS + 2000
        slow._reader._transport.resume_reading()  # type: ignore[attr-defined]
        assert (await slow._read())["result"]
        count = 0
        while (said := await slow.event()) == event:
            count += 1
        assert said == {"event": "missed"}
        assert 60 < count < 2999
        for session in scene.sessions:
            session.tell(event)
        assert await slow.event() == event
        slow.close()
        quick.close()

    play(story, path)


def test_the_end_of_a_connection_is_noticed(path: Path) -> None:
    async def story(scene: Scene) -> None:
        client = await AsyncClient.connect(scene.path)
        await client.call("watch")
        assert not scene.ended
        client.close()
        await eventually(lambda: scene.ended == scene.sessions)

    play(story, path)


def test_who_leases_again_and_again_is_waited_for_once(path: Path) -> None:
    """A program may lease and give back for months on one connection."""

    async def story(scene: Scene) -> None:
        reader, writer = await asyncio.open_unix_connection(scene.path)
        writer.write(b'{"method": "watch"}\n')
        await reader.readline()
        (session,) = scene.sessions
        privileged = Privileged(Journal(path.with_name("journal.json")))
        host = HostRole(Instance("test"), HostSettings(), privileged)
        programs = Programs(ApiSettings(), path.with_name("programs.json"), host)
        waiting = len(session.on_end)
        for handle in range(1, 101):
            programs._bind(handle, session)
            programs._forget(handle)
        assert len(session.on_end) == waiting + 1
        writer.close()
        await eventually(lambda: not session.on_end)
        privileged.close()

    play(story, path)


def test_a_daemon_that_stops_takes_nothing_from_its_clients(path: Path) -> None:
    """Another one may follow, and they will come back."""

    async def story(scene: Scene) -> None:
        client = await AsyncClient.connect(scene.path)
        await client.call("watch")
        scene.server.stop()
        client.close()
        await eventually(lambda: not scene.server._sessions)
        assert not scene.ended

    play(story, path)


def test_one_user_cannot_lock_out_the_others(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("being several users needs root")

    async def story(scene: Scene) -> None:
        clients = []
        with user(NOBODY):
            for _ in range(api.CONNECTIONS_PER_USER):
                clients.append(await AsyncClient.connect(scene.path))
            with pytest.raises(PlatformError, match="this user has"):
                await AsyncClient.connect(scene.path)
        for uid in (NOBODY - 1, 0):
            with user(uid):
                clients.append(await AsyncClient.connect(scene.path))
            assert await clients[-1].call("echo", text="x") == "x"
        for client in clients:
            client.close()
        await eventually(lambda: not scene.server._sessions)
        with user(NOBODY):
            (await AsyncClient.connect(scene.path)).close()

    play(story, path)


def test_who_asks_without_pause_waits_and_nobody_else(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("being several users needs root")

    async def story(scene: Scene) -> None:
        with user(NOBODY):
            greedy = await AsyncClient.connect(scene.path)
        modest = await AsyncClient.connect(scene.path)
        for _ in range(int(api.QUESTIONS.at_once) - 1):
            await greedy.call("echo")
        began = asyncio.get_running_loop().time()
        waiting = asyncio.gather(*(asyncio.create_task(_burst(greedy, 25)) for _ in range(1)))
        for _ in range(500):
            await modest.call("echo")
        assert not waiting.done(), "500 questions of another user were answered meanwhile"
        await waiting
        assert asyncio.get_running_loop().time() - began > 0.3
        greedy.close()
        modest.close()

    play(story, path)


async def _burst(client: AsyncClient, count: int) -> None:
    for _ in range(count):
        await client.call("echo")


def test_the_client_says_what_is_wrong(path: Path) -> None:
    with pytest.raises(NotRunningError, match="not up"):
        Client(path.with_name("none"))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    with ExitStack() as stack:
        stack.callback(listener.close)
        silent = stack.enter_context(Client(path, timeout=0.05))
        with pytest.raises(NotRunningError, match="does not answer"):
            silent.call("status")
        gone = stack.enter_context(Client(path))
        for _ in range(2):
            listener.accept()[0].close()
        with pytest.raises(NotRunningError, match="went away"):
            gone.call("status")


@pytest.mark.parametrize(
    "said",
    [
        b"SSH-2.0-OpenSSH_9.2",
        b"[]",
        b"5",
        b'"event"',
        b'{"ok": true}',
        b'{"error": "no"}',
        b'{"error": {"kind": 5}}',
        b"\xff",
    ],
)
def test_a_socket_that_is_not_this_daemons(path: Path, said: bytes) -> None:
    """Of another version, or of another program: said in a sentence, by both clients."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def answer() -> None:
            with suppress(OSError):
                while True:
                    peer, _ = listening.accept()
                    with peer:
                        peer.recv(1000)
                        peer.sendall(said + b"\n")

        threading.Thread(target=answer, daemon=True).start()
        with Client(path) as client, pytest.raises(NotRunningError, match="not this version"):
            client.call("status")
        with pytest.raises(NotRunningError, match="not this version"):
            asyncio.run(AsyncClient.connect(path))
        listening.shutdown(socket.SHUT_RDWR)


def test_text_that_is_none_is_not_sent(path: Path) -> None:
    """As an argument in Latin-1 becomes one for Python."""

    async def story(scene: Scene) -> None:
        def ask() -> None:
            with Client(path) as client:
                with pytest.raises(UsageError, match="UTF-8"):
                    client.call("echo", text="f\udcfcr")
                assert client.call("echo", text="für") == "für"

        await asyncio.to_thread(ask)

    play(story, path)


def test_a_closed_client_says_so_to_whoever_waits(path: Path) -> None:
    """One thread waits for events, another closes: at any moment."""

    async def story(scene: Scene) -> None:
        def race() -> None:
            for _ in range(100):
                client = Client(path)
                client.call("watch")
                closing = threading.Thread(target=client.close)
                closing.start()
                with pytest.raises(NotRunningError):
                    client.event()
                closing.join()

        await asyncio.to_thread(race)

    play(story, path)

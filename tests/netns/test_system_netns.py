"""Namespaces: made and removed as iproute2 does, entered without mounting anything."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from inside import run

from dnat.errors import PlatformError, UsageError
from dnat.system import netns

WHERE = "from dnat.system import netns; print(netns.instance_name())"


def test_iproute2_sees_ours_and_we_see_its(prefix: str) -> None:
    ours, its = f"{prefix}-ours", f"{prefix}-its"
    try:
        assert netns.create(ours) is True
        assert netns.create(ours) is False
        subprocess.run(["ip", "netns", "add", its], check=True)
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
        assert ours in listed
        assert {ours, its} <= set(netns.names())
        assert netns.exists(its)
        subprocess.run(["ip", "netns", "del", ours], check=True)
        assert not netns.exists(ours)
    finally:
        for name in (ours, its):
            netns.delete(name)
    assert netns.delete(ours) is False
    assert not {ours, its} & set(netns.names())


def test_an_instance_is_called_like_its_namespace(namespace: Callable[[str], str]) -> None:
    name = namespace("node")
    assert netns.instance_name() == "default"
    with netns.enter(name):
        assert netns.instance_name() == name
    assert netns.instance_name() == "default"
    assert run(name, sys.executable, "-c", WHERE).strip() == name
    unnamed = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", WHERE], capture_output=True, text=True, check=True
    ).stdout.strip()
    assert unnamed.startswith("netns-") and unnamed[6:].isdecimal()


def test_a_user_without_rights_learns_the_instance_too(namespace: Callable[[str], str]) -> None:
    name = namespace("node")
    command = ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-c", WHERE]
    assert run(name, *command).strip() == name
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "default"


def test_only_the_calling_thread_moves(namespace: Callable[[str], str]) -> None:
    name = namespace("node")
    entered, looked = threading.Event(), threading.Event()

    def elsewhere() -> None:
        with netns.enter(name):
            entered.set()
            looked.wait(5)

    other = threading.Thread(target=elsewhere)
    other.start()
    assert entered.wait(5)
    assert netns.instance_name() == "default"
    looked.set()
    other.join()


def test_the_thread_comes_back_after_an_error(namespace: Callable[[str], str]) -> None:
    name = namespace("node")
    with pytest.raises(ValueError, match="inside"), netns.enter(name):
        assert netns.instance_name() == name
        raise ValueError("inside")
    assert netns.instance_name() == "default"


def test_programs_see_the_same_file_systems(namespace: Callable[[str], str]) -> None:
    """``ip netns exec`` would give them another /sys, where nothing is pinned."""
    name = namespace("node")
    here = Path("/proc/self/mountinfo").read_text().splitlines()
    there = run(name, "cat", "/proc/self/mountinfo").splitlines()
    assert len(there) == len(here)
    assert run(name, "readlink", "/proc/self/ns/mnt").strip() == str(Path("/proc/self/ns/mnt").readlink())


def test_processes_are_found_by_their_namespace(namespace: Callable[[str], str]) -> None:
    one, other = namespace("one"), namespace("other")
    with netns.popen(["sleep", "30"], one) as sleeping:
        assert netns.processes([one]) == [sleeping.pid]
        assert netns.processes([other]) == []
        assert netns.processes([one, other, "nowhere"]) == [sleeping.pid]
        sleeping.kill()


def test_unknown_namespaces_are_answered_with_the_known_ones(namespace: Callable[[str], str]) -> None:
    name = namespace("node")
    with pytest.raises(UsageError, match=f"no network namespace called nowhere; there are: .*{name}"):
        netns.run(["true"], "nowhere")


def test_a_plain_file_is_no_namespace(prefix: str) -> None:
    path = Path("/run/netns", prefix)
    path.parent.mkdir(exist_ok=True)
    path.touch()
    try:
        assert not netns.exists(prefix)
        with pytest.raises(PlatformError, match="cannot enter"), netns.enter(prefix):
            pass
        assert netns.create(prefix) is True
    finally:
        netns.delete(prefix)


def test_without_root_a_sentence_says_so() -> None:
    script = "from dnat.system import netns\ntry: netns.require_root()\nexcept Exception as e: print(repr(e))"
    command = ["setpriv", "--reuid=65534", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
    result = subprocess.run([*command, sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "PlatformError" in result.stdout and "sudo" in result.stdout, result.stderr
    netns.require_root()


def test_importing_the_package_costs_little() -> None:
    script = (
        "import sys, dnat.system.host, dnat.system.router, dnat.system.undo, dnat.system.links\n"
        "print(sorted({'pyroute2.netlink', 'nftables', 'asyncio'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_netlink_comes_without_what_is_not_used_of_it() -> None:
    script = (
        "import sys, dnat.system.netlink as ours\n"
        "print({'sqlite3', 'pyroute2.ndb.main', 'pyroute2'} & set(sys.modules))\n"
        "import pyroute2\n"
        "print(pyroute2.NDB.__name__, pyroute2.IPRoute is ours.IPRoute)"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\nNDB True\n"

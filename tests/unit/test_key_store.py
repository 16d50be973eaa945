"""Keys on disk: those of a server, and the one of a host."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest

from dnat import key_file
from dnat.errors import PlatformError, UsageError
from dnat.pap.auth import Key
from dnat.pap.keyring import DropKey, KeyChange, KeyRecord, KeyState, PutKey
from dnat.store import SqliteKeyStore, StoreError
from dnat.store.keys import KeyStoreState

KEY = Key(0xFEEDF00D, bytes(range(32)))
NEW = KeyRecord(KEY, "phone", None, KeyState.NEW, False, 1000.5)
USED = KeyRecord(Key(1, bytes(32)), "10.66.0.11", bytes(16), KeyState.RETIRING, True, 1000.25, 2000.75, True)


def written(path: Path, *changes: KeyChange) -> KeyStoreState:
    """What a fresh process finds after the changes."""

    async def do() -> KeyStoreState:
        store = SqliteKeyStore(path)
        await store.open()
        await store.transact(changes)
        await store.close()
        again = SqliteKeyStore(path)
        state = await again.open()
        await again.close()
        return state

    return asyncio.run(do())


def test_keys_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "keys.sqlite"
    state = written(path, PutKey(NEW), PutKey(USED))
    assert set(state.records) == {NEW, USED}
    assert written(path, DropKey(1)).records == (NEW,)
    assert written(path).cookie_secret == state.cookie_secret
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_rights_that_were_widened_are_narrowed(tmp_path: Path) -> None:
    path = tmp_path / "keys.sqlite"
    written(path, PutKey(NEW))
    path.chmod(0o644)
    written(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_damaged_store_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "keys.sqlite"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match="damaged"):
        written(path)
    assert path.read_bytes() == b"no database" * 1000


def test_a_forgotten_key_leaves_no_trace_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "keys.sqlite"
    written(path, PutKey(NEW))
    assert KEY.secret in path.read_bytes()
    written(path, DropKey(KEY.id))
    assert KEY.secret not in path.read_bytes()
    assert [each.name for each in tmp_path.iterdir()] == ["keys.sqlite"]


def test_a_host_key_goes_to_its_file_and_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "key"
    assert key_file.load(path) is None
    for key in (Key(1, bytes(32)), KEY):
        key_file.save(path, key)
        assert key_file.load(path) == key
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["key"]


def test_a_key_that_others_can_read_is_none(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key_file.save(path, KEY)
    path.chmod(0o640)
    with pytest.raises(PlatformError, match="chmod 600"):
        key_file.load(path)


@pytest.mark.parametrize("text", ["", "secret", key_file.to_text(KEY)[:-1], "dnat-key-1:00000000:" + "A" * 43])
def test_what_is_no_key_is_not_repeated(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        key_file.from_text(text)
    assert not text or text not in str(caught.value)
    path = tmp_path / "key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(PlatformError, match="holds no key"):
        key_file.load(path)

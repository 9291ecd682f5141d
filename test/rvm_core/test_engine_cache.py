"""The engine cache: what it keeps, what it refuses, and what is left after every fault."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rvm_core import EngineError
from rvm_core.engines.build_lock import build_lock
from rvm_core.engines.cache import META, BadEntry, CacheEntry, EngineCache, EngineKey, default_root

KEY = EngineKey(
    backend="openvino",
    runtime="openvino 1.0",
    hardware="an abacus",
    precision="bf16",
    image_size=(64, 96),
    batch_size=1,
    weights="a" * 64,
    graph="b" * 64,
)
CONTENT = b"engine" * 1000
WAIT_S = 60.0
"""Bound of every wait for another process."""

as_user = pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


def write_engine(folder: Path) -> None:
    (folder / "part").mkdir()
    (folder / "part" / "engine.bin").write_bytes(CONTENT)


@pytest.fixture
def entry(cache: EngineCache) -> CacheEntry:
    return cache.build(KEY, write_engine)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_what_is_built_is_found(cache: EngineCache) -> None:
    assert cache.find(KEY) is None
    built = cache.build(KEY, write_engine)
    found = EngineCache(cache.root).find(KEY)
    assert found == built
    assert found is not None and found.key == KEY and found.file_bytes == len(CONTENT)
    assert (found.folder / "part" / "engine.bin").read_bytes() == CONTENT
    assert cache.list() == (found,)
    assert names(cache.root) == {"locks", KEY.name}


def test_nothing_is_made_before_it_is_needed(cache: EngineCache) -> None:
    assert cache.find(KEY) is None and cache.list() == () and cache.clear() == (0, 0)
    assert not cache.root.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"backend": "torch"},
        {"runtime": "openvino 1.1"},
        {"hardware": "a slide rule"},
        {"precision": "fp32"},
        {"image_size": (96, 64)},
        {"batch_size": 2},
        {"weights": "c" * 64},
        {"graph": "d" * 64},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_part_of_the_key_counts(cache: EngineCache, entry: CacheEntry, change: dict[str, object]) -> None:
    other = replace(KEY, **change)  # type: ignore[arg-type]
    assert other.name != KEY.name
    assert cache.find(other) is None


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022])
def test_everything_is_the_owners_alone(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        cache = EngineCache(tmp_path / "engines")
        folder = cache.build(KEY, write_engine).folder
    finally:
        os.umask(before)
    for path in [cache.root, *cache.root.rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path
    assert (folder / "part" / "engine.bin").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_folder_that_others_can_write_is_refused(cache: EngineCache, entry: CacheEntry, mode: int) -> None:
    cache.root.chmod(mode)
    uses: list[Callable[[], object]] = [
        lambda: cache.find(KEY),
        lambda: cache.build(replace(KEY, batch_size=2), write_engine),
        cache.list,
        cache.clear,
    ]
    for use in uses:
        with pytest.raises(EngineError, match=r"writable by others.*chmod 700"):
            use()
    assert entry.folder.exists()


def test_a_folder_of_another_user_is_refused(
    cache: EngineCache, entry: CacheEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: entry.folder.stat().st_uid + 1)
    with pytest.raises(EngineError, match="belongs to user .*XDG_CACHE_HOME"):
        cache.find(KEY)


def truncate(folder: Path) -> None:
    os.truncate(folder / "part" / "engine.bin", len(CONTENT) // 2)


def flip_a_bit(folder: Path) -> None:
    path = folder / "part" / "engine.bin"
    data = bytearray(path.read_bytes())
    data[1234] ^= 1
    path.write_bytes(data)


def replace_by_link(folder: Path) -> None:
    path = folder / "part" / "engine.bin"
    target = folder.parent.parent / "elsewhere.bin"
    path.rename(target)
    path.symlink_to(target)


def edit_meta(change: Callable[[dict[str, dict[str, object]]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        meta = json.loads((folder / META).read_text())
        change(meta)
        (folder / META).write_text(json.dumps(meta))

    return damage


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (truncate, "part/engine.bin has 3000 bytes, expected 6000"),
    "changed": (flip_a_bit, "part/engine.bin was changed"),
    "missing": (lambda folder: (folder / "part" / "engine.bin").unlink(), "files are missing: part/engine.bin"),
    "foreign file": (lambda folder: (folder / "plugin.so").write_bytes(b""), "foreign files: plugin.so"),
    "link": (replace_by_link, "neither a file nor a folder"),
    "writable by others": (lambda folder: (folder / "part").chmod(0o777), "part is writable by others"),
    "no meta": (lambda folder: (folder / META).unlink(), "it has no meta.json"),
    "truncated meta": (lambda folder: os.truncate(folder / META, 40), "meta.json cannot be read"),
    "binary meta": (lambda folder: (folder / META).write_bytes(b"\xff\xfe"), "meta.json cannot be read"),
    "empty meta": (lambda folder: (folder / META).write_text("{}"), "its format is None, expected 1"),
    "other format": (edit_meta(lambda meta: meta.update(format=99)), "its format is 99, expected 1"),
    "incomplete meta": (edit_meta(lambda meta: meta.pop("files")), "meta.json is incomplete"),
    "other key": (edit_meta(lambda meta: meta["key"].update(runtime="openvino 0.9")), "its key is another one"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found(cache: EngineCache, entry: CacheEntry, damage: str) -> None:
    spoil, expected = DAMAGES[damage]
    spoil(entry.folder)
    with pytest.raises(BadEntry, match=expected):
        cache.find(KEY)


def test_a_copied_entry_of_another_key_is_found(cache: EngineCache, entry: CacheEntry) -> None:
    other = replace(KEY, weights="e" * 64)
    shutil.copytree(entry.folder, cache.root / other.name)
    with pytest.raises(BadEntry, match="its key is another one"):
        cache.find(other)


def test_quarantine_keeps_the_last_bad_entry_with_its_reason(cache: EngineCache) -> None:
    for reason in ("first", "second"):
        cache.build(KEY, write_engine)
        place = cache.quarantine(KEY, reason)
        assert cache.find(KEY) is None
    assert (place / "reason.txt").read_text() == "second\n"
    assert (place / "entry" / "part" / "engine.bin").read_bytes() == CONTENT
    assert names(cache.root / "quarantine") == {KEY.name}
    assert cache.list() == ()


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), ValueError("no"), KeyboardInterrupt()]
)
def test_a_failed_build_leaves_nothing(cache: EngineCache, error: BaseException) -> None:
    def fail(folder: Path) -> None:
        write_engine(folder)
        raise error

    expected = EngineError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught:
        cache.build(KEY, fail)
    if isinstance(error, OSError):
        assert "No space left on device. Free space" in str(caught.value) and str(cache.root) in str(caught.value)
    assert names(cache.root) == {"locks"}


@pytest.mark.parametrize("place", ["write_text", "chmod"])
def test_disk_full_while_the_entry_is_sealed(cache: EngineCache, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, place, full)
    with pytest.raises(EngineError, match="No space left on device"):
        cache.build(KEY, write_engine)
    assert names(cache.root) == {"locks"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir(mode=0o700)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k,mode=700", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_real_full_disk(small_disk: Path) -> None:
    cache = EngineCache(small_disk / "engines")
    kept = cache.build(KEY, write_engine)
    with pytest.raises(EngineError, match="No space left on device"):
        cache.build(replace(KEY, batch_size=2), lambda folder: void((folder / "big").write_bytes(bytes(1 << 20))))
    assert cache.list() == (kept,) and cache.find(KEY) == kept


def void(value: object) -> None:
    pass


@as_user
def test_a_read_only_folder_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(EngineError, match="Permission denied.*XDG_CACHE_HOME"):
            EngineCache(tmp_path / "engines").build(KEY, write_engine)
    finally:
        tmp_path.chmod(0o700)


def test_a_file_system_without_writing_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(EngineError, match="cannot keep the engine in /proc/rvm/engines.*XDG_CACHE_HOME"):
        EngineCache("/proc/rvm/engines").build(KEY, write_engine)


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "engines").touch(mode=0o600)
    with pytest.raises(EngineError, match="is no folder"):
        EngineCache(tmp_path / "engines").build(KEY, write_engine)


def test_default_folder_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert EngineCache().root == default_root() == tmp_path / "xdg" / "rvm_perception" / "engines"
    for ignored in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert default_root() == tmp_path / "home" / ".cache" / "rvm_perception" / "engines"


def test_temporary_cache_is_private_and_goes_away() -> None:
    cache = EngineCache.temporary()
    folder = cache.build(KEY, write_engine).folder
    root = cache.root
    assert root.stat().st_mode & 0o777 == 0o700 and folder.exists()
    del cache
    assert not root.exists()


def test_clear_deletes_everything_but_what_is_being_built(cache: EngineCache, entry: CacheEntry) -> None:
    busy = replace(KEY, batch_size=2)
    cache.build(busy, write_engine)
    cache.build(replace(KEY, batch_size=3), write_engine)
    cache.quarantine(replace(KEY, batch_size=3), "bad")
    (cache.root / f".building-{KEY.name}-0123abcd").mkdir()
    (cache.root / f".building-{busy.name}-0123abcd").mkdir()
    with cache.lock(busy, void):
        # Taking the lock removed what a killed builder of the same key had left.
        assert not (cache.root / f".building-{busy.name}-0123abcd").exists()
        (cache.root / f".building-{busy.name}-4567cdef").mkdir()
        count, size = cache.clear()
    assert count == 3 and size > 2 * len(CONTENT)
    assert names(cache.root) == {"locks", "quarantine", busy.name, f".building-{busy.name}-4567cdef"}
    assert names(cache.root / "quarantine") == set()


def test_lock_is_held_by_one_and_the_others_say_so(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lines: list[str] = []
    order: list[str] = []

    def wait() -> None:
        with build_lock(path, lines.append):
            order.append("second")

    with build_lock(path):
        with build_lock(path, wait=False) as held:
            assert not held
        thread = threading.Thread(target=wait)
        thread.start()
        deadline = time.monotonic() + WAIT_S
        while not lines and time.monotonic() < deadline:
            thread.join(0.01)
        order.append("first")
    thread.join(WAIT_S)
    assert order == ["first", "second"]
    assert lines == [f"another process (pid {os.getpid()}) is building this engine: waiting for it"]


HOLD = """
import sys, time
from pathlib import Path
from rvm_core.engines.cache import EngineCache, EngineKey
cache = EngineCache(sys.argv[1])
key = EngineKey(**{**%r, "image_size": (64, 96)})
def write(folder):
    (folder / "half").write_text("half")
    print("building", flush=True)
    sys.stdin.read()
with cache.lock(key, print):
    cache.build(key, write)
"""


def test_a_killed_builder_leaves_no_lock_and_no_rubbish(cache: EngineCache) -> None:
    code = HOLD % vars(KEY)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(cache.root)],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "building\n"
    with build_lock(cache.root / "locks" / f"{KEY.name}.lock", wait=False) as held:
        assert not held
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=WAIT_S)
    assert any(name.startswith(".building-") for name in names(cache.root))
    lines: list[str] = []
    with cache.lock(KEY, lines.append):
        assert cache.find(KEY) is None
        cache.build(KEY, write_engine)
    assert lines == []
    assert names(cache.root) == {"locks", KEY.name}

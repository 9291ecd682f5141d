"""Built engines on the disk: each under a key of all that determines it, checked whenever it is read.

Engine files are code, so the folder belongs to its user alone. An entry is built in a folder beside its place and
renamed, and never changed afterwards, except for the report of the numeric gate that lies in it.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rvm_core.atomic import atomic_file, flush, publish
from rvm_core.engines.base import EngineError, Progress
from rvm_core.engines.build_lock import build_lock
from rvm_core.engines.gate import GateReport

META, GATE = "meta.json", "gate.json"
FORMAT = 1
"""Of the folder's layout; entries of another one are built again."""

_QUARANTINE, _LOCKS, _BUILDING = "quarantine", "locks", ".building-"


@dataclass(frozen=True, kw_only=True)
class EngineKey:
    """All that built files depend on: two engines with one key are interchangeable."""

    backend: str
    runtime: str
    """Name and version."""
    hardware: str
    precision: str
    image_size: tuple[int, int]
    batch_size: int
    weights: str
    """`rvm_core.checkpoint.weights_hash`."""
    graph: str
    """Of the model's sizes and the code that turns it into this backend's graph."""

    def digest(self) -> str:
        """sha256 (hex) of all fields."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """Of the entry's folder: readable, and different for different keys."""
        height, width = self.image_size
        return f"{self.backend}-{self.precision}-{height}x{width}-b{self.batch_size}-{self.digest()[:20]}"


class BadEntry(Exception):
    """An entry is not what was written; the text says how."""


@dataclass(frozen=True)
class CacheEntry:
    """One engine on the disk."""

    folder: Path
    key: EngineKey
    file_bytes: int
    """Of the engine's own files."""
    created: float
    """Seconds since 1970."""

    def read_gate(self) -> GateReport | None:
        """The stored report; None if there is none that this version can use."""
        try:
            return GateReport.from_json((self.folder / GATE).read_text())
        except (OSError, ValueError):
            return None

    def write_gate(self, report: GateReport) -> None:
        """Stores a report beside the engine. Raises `EngineError` if it cannot be written."""
        try:
            with atomic_file(self.folder / GATE) as temporary:
                temporary.write_text(report.to_json() + "\n")
            (self.folder / GATE).chmod(0o600)
        except OSError as error:
            raise EngineError(_explain(error, self.folder)) from error


def default_root() -> Path:
    """rvm_perception/engines in $XDG_CACHE_HOME or ~/.cache. Raises `EngineError` if there is no home folder."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification has relative paths ignored.
    if os.path.isabs(cache):
        base = Path(cache)
    else:
        try:
            base = Path.home() / ".cache"
        except RuntimeError as error:
            raise EngineError("there is no home folder to keep engines in: set XDG_CACHE_HOME to a folder") from error
    return base / "rvm_perception" / "engines"


class EngineCache:
    """A folder of engines. Made when it is first needed, for its owner only."""

    def __init__(self, root: str | Path | None = None) -> None:
        """root: None for `default_root`. Nothing is touched yet."""
        self.root = Path(root) if root is not None else default_root()
        self._temporary: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def temporary(cls) -> EngineCache:
        """A private folder that is deleted when the process ends: for a machine where nothing may be kept.

        Every start builds its engine anew. Raises `EngineError` if no temporary folder can be made.
        """
        try:
            folder = tempfile.TemporaryDirectory(prefix="rvm-engines-")
        except OSError as error:
            raise EngineError(_explain(error, Path(tempfile.gettempdir()))) from error
        cache = cls(folder.name)
        cache._temporary = folder
        return cache

    def find(self, key: EngineKey) -> CacheEntry | None:
        """The entry of a key, every file of it checked; None if there is none.

        Raises `BadEntry` if it is damaged or was not written by this class, and `EngineError` if the folder is not the
        user's alone or cannot be read.
        """
        folder = self.root / key.name
        try:
            if not self.root.exists():
                return None
            self._check_private(self.root)
            if not folder.is_symlink() and not folder.exists():
                return None
            entry = _read_entry(folder)
            if entry.key != key:
                raise BadEntry("its key is another one")
            _check_files(folder)
        except FileNotFoundError as error:
            raise BadEntry(f"{error.filename} vanished") from error
        except OSError as error:
            raise EngineError(f"cannot read the engine in {folder}: {error.strerror or error}") from error
        return entry

    @contextmanager
    def lock(self, key: EngineKey, progress: Progress) -> Iterator[None]:
        """Only one process at a time holds the lock of a key; others wait and say so. It ends with the process."""
        self._prepare()
        with build_lock(self.root / _LOCKS / f"{key.name}.lock", progress):
            self._remove_unfinished(key)
            yield

    def build(self, key: EngineKey, write: Callable[[Path], None]) -> CacheEntry:
        """Has `write` fill an empty folder, and makes it the entry of the key. The caller holds the key's lock.

        Whatever `write` raises, nothing is left behind. Raises `EngineError` if files cannot be written.
        """
        self._prepare()
        folder = self.root / f"{_BUILDING}{key.name}-{secrets.token_hex(4)}"
        try:
            folder.mkdir(mode=0o700)
            write(folder)
            _write_meta(folder, key)
            for path in folder.rglob("*"):
                # Whatever the umask was: in a folder that others may read, they must not be able to change a file.
                path.chmod(0o700 if path.is_dir() else 0o600)
                flush(path)
            publish(folder, self.root / key.name)
        except OSError as error:
            raise EngineError(_explain(error, self.root)) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        try:
            entry = self.find(key)
        except BadEntry as error:
            raise EngineError(f"{self.root / key.name} was damaged while it was written: {error}") from error
        assert entry is not None
        return entry

    def quarantine(self, key: EngineKey, reason: str) -> Path:
        """Puts the entry of a key aside, with the reason in reason.txt, instead of an older one of the same key.

        The caller holds the key's lock. Returns the folder it is in now. Raises `EngineError` if it cannot be moved.
        """
        target = self.root / _QUARANTINE / key.name
        try:
            self._make_private(target.parent)
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(mode=0o700)
            (self.root / key.name).rename(target / "entry")
            (target / "reason.txt").write_text(f"{reason}\n")
        except OSError as error:
            raise EngineError(_explain(error, self.root)) from error
        return target

    def list(self) -> tuple[CacheEntry, ...]:
        """All entries whose key can be read, oldest first; their files are not checked."""
        if not self.root.exists():
            return ()
        self._check_private(self.root)
        entries = []
        for meta in self.root.glob(f"*/{META}"):
            try:
                entries.append(_read_entry(meta.parent))
            except (BadEntry, OSError):
                continue
        return tuple(sorted(entries, key=lambda entry: entry.created))

    def clear(self) -> tuple[int, int]:
        """Deletes all entries, damaged and unfinished ones too. Returns how many folders and bytes are gone.

        What another process is building at the moment stays. Raises `EngineError` if something cannot be deleted.
        """
        if not self.root.exists():
            return 0, 0
        self._prepare()
        count = size = 0
        try:
            quarantine = self.root / _QUARANTINE
            folders = [*self.root.iterdir(), *(quarantine.iterdir() if quarantine.exists() else [])]
            for folder in folders:
                if folder.name in (_QUARANTINE, _LOCKS) or not folder.is_dir():
                    continue
                name = folder.name.removeprefix(_BUILDING)
                name = name if name == folder.name else name.rpartition("-")[0]
                with build_lock(self.root / _LOCKS / f"{name}.lock", wait=False) as held:
                    if held:
                        size += sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())
                        shutil.rmtree(folder)
                        count += 1
        except OSError as error:
            raise EngineError(_explain(error, self.root)) from error
        return count, size

    def _prepare(self) -> None:
        try:
            self.root.parent.mkdir(parents=True, exist_ok=True)
            self._make_private(self.root)
            self._make_private(self.root / _LOCKS)
        except OSError as error:
            raise EngineError(_explain(error, self.root)) from error

    def _make_private(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            self._check_private(folder)

    def _check_private(self, folder: Path) -> None:
        problem = _not_private(folder.stat())
        if problem or not folder.is_dir():
            raise EngineError(
                f"{folder} {problem or 'is no folder'}: engines are code and are kept only where nobody else can "
                f"write. Run `chmod 700 {folder}`, delete it, or set XDG_CACHE_HOME to a folder of your own"
            )

    def _remove_unfinished(self, key: EngineKey) -> None:
        """What a process left that was killed while it held the lock."""
        for folder in self.root.glob(f"{_BUILDING}{key.name}-*"):
            shutil.rmtree(folder, ignore_errors=True)


def _not_private(status: os.stat_result) -> str:
    """Why others could change a file or folder; empty if they cannot."""
    if status.st_uid != os.geteuid():
        return f"belongs to user {status.st_uid}, not to {os.geteuid()}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"is writable by others (mode {stat.S_IMODE(status.st_mode):o})"
    return ""


def _write_meta(folder: Path, key: EngineKey) -> None:
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    meta = {"format": FORMAT, "key": asdict(key), "created": time.time(), "files": files}
    (folder / META).write_text(json.dumps(meta, indent=2) + "\n")


def _read_meta(folder: Path) -> dict[str, Any]:
    try:
        meta = json.loads((folder / META).read_text())
    except FileNotFoundError:
        raise BadEntry(f"it has no {META}") from None
    except ValueError as error:
        raise BadEntry(f"{META} cannot be read: {error}") from None
    version = meta.get("format") if isinstance(meta, dict) else None
    if version != FORMAT:
        raise BadEntry(f"its format is {version!r}, expected {FORMAT}")
    assert isinstance(meta, dict)
    return meta


def _read_entry(folder: Path) -> CacheEntry:
    meta = _read_meta(folder)
    try:
        values = dict(meta["key"])
        key = EngineKey(**values | {"image_size": tuple(values["image_size"])})
        size = sum(int(file["bytes"]) for file in meta["files"].values())
        return CacheEntry(folder, key, size, float(meta["created"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadEntry(f"{META} is incomplete: {type(error).__name__}: {error}") from None


def _check_files(folder: Path) -> None:
    """Raises `BadEntry` unless the folder holds the files of its meta.json, bit for bit, and no others."""
    recorded = _read_meta(folder)["files"]
    found = {path.relative_to(folder).as_posix(): path.lstat() for path in folder.rglob("*")}
    for name, status in {".": folder.lstat(), **found}.items():
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise BadEntry(f"{name} is neither a file nor a folder")
        if problem := _not_private(status):
            raise BadEntry(f"{name} {problem}")
    files = {name for name, status in found.items() if stat.S_ISREG(status.st_mode)} - {META, GATE}
    if missing := recorded.keys() - files:
        raise BadEntry(f"files are missing: {', '.join(sorted(missing))}")
    if foreign := {name for name in files - recorded.keys() if not name.endswith(".tmp")}:
        raise BadEntry(f"it holds foreign files: {', '.join(sorted(foreign))}")
    for name, expected in recorded.items():
        if found[name].st_size != expected["bytes"]:
            raise BadEntry(f"{name} has {found[name].st_size} bytes, expected {expected['bytes']}")
        if _sha256(folder / name) != expected["sha256"]:
            raise BadEntry(f"{name} was changed: its sha256 differs")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _explain(error: OSError, folder: Path) -> str:
    return (
        f"cannot keep the engine in {folder}: {error.strerror or error}. Free space there, make it writable, or set "
        "XDG_CACHE_HOME to another folder; EngineCache.temporary() builds without keeping anything"
    )

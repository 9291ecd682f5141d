"""Downloads one file over HTTP: goes on after a break, and names the file only when it is whole and checked."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from rvm_core.atomic import atomic_file, publish
from rvm_core.file_lock import is_at, try_lock

ATTEMPTS = 5
"""Tries in one call; the pauses between them are 1, 2, 4 and 8 s."""
TIMEOUT = 30.0
"""Seconds without a byte after which a try has failed."""
SPARE_BYTES = 64 << 20
"""Left free on the disk."""
_CHUNK = 1 << 20
_NETWORK_ERRORS = (
    urllib.error.URLError,
    http.client.HTTPException,
    ssl.SSLError,
    ConnectionError,
    TimeoutError,
)
_WORTH_A_RETRY = (408, 416, 429, 500, 502, 503, 504)


class DownloadError(OSError):
    """A file cannot be downloaded; the message says why."""


class _Broken(ConnectionError):
    """A transfer that may work when tried again."""


def download(
    url: str,
    target: Path,
    *,
    allowed_bytes: range,
    check: Callable[[Path], object],
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Downloads `url` to `target`, showing a progress bar on a terminal.

    What has arrived stays in `target` + ".part" after a break, and the next call goes on from there if the server still
    has the same file.

    Args:
        url: http or https.
        target: its folder is made if need be; an existing file is replaced at the end.
        allowed_bytes: sizes that the server may announce.
        check: is given the whole file before it gets its name; if it raises, the file is deleted.
        pause: waits that many seconds between two tries.

    Raises:
        DownloadError: not reachable, refused, of another size, or no room on the disk.
        OSError: the file cannot be written.
    """
    if not re.match("https?://", url):
        raise DownloadError(f"expected a URL that starts with https:// or http://, got {url!r}")
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(url, target)
    with part.lock() as stream:
        for attempt in range(ATTEMPTS):
            try:
                if not part.complete(stream):
                    _transfer(part, stream, allowed_bytes)
                break
            except _NETWORK_ERRORS as error:
                if isinstance(error, urllib.error.HTTPError) and error.code == 416:
                    part.restart(stream)
                if attempt + 1 == ATTEMPTS or not _worth_a_retry(error):
                    raise DownloadError(f"could not download {url}: {_reason(error)}") from error
                tqdm.write(f"{_reason(error)}; trying again in {2**attempt} s", file=sys.stderr)
            pause(2.0**attempt)
        stream.flush()
        try:
            check(part.path)
        except Exception:
            part.forget()
            raise
        publish(part.path, target)
        part.forget()


def _worth_a_retry(error: Exception) -> bool:
    return not isinstance(error, urllib.error.HTTPError) or error.code in _WORTH_A_RETRY


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return str(reason) or type(reason).__name__


class _Part:
    """The unfinished file, with a note of what it is a part of."""

    def __init__(self, url: str, target: Path) -> None:
        self.url = url
        self.path = target.with_name(target.name + ".part")
        self._note_path = target.with_name(target.name + ".part.json")

    @contextlib.contextmanager
    def lock(self) -> Iterator[BinaryIO]:
        """Opens the file, which no other process may do at the same time. Raises `DownloadError` if one does."""
        with open(self.path, "ab") as stream:
            if not try_lock(stream):
                raise DownloadError(f"{self.path} is being written by another download")
            # Another download may have given it its name between the opening and the lock.
            if not is_at(stream, self.path):
                raise DownloadError(f"{self.path} was just finished by another download")
            try:
                yield stream
            finally:
                stream.flush()
                if self.path.exists() and not self.path.stat().st_size:
                    self.forget()

    def note(self) -> tuple[str, int]:
        """(validator, size of the whole) of the file that was begun; the validator is "" if it cannot be resumed."""
        try:
            note = json.loads(self._note_path.read_text())
            if note["url"] == self.url:
                return str(note["validator"]), int(note["size"])
        except (OSError, ValueError, TypeError, KeyError):
            pass
        return "", -1

    def write_note(self, validator: str, size: int) -> None:
        with atomic_file(self._note_path) as temporary:
            temporary.write_text(json.dumps({"url": self.url, "validator": validator, "size": size}))

    def complete(self, stream: BinaryIO) -> bool:
        validator, size = self.note()
        return bool(validator) and stream.tell() == size

    def restart(self, stream: BinaryIO) -> None:
        stream.truncate(0)
        stream.seek(0)

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)
        self._note_path.unlink(missing_ok=True)


def _transfer(part: _Part, stream: BinaryIO, allowed_bytes: range) -> None:
    """Appends what is missing. Raises `_Broken` if it ends early."""
    offset = stream.seek(0, 2)
    validator, size = part.note()
    headers = {"Accept-Encoding": "identity", "User-Agent": "rvm_perception"}
    if validator and 0 < offset < size:
        # If the file has changed since, the server sends all of the new one.
        headers |= {"Range": f"bytes={offset}-", "If-Range": validator}
    with urllib.request.urlopen(urllib.request.Request(part.url, headers=headers), timeout=TIMEOUT) as response:
        begin, total = _extent(response)
        if begin and (begin, total, _validator(response)) != (offset, size, validator):
            part.restart(stream)
            raise _Broken("the file on the server has changed")
        if begin != offset:
            part.restart(stream)
            offset = 0
        if total not in allowed_bytes:
            raise DownloadError(
                f"{part.url}: expected {allowed_bytes.start} to {allowed_bytes.stop - 1} bytes, "
                f"the server announces {total}"
            )
        free = shutil.disk_usage(part.path.parent).free
        if free < total - offset + SPARE_BYTES:
            raise DownloadError(f"{part.path.parent}: {total - offset} bytes are to be stored, {free} are free")
        part.write_note(_validator(response), total)
        with tqdm(total=total, initial=offset, unit="B", unit_scale=True, desc=part.path.stem, disable=None) as bar:
            while chunk := response.read(_CHUNK):
                stream.write(chunk)
                bar.update(len(chunk))
    stream.flush()
    if stream.tell() != total:
        raise _Broken(f"the connection ended after {stream.tell()} of {total} bytes")


def _extent(response: http.client.HTTPResponse) -> tuple[int, int]:
    """(first byte sent, size of the whole file)."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if match:
            return int(match.group(1)), int(match.group(2))
    elif response.status == 200 and response.headers.get("Content-Length", "").isdecimal():
        return 0, int(response.headers["Content-Length"])
    raise DownloadError(f"{response.url}: the server answered {response.status} without saying the size of the file")


def _validator(response: http.client.HTTPResponse) -> str:
    """What tells this version of the file from another: a strong ETag, else the date."""
    etag: str = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")

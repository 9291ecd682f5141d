"""Downloads from a local server that drops connections, lies, changes its file or refuses."""

import fcntl
import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import rvm_core.download
from rvm_core.download import ATTEMPTS, DownloadError, download

CONTENT = bytes(range(256)) * 16000
"""4 MB, so that it takes more than one read."""

ANY_SIZE = range(0, 1 << 40)

Answer = Callable[["Handler"], None]


@dataclass
class Server:
    """What the server holds, how it answers the next requests, and what it was asked."""

    content: bytes = CONTENT
    validators: dict[str, str] = field(default_factory=lambda: {"ETag": '"one"'})
    ranges: bool = True
    url: str = ""
    answers: list[Answer] = field(default_factory=list)
    """One for each request, then the right one."""
    always: Answer | None = None
    """Instead of the right one."""
    asked: list[dict[str, str]] = field(default_factory=list)
    """The headers of each request."""
    release: threading.Event = field(default_factory=threading.Event)
    """Set at the end of the test, for answers that wait."""

    @property
    def offsets(self) -> list[int]:
        """From which byte each request asked."""
        return [int(headers.get("Range", "bytes=0-")[len("bytes=") : -1]) for headers in self.asked]


class Handler(http.server.BaseHTTPRequestHandler):
    state: Server

    def do_GET(self) -> None:
        self.state.asked.append(dict(self.headers.items()))
        answer = self.state.answers.pop(0) if self.state.answers else self.state.always or right
        try:
            answer(self)
        except ConnectionError:
            pass

    def offset(self) -> int:
        same = self.headers.get("If-Range") in (None, *self.state.validators.values())
        return self.state.offsets[-1] if self.state.ranges and same else 0

    def head(self, offset: int, length: int | None, total: int | None = None) -> None:
        total = len(self.state.content) if total is None else total
        self.send_response(206 if offset else 200)
        if offset:
            self.send_header("Content-Range", f"bytes {offset}-{total - 1}/{total}")
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in self.state.validators.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def right(handler: Handler) -> None:
    body = handler.state.content[handler.offset() :]
    handler.head(handler.offset(), len(body))
    handler.wfile.write(body)


def drop_after(count: int) -> Answer:
    def answer(handler: Handler) -> None:
        body = handler.state.content[handler.offset() :]
        handler.head(handler.offset(), len(body))
        handler.wfile.write(body[:count])

    return answer


def status(code: int) -> Answer:
    return lambda handler: handler.send_error(code)


def unsized(handler: Handler) -> None:
    handler.head(0, None)
    handler.wfile.write(handler.state.content)


def stall(handler: Handler) -> None:
    drop_after(1000)(handler)
    handler.wfile.flush()
    handler.state.release.wait(30)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    state = Server()
    handler = type("StateHandler", (Handler,), {"state": state})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as listener:
        state.url = f"http://127.0.0.1:{listener.server_address[1]}/weights.npz"
        thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
        thread.start()
        yield state
        state.release.set()
        listener.shutdown()
        thread.join(10)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "weights.npz"


def fetch(
    url: str, target: Path, allowed_bytes: range = ANY_SIZE, check: Callable[[Path], object] = Path.stat
) -> list[float]:
    """Downloads without waiting; returns the pauses it asked for."""
    pauses: list[float] = []
    download(url, target, allowed_bytes=allowed_bytes, check=check, pause=pauses.append)
    return pauses


def assert_whole(target: Path, content: bytes = CONTENT) -> None:
    assert target.read_bytes() == content
    assert list(target.parent.iterdir()) == [target]


def test_whole_file_in_one_go(server: Server, target: Path) -> None:
    checked: list[bytes] = []
    pauses = fetch(server.url, target, check=lambda path: checked.append(path.read_bytes()))
    assert_whole(target)
    assert checked == [CONTENT]
    assert pauses == []
    assert server.offsets == [0]


def test_dropped_connection_is_continued(server: Server, target: Path) -> None:
    server.answers = [drop_after(1_500_000), drop_after(1_000_000)]
    assert fetch(server.url, target) == [1, 2]
    assert_whole(target)
    assert server.offsets == [0, 1_500_000, 2_500_000]
    assert server.asked[1]["If-Range"] == '"one"'


def test_stalled_connection_is_continued(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rvm_core.download, "TIMEOUT", 0.2)
    server.answers = [stall]
    assert fetch(server.url, target) == [1]
    assert_whole(target)
    assert len(server.asked) == 2


def test_next_call_goes_on_where_the_last_one_broke(server: Server, target: Path) -> None:
    server.answers = [drop_after(1_500_000)]
    server.always = status(503)
    with pytest.raises(DownloadError, match="the server answered 503"):
        fetch(server.url, target)
    assert not target.exists()
    server.always = None
    fetch(server.url, target)
    assert_whole(target)
    assert server.offsets[-1] == 1_500_000


def test_whole_part_is_not_fetched_again(server: Server, target: Path) -> None:
    """As after a crash between the last byte and the rename."""

    def crash(path: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(server.url, target, check=crash)
    assert not target.exists()
    fetch(server.url, target)
    assert_whole(target)
    assert len(server.asked) == 1


def test_server_without_ranges_starts_anew(server: Server, target: Path) -> None:
    server.ranges = False
    server.answers = [drop_after(1_500_000)]
    fetch(server.url, target)
    assert_whole(target)
    assert server.offsets == [0, 1_500_000]


def test_changed_file_starts_anew(server: Server, target: Path) -> None:
    def change(handler: Handler) -> None:
        drop_after(1_500_000)(handler)
        server.content = CONTENT[::-1]
        server.validators = {"ETag": '"two"'}

    server.answers = [change]
    fetch(server.url, target)
    assert_whole(target, CONTENT[::-1])


@pytest.mark.parametrize(
    ("new", "total"), [('"two"', len(CONTENT)), ('"one"', len(CONTENT) + 7)], ids=["validator", "size"]
)
def test_server_that_ignores_the_condition(server: Server, target: Path, new: str, total: int) -> None:
    """It sends the rest of another file; nothing of that may be kept."""

    def rest_of_another(handler: Handler) -> None:
        offset = server.offsets[-1]
        server.content = CONTENT[::-1] + bytes(total - len(CONTENT))
        server.validators = {"ETag": new}
        handler.head(offset, total - offset)
        handler.wfile.write(server.content[offset:])

    server.answers = [drop_after(1_500_000), rest_of_another]
    fetch(server.url, target)
    assert_whole(target, CONTENT[::-1] + bytes(total - len(CONTENT)))
    assert server.offsets == [0, 1_500_000, 0]


@pytest.mark.parametrize(
    ("validators", "condition"),
    [
        ({"ETag": 'W/"weak"', "Last-Modified": "Fri, 21 Nov 2025 10:00:00 GMT"}, "Fri, 21 Nov 2025 10:00:00 GMT"),
        ({"ETag": 'W/"weak"'}, None),
        ({}, None),
    ],
    ids=["date", "weak", "none"],
)
def test_only_a_sure_validator_continues(
    server: Server, target: Path, validators: dict[str, str], condition: str | None
) -> None:
    server.validators = validators
    server.answers = [drop_after(1_500_000)]
    fetch(server.url, target)
    assert_whole(target)
    assert server.asked[1].get("If-Range") == condition
    assert server.offsets == [0, 1_500_000 if condition else 0]


def test_part_of_another_url_is_not_continued(server: Server, target: Path) -> None:
    server.always = drop_after(1000)
    with pytest.raises(DownloadError):
        fetch(server.url + "?other", target)
    server.always = None
    server.asked.clear()
    fetch(server.url, target)
    assert_whole(target)
    assert server.offsets == [0]


def test_unsatisfiable_range_starts_anew(server: Server, target: Path) -> None:
    server.answers = [drop_after(1_500_000), status(416)]
    fetch(server.url, target)
    assert_whole(target)
    assert server.offsets == [0, 1_500_000, 0]


def test_damaged_note_starts_anew(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("weights.npz.part").write_bytes(b"x" * 100)
    target.with_name("weights.npz.part.json").write_text('{"url": 3')
    fetch(server.url, target)
    assert_whole(target)
    assert server.offsets == [0]


def test_server_errors_are_tried_again_a_few_times(server: Server, target: Path) -> None:
    server.answers = [status(500), status(429)]
    assert fetch(server.url, target) == [1, 2]
    assert_whole(target)


def test_server_errors_end_after_the_last_try(server: Server, target: Path) -> None:
    server.always = status(500)
    with pytest.raises(DownloadError, match=f"could not download {server.url}: the server answered 500"):
        fetch(server.url, target)
    assert len(server.asked) == ATTEMPTS


@pytest.mark.parametrize("code", [403, 404, 410])
def test_refusal_is_not_tried_again(server: Server, target: Path, code: int) -> None:
    server.always = status(code)
    with pytest.raises(DownloadError, match=f"the server answered {code}"):
        fetch(server.url, target)
    assert len(server.asked) == 1
    assert not list(target.parent.iterdir())


def test_server_that_announces_more_than_it_sends(server: Server, target: Path) -> None:
    def lie(handler: Handler) -> None:
        handler.head(handler.offset(), len(CONTENT) + 10 - handler.offset(), len(CONTENT) + 10)
        handler.wfile.write(CONTENT[handler.offset() :])

    server.always = lie
    with pytest.raises(DownloadError, match=f"connection ended after {len(CONTENT)} of {len(CONTENT) + 10} bytes"):
        fetch(server.url, target)
    assert not target.exists()


def test_server_that_announces_less_than_it_sends(server: Server, target: Path) -> None:
    def lie(handler: Handler) -> None:
        handler.head(0, 1000)
        handler.wfile.write(CONTENT)

    def check(path: Path) -> None:
        raise ValueError(f"{path.stat().st_size} bytes are no weights")

    server.always = lie
    with pytest.raises(ValueError, match="1000 bytes are no weights"):
        fetch(server.url, target, check=check)
    assert not list(target.parent.iterdir())


@pytest.mark.parametrize("allowed", [range(0, len(CONTENT)), range(len(CONTENT) + 1, 1 << 40)])
def test_other_size_than_published_is_refused_at_once(server: Server, target: Path, allowed: range) -> None:
    with pytest.raises(DownloadError, match=f"expected .* bytes, the server announces {len(CONTENT)}"):
        fetch(server.url, target, allowed)
    assert len(server.asked) == 1
    assert not target.exists()


def test_answer_without_size_is_refused(server: Server, target: Path) -> None:
    server.always = unsized
    with pytest.raises(DownloadError, match="answered 200 without saying the size"):
        fetch(server.url, target)


def test_file_that_fails_the_check_is_deleted(server: Server, target: Path) -> None:
    def check(path: Path) -> None:
        raise ValueError("no weights")

    target.parent.mkdir()
    target.write_bytes(b"old")
    with pytest.raises(ValueError, match="no weights"):
        fetch(server.url, target, check=check)
    assert_whole(target, b"old")


def test_full_disk_is_told_first(server: Server, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rvm_core.download.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1_000_000}))
    with pytest.raises(DownloadError, match=f"{len(CONTENT)} bytes are to be stored, 1000000 are free"):
        fetch(server.url, target)
    assert not target.exists()


def test_two_downloads_do_not_mix(server: Server, target: Path) -> None:
    target.parent.mkdir()
    with open(target.with_name("weights.npz.part"), "ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DownloadError, match="is being written by another download"):
            fetch(server.url, target)
    fetch(server.url, target)
    assert_whole(target)


def test_no_server(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/weights.npz"
        with pytest.raises(DownloadError, match=f"could not download {url}: .*refused"):
            fetch(url, target)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://example.org/a", "weights.npz"])
def test_other_schemes_are_refused(target: Path, url: str) -> None:
    with pytest.raises(DownloadError, match="expected a URL that starts with https:// or http://"):
        fetch(url, target)

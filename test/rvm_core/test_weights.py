"""Names of released weights: where they are looked for, and what is accepted as them."""

import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from readout_data import write_release
from rvm_core import RVM, CheckpointError, RVMConfig, load_checkpoint
from rvm_core.checkpoint import load_model
from rvm_core.config import FOURDS_SIZES, NAMED_SIZES, TRECVIT_SIZES, FourDSConfig, TRecViTConfig
from rvm_core.download import DownloadError
from rvm_core.fourds import FourDS
from rvm_core.readout import AttentionReadout, ReadoutConfig
from rvm_core.releases import RELEASES, Release
from rvm_core.shipped_weights import SHIPPED
from rvm_core.trecvit import TRecViT
from rvm_core.weights import fetch_weights, find_weights, weights_folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "cache" / "rvm_perception" / "weights"


@pytest.fixture
def server(tiny_path: Path) -> Iterator[str]:
    """The address of a server of the tiny checkpoint."""
    content = tiny_path.read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{listener.server_address[1]}/"
        listener.shutdown()
        thread.join(10)


@pytest.fixture
def tiny_release(server: str, tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tiny checkpoint as a released size of its own name."""
    config = replace(load_checkpoint(tiny_path).config, decoder=None)
    monkeypatch.setitem(NAMED_SIZES, "rvm_tiny", config)
    monkeypatch.setitem(RELEASES, "rvm_tiny", Release(server, tiny_path.stat().st_size))
    return "rvm_tiny"


def released_models(name: str) -> list[torch.nn.Module]:
    if name.startswith("rvm_"):
        return [RVM(RVMConfig.named(name, decoder=True), seed=None)]
    if name.startswith("trecvit_"):
        parts: dict[str, Any] = {"classes": 400, "classifier_width": 3072} if "k400" in name else {}
        return [TRecViT(replace(TRecViTConfig.named("trecvit_b16"), **parts), seed=None)]
    models: list[torch.nn.Module] = [FourDS(FourDSConfig.named(name.removesuffix("_depth")), seed=None)]
    if name.endswith("_depth"):
        patches = (16 // 2) * (224 // 8) ** 2
        sizes = ReadoutConfig(features=768, frames=16, channels=1024, num_heads=16, outputs=128, num_queries=patches)
        models.append(AttentionReadout(sizes, seed=None))
    return models


@pytest.mark.parametrize("name", RELEASES)
def test_published_sizes_fit_the_configurations(name: str) -> None:
    """Bytes of all float32 parameters, the decoder's too, and the archive's own, 0.1 %."""
    with torch.device("meta"):
        parameters = [parameter for model in released_models(name) for parameter in model.parameters()]
    assert int(sum(4 * parameter.numel() for parameter in parameters) * 1.001) in RELEASES[name].allowed_bytes
    assert RELEASES[name].url.startswith("https://")


def test_every_size_of_rvm_is_released_or_ships() -> None:
    assert NAMED_SIZES.keys() <= RELEASES.keys() | SHIPPED.keys()


@pytest.mark.parametrize(
    ("name", "sizes", "model"),
    [("trecvit_tiny", TRECVIT_SIZES, "trecvit_b16"), ("fourds_tiny", FOURDS_SIZES, "4ds_b16")],
)
def test_other_models_are_fetched_and_checked(
    name: str, sizes: dict[str, Any], model: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a file that is there already; with and without the part that the features do without."""
    path = write_release(name, tmp_path)
    release = "4ds_b16_depth" if name.startswith("fourds") else "trecvit_b16_k400"
    cache.mkdir(parents=True)
    (cache / f"{release}.npz").write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match=f"expected the weights of {release}, found .*_custom"):
        fetch_weights(release)
    config: Any = load_model(path).config
    monkeypatch.setitem(sizes, model, config.encoder_only)
    assert fetch_weights(release) == cache / f"{release}.npz" == find_weights(release)


def test_folder_is_in_the_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert weights_folder() == cache
    monkeypatch.setenv("HOME", "/home/robot")
    for value in ("", "relative/cache"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert weights_folder() == Path("/home/robot/.cache/rvm_perception/weights")


def test_name_is_found_in_the_cache(cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "rvm_s16.npz").touch()
    assert find_weights("rvm_s16") == cache / "rvm_s16.npz"


def test_name_that_was_not_fetched(cache: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"run `rvm weights fetch rvm_b16`, or put https://.* at {cache}"):
        find_weights("rvm_b16")


def test_path_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.npz").touch()
    assert find_weights(str(tmp_path / "mine.npz")) == tmp_path / "mine.npz"
    assert find_weights("~/mine.npz") == tmp_path / "mine.npz"


@pytest.mark.parametrize("name", ["/none.npz", "rvm_s", ""])
def test_neither_path_nor_name(name: str) -> None:
    with pytest.raises(
        FileNotFoundError, match="no released name; the names are rvm_nano, .*rvm_s16, rvm_b16, rvm_l16"
    ):
        find_weights(name)


def test_fetched_weights_are_found_by_name(tiny_release: str, cache: Path, tiny_path: Path) -> None:
    path = fetch_weights(tiny_release)
    assert path == cache / "rvm_tiny.npz" == find_weights(tiny_release)
    assert path.read_bytes() == tiny_path.read_bytes()


def test_weights_that_are_there_are_not_fetched_again(tiny_release: str, tmp_path: Path) -> None:
    path = fetch_weights(tiny_release, folder=tmp_path)
    assert fetch_weights(tiny_release, folder=tmp_path, url="http://127.0.0.1:9/none") == path


def test_damaged_file_that_is_there_is_told(tiny_release: str, tmp_path: Path) -> None:
    (tmp_path / "rvm_tiny.npz").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        fetch_weights(tiny_release, folder=tmp_path)


def test_weights_of_another_size_are_refused(
    tiny_release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NAMED_SIZES, "rvm_tiny", replace(NAMED_SIZES["rvm_tiny"], core_mlp_width=97))
    with pytest.raises(CheckpointError, match="expected the weights of rvm_tiny, found rvm_custom"):
        fetch_weights(tiny_release, folder=tmp_path)
    assert not list(tmp_path.glob("*.npz*"))


def test_heads_of_the_core_are_the_files(tiny_release: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the largest release are not published."""
    monkeypatch.setitem(NAMED_SIZES, "rvm_tiny", replace(NAMED_SIZES["rvm_tiny"], core_heads=4))
    assert fetch_weights(tiny_release, folder=tmp_path).is_file()


def test_file_of_another_size_is_not_fetched(server: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="expected 264600000 to 275400000 bytes, the server announces"):
        fetch_weights("rvm_s16", folder=tmp_path, url=server)


def test_failure_says_how_to_do_it_by_hand(server: str, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as caught:
        fetch_weights("rvm_s16", url=server)
    assert f"download {server} on any machine, put it at {cache / 'rvm_s16.npz'}" in str(caught.value)
    assert str(caught.value).endswith("check it with: rvm weights info rvm_s16")
    with pytest.raises(DownloadError, match=f"check it with: rvm weights info {tmp_path / 'rvm_s16.npz'}"):
        fetch_weights("rvm_s16", folder=tmp_path, url=server)


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="unknown weights 'rvm_xl'; known: rvm_s16"):
        fetch_weights("rvm_xl")

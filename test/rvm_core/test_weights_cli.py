"""`rvm weights`: info, convert and fetch."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from _pytest.capture import CaptureResult

from rvm_core import RVM, load_checkpoint, save_checkpoint, weights_hash
from rvm_core.cli import main

Output = Callable[[], CaptureResult[str]]


@pytest.fixture
def output(capsys: pytest.CaptureFixture[str]) -> Output:
    return capsys.readouterr


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_info_as_json(tiny_path: Path, tiny_model: RVM, output: Output) -> None:
    assert main(["weights", "info", "--json", str(tiny_path)]) == 0
    assert json.loads(output().out) == {
        "file": str(tiny_path),
        "file_bytes": tiny_path.stat().st_size,
        "format": "npz",
        "model": "rvm_custom",
        "config": asdict(tiny_model.config),
        "parameters": {"encoder": 116352, "core": 154912, "decoder": 55264},
        "dtypes": ["float32"],
        "weights_hash": weights_hash(tiny_model),
    }


def test_info_as_text(tiny_path: Path, tiny_model: RVM, output: Output) -> None:
    assert main(["weights", "info", str(tiny_path)]) == 0
    printed = output()
    for part in ("rvm_custom", "npz, 1.3 MB, float32", "width 64", "core_heads 8", weights_hash(tiny_model)):
        assert part in printed.out
    assert "encoder 0.1 M, core 0.2 M, decoder 0.1 M" in printed.out
    # No progress bar where there is no terminal.
    assert printed.err == ""


def test_info_without_decoder(tiny_path: Path, tmp_path: Path, output: Output) -> None:
    save_checkpoint(load_checkpoint(tiny_path), tmp_path / "a.safetensors")
    assert main(["weights", "info", str(tmp_path / "a.safetensors")]) == 0
    out = output().out
    assert "decoder     none" in out
    assert "safetensors" in out


def test_info_of_a_bad_checkpoint_lists_every_problem(tiny_path: Path, tmp_path: Path, output: Output) -> None:
    with np.load(tiny_path) as file:
        arrays = {name: file[name] for name in file.files}
    del arrays["cls_token"]
    arrays["extra"] = np.zeros(1, np.float32)
    np.savez(tmp_path / "bad.npz", **arrays)
    assert main(["weights", "info", str(tmp_path / "bad.npz")]) == 1
    assert output().err == (
        f"rvm: error: {tmp_path / 'bad.npz'}: not a sound RVM checkpoint, 2 problems:\n"
        "  missing: cls_token (1, 64)\n"
        "  unexpected: extra (1)\n"
    )


@pytest.mark.parametrize("decoder", [False, True])
def test_convert_both_ways(tiny_path: Path, tmp_path: Path, output: Output, decoder: bool) -> None:
    model = load_checkpoint(tiny_path, decoder=decoder)
    source, middle, target = tmp_path / "a.npz", tmp_path / "b.safetensors", tmp_path / "c.npz"
    save_checkpoint(model, source)
    assert main(["weights", "convert", str(source), str(middle)]) == 0
    assert main(["weights", "convert", str(middle), str(target)]) == 0
    assert source.read_bytes() == target.read_bytes()
    assert f"{'with' if decoder else 'without'} decoder, hash {weights_hash(model)}" in output().out


def test_convert_does_not_overwrite(tiny_path: Path, tmp_path: Path, output: Output) -> None:
    target = tmp_path / "a.safetensors"
    target.write_bytes(b"old")
    assert main(["weights", "convert", str(tiny_path), str(target)]) == 1
    assert output().err == f"rvm: error: {target} exists; replace it with --force\n"
    assert target.read_bytes() == b"old"
    assert main(["weights", "convert", "--force", str(tiny_path), str(target)]) == 0
    assert torch.equal(load_checkpoint(target).encoder.cls_token, load_checkpoint(tiny_path).encoder.cls_token)


def test_convert_in_place(tiny_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(tiny_path.read_bytes())
    before = weights_hash(load_checkpoint(path))
    assert main(["weights", "convert", "--force", str(path), str(path)]) == 0
    assert weights_hash(load_checkpoint(path)) == before


@pytest.mark.parametrize(
    ("target", "message"),
    [("a.pt", "ends with .npz or .safetensors"), ("none/a.npz", "there is no folder"), ("a", "ends with .npz")],
)
def test_convert_to_no_place(tiny_path: Path, tmp_path: Path, output: Output, target: str, message: str) -> None:
    assert main(["weights", "convert", str(tiny_path), str(tmp_path / target)]) == 1
    assert message in output().err
    assert not list(tmp_path.iterdir())


def test_missing_file(output: Output) -> None:
    assert main(["weights", "info", "none.npz"]) == 1
    assert output().err.startswith("rvm: error: no checkpoint at none.npz, and no released name")


def test_name_that_was_not_fetched(output: Output, cache: Path) -> None:
    assert main(["weights", "info", "rvm_s16"]) == 1
    assert "run `rvm weights fetch rvm_s16`" in output().err


def test_fetch_passes_its_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: Output) -> None:
    def fetch(name: str, *, folder: Path | None, url: str | None) -> Path:
        return (folder or Path("cache")) / f"{name} {url}"

    monkeypatch.setattr("rvm_core.weights.fetch_weights", fetch)
    assert main(["weights", "fetch", "rvm_s16", "--out", str(tmp_path), "--url", "http://x"]) == 0
    assert main(["weights", "fetch", "rvm_b16"]) == 0
    assert output().out == f"{tmp_path / 'rvm_s16 http://x'}\n{Path('cache') / 'rvm_b16 None'}\n"


def test_fetch_without_network(output: Output, cache: Path) -> None:
    """A scheme that is refused before any connection stands for every failure."""
    assert main(["weights", "fetch", "rvm_s16", "--url", "nowhere"]) == 1
    err = output().err
    assert err.startswith("rvm: error: expected a URL")
    assert f"put it at {cache / 'rvm_perception' / 'weights' / 'rvm_s16.npz'}" in err
    assert "rvm weights info rvm_s16" in err


def test_fetch_of_an_unknown_name(output: Output) -> None:
    assert main(["weights", "fetch", "rvm_xl"]) == 2
    assert "invalid choice: 'rvm_xl'" in output().err

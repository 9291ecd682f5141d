"""The Inductor engine against float32 torch: carried state, states as values, its file, what it leaves behind."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from engine_runs import SIZES, check_matches_torch, check_state_is_a_value, ignore_progress, moving_frames
from rvm_core import RVM
from rvm_core.engines.base import Engine, EngineError, EngineSpec
from rvm_core.engines.inductor import LIBRARY_FILE, InductorBackend
from rvm_core.streaming import StreamingEncoder

ROOT = Path(__file__).parents[2]

Build = Callable[[StreamingEncoder, EngineSpec], Path]


def make_spec(precision: str = "fp32", size: tuple[int, int] = SIZES[0], batch_size: int = 1) -> EngineSpec:
    return EngineSpec(backend="inductor", precision=precision, device="cpu", image_size=size, batch_size=batch_size)


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Builds each engine once."""
    folders: dict[tuple[int, EngineSpec], Path] = {}

    def build(model: StreamingEncoder, spec: EngineSpec) -> Path:
        if (key := (id(model), spec)) not in folders:
            folders[key] = tmp_path_factory.mktemp("engine")
            InductorBackend().build(model, spec, folders[key], ignore_progress)
        return folders[key]

    return build


@pytest.fixture(scope="module")
def engine(tiny_model: RVM, build: Build) -> Engine:
    return InductorBackend().load(tiny_model, make_spec(), build(tiny_model, make_spec()))


@pytest.mark.parametrize(
    ("precision", "size", "batch_size"), [("fp32", SIZES[0], 1), ("fp32", SIZES[1], 3), ("bf16", SIZES[1], 1)]
)
def test_engine_matches_torch(
    tiny_model: RVM, build: Build, precision: str, size: tuple[int, int], batch_size: int
) -> None:
    spec = make_spec(precision, size, batch_size)
    engine = InductorBackend().load(tiny_model, spec, build(tiny_model, spec))
    assert engine.spec == spec
    check_matches_torch(engine, tiny_model)


def test_state_is_a_value(engine: Engine) -> None:
    check_state_is_a_value(engine)


def test_frames_and_state_may_be_strided_and_read_only(engine: Engine) -> None:
    frames = moving_frames(engine.spec, 1)[0]
    kept = frames.copy()
    _, state = engine.step(frames, engine.init_state())
    features, _ = engine.step(frames, state)
    assert np.array_equal(frames, kept)
    strided = frames.repeat(2, axis=2)[:, :, ::2]
    strided.flags.writeable = False
    turned = state.transpose(1, 2).contiguous().transpose(1, 2)
    assert not turned.is_contiguous()
    assert torch.equal(engine.step(strided, turned)[0], features)


@pytest.mark.parametrize(
    "state", [torch.zeros(1, 24, 64), torch.zeros(2, 25, 64), torch.zeros(1, 25, 64).double(), (), None], ids=str
)
def test_another_state_is_refused(engine: Engine, state: torch.Tensor) -> None:
    """What is compiled would read beyond its end."""
    with pytest.raises((EngineError, AttributeError, TypeError), match=r"expected a float32 state of|None"):
        engine.step(moving_frames(engine.spec, 1)[0], state)


def test_other_frames_are_refused(engine: Engine) -> None:
    with pytest.raises(EngineError, match=r"expected uint8 frames \(1, 64, 96, 3\)"):
        engine.step(np.zeros((2, 64, 96, 3), np.uint8), engine.init_state())


def test_engine_is_one_file_without_the_model(tiny_model: RVM, build: Build) -> None:
    """Other weights of the same sizes in the model given to `load` change nothing."""
    folder, frames = build(tiny_model, make_spec()), moving_frames(make_spec(), 1)[0]
    assert [path.name for path in folder.rglob("*")] == [LIBRARY_FILE]
    features = []
    for model in (tiny_model, RVM(tiny_model.config, seed=5)):
        engine = InductorBackend().load(model, make_spec(), folder)
        features.append(engine.step(frames, engine.init_state())[0])
    assert torch.equal(*features)


_BUILD = """
import os, sys
from pathlib import Path
from rvm_core import RVM, RVMConfig
from rvm_core.engines.base import EngineSpec
from rvm_core.engines.inductor import InductorBackend
model = RVM(RVMConfig(width=32, encoder_depth=1, encoder_heads=2, encoder_mlp_width=32, core_depth=1, core_heads=2,
                      core_mlp_width=32)).eval()
spec = EngineSpec(backend="inductor", precision="fp32", device="cpu", image_size=(32, 32), batch_size=1)
before = dict(os.environ)
InductorBackend().build(model, spec, Path(sys.argv[1]), lambda line: None)
changed = {key: value for key, value in os.environ.items() if before.get(key) != value}
assert not changed and not before.keys() - os.environ.keys(), changed
print(*Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split(), sep="\\n")
"""


def test_building_leaves_neither_files_nor_processes(tmp_path: Path) -> None:
    """Nothing in the folder for temporary files, where others could put what is then run."""
    temporary, folder = tmp_path / "temporary", tmp_path / "engine"
    temporary.mkdir()
    folder.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TORCHINDUCTOR")}
    command = [sys.executable, "-c", _BUILD, str(folder)]
    output = subprocess.check_output(command, text=True, cwd=ROOT, env=environment | {"TMPDIR": str(temporary)})
    assert output.split() == []
    assert list(temporary.rglob("*")) == []
    assert list(folder.rglob("*")) == [folder / LIBRARY_FILE]


@pytest.mark.parametrize("content", [None, b"", b"no library"], ids=["missing", "empty", "something else"])
def test_what_is_no_library_is_refused(tiny_model: RVM, tmp_path: Path, content: bytes | None) -> None:
    """A truncated one would end the process: the cache compares checksums before it has an engine loaded."""
    if content is not None:
        (tmp_path / LIBRARY_FILE).write_bytes(content)
    with pytest.raises(EngineError, match=LIBRARY_FILE):
        InductorBackend().load(tiny_model, make_spec(), tmp_path)


def test_load_without_folder_is_refused(tiny_model: RVM) -> None:
    with pytest.raises(EngineError, match="got no folder"):
        InductorBackend().load(tiny_model, make_spec(), None)


@pytest.mark.parametrize("change", [{"precision": "int8"}, {"device": "cuda"}])
def test_what_it_cannot_do_is_refused(tiny_model: RVM, tmp_path: Path, change: dict[str, str]) -> None:
    spec = replace(make_spec(), **change)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="expected a precision of|'cpu' only"):
        InductorBackend().build(tiny_model, spec, tmp_path, ignore_progress)


def test_missing_compiler_is_named(tiny_model: RVM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(EngineError, match=r"'g\+\+', which is not installed: apt install g\+\+"):
        InductorBackend().build(tiny_model, make_spec(), tmp_path, ignore_progress)
    assert not list(tmp_path.iterdir())


def test_backend_describes_the_machine() -> None:
    backend = InductorBackend()
    assert backend.missing() is None
    assert backend.devices() == ("cpu",)
    assert backend.native_precision("cpu") in ("fp32", "bf16")
    assert backend.runtime() == f"torch {torch.__version__}"
    assert "sse2" in backend.hardware("cpu") or "neon" in backend.hardware("cpu")

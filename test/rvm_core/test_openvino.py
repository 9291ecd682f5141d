"""The OpenVINO engine against float32 torch: carried state, states as values, files, memory."""

import importlib.util
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine_runs import SIZES, check_matches_torch, check_state_is_a_value, ignore_progress, moving_frames, run
from rvm_core import RVM, RVMConfig, create_engine
from rvm_core.engines import EngineCache
from rvm_core.engines.base import Engine, EngineError, EngineSpec
from rvm_core.engines.clip import CALIBRATION_STEPS, gate_frames
from rvm_core.engines.gate import LIMITS, check_engine
from rvm_core.engines.openvino import GRAPH_FILE, WEIGHTS_FILE, OpenVINOBackend

openvino = pytest.importorskip("openvino", reason="needs OpenVINO: pip install rvm_perception[openvino]")
needs_nncf = pytest.mark.skipif(
    importlib.util.find_spec("nncf") is None, reason="needs NNCF: pip install rvm_perception[int8]"
)

BF16_ERROR = 0.008
"""Relative, of the tiny model; see `rvm_core.engines.gate.LIMITS`. 8 bits err more."""

CORE_HEADS_UNLIKE_ENCODERS = RVMConfig(
    width=96,
    encoder_depth=3,
    encoder_heads=3,
    encoder_mlp_width=256,
    core_depth=2,
    core_heads=4,
    core_mlp_width=320,
)


def make_spec(precision: str = "fp32", size: tuple[int, int] = SIZES[0], batch_size: int = 1) -> EngineSpec:
    return EngineSpec(backend="openvino", precision=precision, device="cpu", image_size=size, batch_size=batch_size)


def make_engine(model: RVM, spec: EngineSpec, folder: Path) -> Engine:
    backend = OpenVINOBackend()
    backend.build(model, spec, folder, ignore_progress)
    return backend.load(model, spec, folder)


@pytest.fixture(scope="module")
def engine(tiny_model: RVM, tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return make_engine(tiny_model, make_spec(), tmp_path_factory.mktemp("engine"))


@pytest.fixture
def built(tiny_model: RVM, tmp_path: Path) -> Path:
    """A folder with an engine's files."""
    OpenVINOBackend().build(tiny_model, make_spec(), tmp_path, ignore_progress)
    return tmp_path


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("size", "batch_size"), [(SIZES[0], 1), (SIZES[1], 3)])
@pytest.mark.parametrize("variant", ["released format", "core heads unlike encoder's"])
def test_engine_matches_torch(
    tiny_model: RVM, tmp_path: Path, variant: str, size: tuple[int, int], batch_size: int, precision: str
) -> None:
    model = tiny_model if variant == "released format" else RVM(CORE_HEADS_UNLIKE_ENCODERS, seed=1)
    spec = make_spec(precision, size, batch_size)
    engine = make_engine(model, spec, tmp_path)
    assert engine.spec == spec
    check_matches_torch(engine, model)


def test_state_is_a_value(engine: Engine) -> None:
    check_state_is_a_value(engine)


def test_streams_can_be_interleaved(engine: Engine) -> None:
    streams = [moving_frames(engine.spec, 4, seed=seed) for seed in range(2)]
    alone = [run(engine, frames) for frames in streams]
    states = [engine.init_state(), engine.init_state()]
    for step in range(4):
        for i, frames in enumerate(streams):
            features, states[i] = engine.step(frames[step], states[i])
            assert torch.equal(features, alone[i][step])


def test_frames_are_left_as_they_are_and_may_be_strided_or_read_only(engine: Engine) -> None:
    frames = moving_frames(engine.spec, 1)[0]
    kept = frames.copy()
    features, _ = engine.step(frames, engine.init_state())
    assert np.array_equal(frames, kept)
    strided = frames.repeat(2, axis=2)[:, :, ::2]
    strided.flags.writeable = False
    assert torch.equal(engine.step(strided, engine.init_state())[0], features)


def test_other_frames_are_refused(engine: Engine) -> None:
    with pytest.raises(EngineError, match=r"expected uint8 frames \(1, 64, 96, 3\)"):
        engine.step(np.zeros((2, 64, 96, 3), np.uint8), engine.init_state())


def test_engine_is_made_of_files_alone(tiny_model: RVM, built: Path) -> None:
    """Other weights of the same sizes in the model given to `load` change nothing."""
    backend, frames = OpenVINOBackend(), moving_frames(make_spec(), 1)[0]
    other = RVM(tiny_model.config, seed=5)
    features = []
    for model in (tiny_model, other):
        engine = backend.load(model, make_spec(), built)
        features.append(engine.step(frames, engine.init_state())[0])
    assert torch.equal(*features)


def test_files_hold_weights_in_precision(tiny_model: RVM, tmp_path: Path) -> None:
    sizes = {}
    for precision in ("fp32", "bf16"):
        (tmp_path / precision).mkdir()
        OpenVINOBackend().build(tiny_model, make_spec(precision), tmp_path / precision, ignore_progress)
        sizes[precision] = (tmp_path / precision / WEIGHTS_FILE).stat().st_size
    # Patch embedding and gates stay float32, a third of so small a model.
    assert sizes["bf16"] < 0.7 * sizes["fp32"]


@pytest.fixture(scope="module")
def int8_cache(tiny_model: RVM, tmp_path_factory: pytest.TempPathFactory) -> EngineCache:
    """A cache that holds an engine in int8, which has passed its gate."""
    cache = EngineCache(tmp_path_factory.mktemp("int8") / "engines")
    make_int8(tiny_model, cache)
    return cache


def make_int8(model: RVM, cache: EngineCache, **options: Any) -> Engine:
    return create_engine(model, backend="openvino", precision="int8", image_size=SIZES[0], cache=cache, **options)


@needs_nncf
def test_int8_passes_the_gate_also_on_frames_unlike_the_calibrations(int8_cache: EngineCache) -> None:
    (entry,) = int8_cache.list()
    assert entry.key.precision == "int8"
    report = entry.read_gate()
    assert report is not None and report.unseen is not None
    assert report.passed and report.steps == report.unseen.steps == 64
    # 8 bits were really used.
    assert report.relative_error > 1.5 * BF16_ERROR
    assert report.unseen.relative_error < LIMITS["int8"].relative_error / 2


@needs_nncf
def test_int8_is_loaded_from_the_cache_without_nncf(
    tiny_model: RVM, int8_cache: EngineCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_nncf(monkeypatch)
    lines: list[str] = []
    engine = make_int8(tiny_model, int8_cache, progress=lines.append)
    assert any(line.startswith("loading ") for line in lines)
    assert not any("playing" in line or "comparing" in line for line in lines)
    report = check_engine(engine, tiny_model, frames=[frame[0] for frame in moving_frames(engine.spec)])
    assert report.passed and report.replay_error == 0, report.figures()


@needs_nncf
def test_int8_that_saw_too_little_is_refused(tiny_model: RVM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges of the clip alone are right for the clip, and wrong in other light."""
    monkeypatch.setattr(
        "rvm_core.engines.calibration.calibration_frames", lambda size: gate_frames(size, CALIBRATION_STEPS)
    )
    cache = EngineCache(tmp_path / "engines")
    with pytest.raises(EngineError, match="is refused.*on frames unlike the calibration's: relative error"):
        make_int8(tiny_model, cache)
    report = cache.list()[0].read_gate()
    assert report is not None and replace(report, unseen=None).passed


@needs_nncf
def test_int8_of_several_streams_with_other_core_heads(tmp_path: Path) -> None:
    model = RVM(CORE_HEADS_UNLIKE_ENCODERS, seed=1).eval()
    report = check_engine(make_engine(model, make_spec("int8", SIZES[1], 3), tmp_path), model)
    assert report.passed, report.figures()


@needs_nncf
def test_int8_graph_keeps_gates_and_patches_in_float(
    tiny_model: RVM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines: list[str] = []
    OpenVINOBackend().build(tiny_model, make_spec("int8"), tmp_path, lines.append)
    assert any("playing 64 frames" in line for line in lines)
    assert capsys.readouterr().out == ""
    nodes = openvino.Core().read_model(tmp_path / GRAPH_FILE).get_ordered_ops()
    # Rounded are inputs of products with weights, never a value that something else reads too.
    rounded = [node for node in nodes if node.get_type_name() == "FakeQuantize"]
    readers = [port.get_node() for node in rounded for port in node.output(0).get_target_inputs()]
    assert {reader.get_type_name() for reader in readers} == {"MatMul"}
    products = {node.get_friendly_name() for node in nodes if node.get_type_name() == "MatMul"}
    assert len(products - {reader.get_friendly_name() for reader in readers}) == 2, "all but the gates'"


def test_int8_without_nncf_names_the_extra(tiny_model: RVM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide_nncf(monkeypatch)
    with pytest.raises(EngineError, match=r"needs nncf: pip install rvm_perception\[int8\]"):
        make_int8(tiny_model, EngineCache(tmp_path / "engines"))
    assert not EngineCache(tmp_path / "engines").list()


def hide_nncf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rvm_core.engines.calibration.find_spec", lambda name: None)


def test_precision_is_never_int8_unless_asked_for() -> None:
    assert OpenVINOBackend().native_precision("cpu") != "int8"


def test_memory_does_not_grow(engine: Engine) -> None:
    frames = moving_frames(engine.spec, 16)
    state = engine.init_state()
    peaks = []
    for _ in range(3):
        for frame in frames * 64:
            _, state = engine.step(frame, state)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    assert peaks[-1] - peaks[0] < 2_000  # KiB over 2,048 steps


@pytest.mark.parametrize("name", [GRAPH_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated"])
def test_damaged_files_are_refused(tiny_model: RVM, built: Path, name: str, damage: str) -> None:
    path = built / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[: len(data) // 2 if damage == "truncated" else 0])
    with pytest.raises(EngineError, match=rf"{name}|{GRAPH_FILE}"):
        OpenVINOBackend().load(tiny_model, make_spec(), built)


def test_files_of_another_size_are_refused(tiny_model: RVM, built: Path) -> None:
    with pytest.raises(EngineError, match=r"step.xml is of another engine: expected .*128, 80.*got .*64, 96"):
        OpenVINOBackend().load(tiny_model, make_spec(size=(128, 80)), built)


def test_load_without_folder_is_refused(tiny_model: RVM) -> None:
    with pytest.raises(EngineError, match="got no folder"):
        OpenVINOBackend().load(tiny_model, make_spec(), None)


@pytest.mark.parametrize("change", [{"precision": "fp16"}, {"device": "cuda"}])
def test_what_it_cannot_do_is_refused(tiny_model: RVM, tmp_path: Path, change: dict[str, str]) -> None:
    spec = replace(make_spec(), **change)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="expected a precision of|'cpu' only"):
        OpenVINOBackend().build(tiny_model, spec, tmp_path, ignore_progress)


def test_missing_runtime_names_the_extra(tiny_model: RVM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rvm_core.engines.openvino.find_spec", lambda name: None)
    backend = OpenVINOBackend()
    assert "pip install rvm_perception[openvino]" in (backend.missing() or "")
    with pytest.raises(EngineError, match=r"pip install rvm_perception\[openvino\]"):
        backend.build(tiny_model, make_spec(), tmp_path, ignore_progress)


def test_runtime_is_not_imported_by_looking_for_it() -> None:
    code = (
        "import sys; from rvm_core.engines.openvino import OpenVINOBackend;"
        "OpenVINOBackend().missing(); assert 'openvino' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_backend_describes_the_machine() -> None:
    backend = OpenVINOBackend()
    assert backend.devices() == ("cpu",)
    assert backend.native_precision("cpu") in ("fp32", "bf16")
    assert backend.runtime().startswith("openvino 20")
    assert "FP32" in backend.hardware("cpu")


def test_nothing_is_reported_over_the_network() -> None:
    code = (
        "import sys; from rvm_core.engines.openvino import OpenVINOBackend as B; B().runtime();"
        "import openvino.tools.ovc.telemetry_utils as used; print(used.tm.__name__)"
    )
    root = Path(__file__).parents[2]
    used = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert used.stdout.strip() == "openvino.tools.ovc.telemetry_stub"


_TWO_ENGINES_AND_A_SIGNAL = """
import faulthandler, signal, sys
from pathlib import Path
from rvm_core import RVM, RVMConfig
from rvm_core.engines.base import EngineSpec
from rvm_core.engines.openvino import OpenVINOBackend

# As in a program with a stack for signals of its own.
faulthandler.enable()
model = RVM(RVMConfig(width=32, encoder_depth=1, encoder_heads=2, encoder_mlp_width=32, core_depth=1, core_heads=2,
                      core_mlp_width=32)).eval()
spec = EngineSpec(backend="openvino", precision="fp32", device="cpu", image_size=(32, 32), batch_size=1)
backend, folder = OpenVINOBackend(), Path(sys.argv[1])
backend.build(model, spec, folder, lambda line: None)
first, second = (backend.load(model, spec, folder) for _ in range(2))
del first
del second
signal.signal(signal.SIGINT, lambda *_: print("heard"))
signal.raise_signal(signal.SIGINT)
"""


def test_a_signal_is_heard_after_several_engines_are_gone(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _TWO_ENGINES_AND_A_SIGNAL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout.split()) == (0, ["heard"]), done.stderr

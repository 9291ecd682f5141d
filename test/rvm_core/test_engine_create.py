"""Choosing an engine, building it once, checking it before its first use, and never falling back in silence."""

from __future__ import annotations

import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine_faults import FileBackend
from rvm_core import RVM, EngineError, create_engine, load_checkpoint, save_checkpoint
from rvm_core.engines import BACKENDS, EngineCache, backends, check_engine, plan_engine
from rvm_core.engines import plan as plan_module
from rvm_core.engines.cache import GATE, META
from rvm_core.engines.create import make_key
from rvm_core.engines.torch import TorchBackend

SIZE = (64, 96)
WAIT_S = 120.0
"""Bound of the wait for other processes, which import torch first."""


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


class Machine:
    """Stands in for what is installed and present."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.openvino = FileBackend("openvino", ("cpu",))
        self.tensorrt = FileBackend("tensorrt", ("cuda:0", "cuda:1"))
        self.torch = TorchBackend()
        self._monkeypatch = monkeypatch
        known = {"torch": self.torch, "openvino": self.openvino, "tensorrt": self.tensorrt}
        plan_module.backends.cache_clear()
        monkeypatch.setattr(plan_module, "backends", lambda: known)
        monkeypatch.setattr("rvm_core.engines.create.backends", lambda: known)
        monkeypatch.setattr(platform, "machine", lambda: "x86_64")
        self.gpus(0)
        self.tensorrt.absent = "it is not installed: pip install rvm_perception[tensorrt]"

    def gpus(self, count: int) -> None:
        self._monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        self._monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
        self._monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a GPU")
        self.tensorrt.present = tuple(f"cuda:{i}" for i in range(count))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    yield Machine(monkeypatch)


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def make(tiny_model: RVM, machine: Machine, cache: EngineCache, lines: list[str]) -> Callable[..., Any]:
    def make(**options: Any) -> Any:
        options = {"model": tiny_model, "image_size": SIZE, "cache": cache, "progress": lines.append} | options
        return create_engine(options.pop("model"), **options)

    return make


def plan(**options: Any) -> tuple[str, str, str]:
    spec = plan_engine(image_size=SIZE, **options).spec
    return spec.backend, spec.device, spec.precision


# The choice.


@pytest.mark.parametrize(
    ("gpus", "tensorrt", "openvino", "processor", "expected"),
    [
        (1, True, True, "x86_64", ("tensorrt", "cuda:0", "bf16")),
        (1, False, True, "x86_64", ("torch", "cuda:0", "bf16")),
        (0, True, True, "x86_64", ("openvino", "cpu", "bf16")),
        (0, False, True, "AMD64", ("openvino", "cpu", "bf16")),
        (0, False, True, "aarch64", ("torch", "cpu", "bf16")),
        (0, False, False, "x86_64", ("torch", "cpu", "bf16")),
    ],
)
def test_auto_takes_the_best_of_what_is_there(
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    gpus: int,
    tensorrt: bool,
    openvino: bool,
    processor: str,
    expected: tuple[str, str, str],
) -> None:
    machine.gpus(gpus)
    machine.tensorrt.absent = None if tensorrt else "not installed"
    machine.openvino.absent = None if openvino else "not installed"
    monkeypatch.setattr(platform, "machine", lambda: processor)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert plan() == expected


def test_reason_says_what_was_passed_over_and_why(machine: Machine) -> None:
    reason = plan_engine(image_size=SIZE).reason
    assert reason == (
        "openvino on cpu in bf16: no NVIDIA GPU found; openvino 1.0 is installed; bf16 is what an abacus computes best"
    )
    machine.gpus(1)
    reason = plan_engine(image_size=SIZE).reason
    assert reason.startswith(
        "torch on cuda:0 in bf16: tensorrt is not usable: it is not installed: pip install rvm_perception[tensorrt]; "
        "torch 2."
    )
    asked = plan_engine(image_size=SIZE, backend="openvino", precision="fp32").reason
    assert asked == "openvino on cpu in fp32: openvino 1.0 is installed; fp32 as asked"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"device": "cpu"}, ("openvino", "cpu", "bf16")),
        ({"device": "cuda"}, ("tensorrt", "cuda:0", "bf16")),
        ({"device": "cuda:1"}, ("tensorrt", "cuda:1", "bf16")),
        ({"device": "cuda:1", "backend": "torch"}, ("torch", "cuda:1", "bf16")),
        ({"device": "cpu", "backend": "torch", "precision": "fp32"}, ("torch", "cpu", "fp32")),
        ({"precision": "int8"}, ("tensorrt", "cuda:0", "int8")),
        ({"precision": "int8", "device": "cpu"}, ("openvino", "cpu", "int8")),
    ],
    ids=str,
)
def test_what_is_asked_for_restricts_the_choice(
    machine: Machine, options: dict[str, str], expected: tuple[str, str, str]
) -> None:
    machine.gpus(2)
    machine.tensorrt.absent = None
    assert plan(**options) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"backend": "abacus"}, "unknown backend 'abacus'; known: auto, torch, inductor, openvino, tensorrt"),
        ({"precision": "int3"}, "unknown precision 'int3'; known: auto, fp32, bf16, fp16, int8"),
        ({"backend": "tensorrt"}, r"tensorrt is not usable: it is not installed: pip install rvm_perception\[tensorrt"),
        ({"backend": "torch", "device": "toaster"}, "device 'toaster' is not there: torch sees cpu"),
        ({"backend": "torch", "precision": "int8"}, "torch cannot compute in int8, only in fp32, bf16"),
        ({"device": "cuda"}, "no engine fits: no NVIDIA GPU found; device 'cuda' is not there: openvino sees cpu; "),
    ],
    ids=str,
)
def test_what_is_not_there_is_an_error(machine: Machine, options: dict[str, str], expected: str) -> None:
    with pytest.raises(EngineError, match=expected):
        plan(**options)


def test_all_backends_say_what_they_need() -> None:
    """The real ones: those whose runtime is not installed name what to install, the others their devices."""
    assert set(backends()) == set(BACKENDS) - {"auto"}
    for name, backend in backends().items():
        assert backend.name == name
        missing = backend.missing()
        assert backend.devices() if missing is None else len(missing) > 10


def test_listing_backends_imports_no_runtime() -> None:
    code = (
        "import sys; from rvm_core.engines import backends; backends(); "
        "print([m for m in ('openvino', 'tensorrt', 'tensorrt_rtx', 'onnxruntime') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=WAIT_S)
    assert result.stdout.strip() == "[]", result.stderr


# Building once, loading afterwards.


def test_engine_is_built_and_compared_once(make: Callable[..., Any], machine: Machine, lines: list[str]) -> None:
    engine = make(backend="openvino")
    assert machine.openvino.log == ["build", "load"]
    assert engine.spec.backend == "openvino"
    assert [line.split(",")[0].split(" once")[0] for line in lines[:3]] == [
        "openvino on cpu in bf16: openvino 1.0 is installed; bf16 is what an abacus computes best",
        "building openvino on cpu in bf16",
        "half way",
    ]
    assert "comparing" in lines[3] and "passed" in lines[4]
    lines.clear()
    make(backend="openvino")
    assert machine.openvino.log == ["build", "load", "load"]
    assert not any("building" in line or "comparing" in line for line in lines)
    assert any("passed" in line for line in lines)


@pytest.mark.parametrize("change", ["weights", "version", "precision", "batch_size", "image_size"])
def test_another_key_is_another_engine(
    make: Callable[..., Any], machine: Machine, tiny_path: Path, change: str
) -> None:
    make(backend="openvino", checked=False)
    options: dict[str, Any] = {}
    if change == "weights":
        other = load_checkpoint(tiny_path)
        with torch.no_grad():
            other.encoder.cls_token.add_(1e-6)
        options["model"] = other
    elif change == "version":
        machine.openvino.version = "1.1"
    else:
        options = {"precision": "int8"} if change == "precision" else options
        options = {"batch_size": 2} if change == "batch_size" else options
        options = {"image_size": (96, 64)} if change == "image_size" else options
    make(backend="openvino", checked=False, **options)
    assert machine.openvino.log == ["build", "load", "build", "load"]


def test_graph_code_is_part_of_the_key(tiny_model: RVM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = plan_engine(backend="torch", image_size=SIZE).spec
    key = make_key(spec, tiny_model, "w")
    assert make_key(spec, tiny_model, "w") == key
    assert make_key(spec, RVM(tiny_model.config), "w") == key, "neither weights nor the decoder are part of the graph"
    monkeypatch.setattr("rvm_core.engines.create._GRAPH_MODULES", ("config", "layers"))
    assert make_key(spec, tiny_model, "w").graph != key.graph


def truncate(folder: Path) -> None:
    os.truncate(folder / "part" / "weights.bin", 10)


def foreign(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    (folder / "engine.plan").write_bytes(b"from elsewhere")


@pytest.mark.parametrize("damage", [truncate, foreign])
def test_bad_entry_is_quarantined_and_built_again_once(
    make: Callable[..., Any], machine: Machine, cache: EngineCache, lines: list[str], damage: Callable[[Path], None]
) -> None:
    make(backend="openvino")
    (entry,) = cache.list()
    damage(entry.folder)
    lines.clear()
    make(backend="openvino")
    assert machine.openvino.log == ["build", "load", "build", "load"]
    warnings = [line for line in lines if line.startswith("warning: ")]
    assert len(warnings) == 1 and "is bad" in warnings[0] and str(cache.root / "quarantine") in warnings[0]
    assert (cache.root / "quarantine" / entry.folder.name / "reason.txt").exists()
    assert any("comparing" in line for line in lines), "the report of the bad engine is not believed"
    make(backend="openvino")
    assert machine.openvino.log[4:] == ["load"]


def test_files_that_the_runtime_refuses_are_built_again_once(make: Callable[..., Any], machine: Machine) -> None:
    make(backend="openvino")
    machine.openvino.log.clear()
    machine.openvino.load_errors = [EngineError("built by another version")] * 2
    make(backend="openvino")
    assert machine.openvino.log == ["load", "load", "build", "load"]
    machine.openvino.log.clear()
    machine.openvino.load_errors = [EngineError("built by another version")] * 9
    with pytest.raises(EngineError, match="built by another version"):
        make(backend="openvino")
    assert machine.openvino.log.count("build") == 1


def test_failure_that_is_not_the_files_does_not_rebuild(make: Callable[..., Any], machine: Machine) -> None:
    make(backend="openvino")
    machine.openvino.log.clear()
    machine.openvino.load_errors = [MemoryError("out of memory")]
    with pytest.raises(EngineError, match="openvino on cpu in bf16 cannot be loaded: MemoryError: out of memory"):
        make(backend="openvino")
    assert machine.openvino.log == ["load"]
    make(backend="openvino")
    assert "build" not in machine.openvino.log


def test_failed_build_is_an_error_and_leaves_nothing(
    make: Callable[..., Any], machine: Machine, cache: EngineCache
) -> None:
    machine.openvino.build_error = RuntimeError("no such layer")
    with pytest.raises(EngineError, match="openvino on cpu in bf16 cannot be built: RuntimeError: no such layer"):
        make(backend="openvino")
    assert {path.name for path in cache.root.iterdir()} == {"locks"}


def test_folder_that_cannot_be_used_is_an_error_for_engines_with_files(make: Callable[..., Any]) -> None:
    with pytest.raises(EngineError, match="cannot keep the engine in /proc/rvm.*XDG_CACHE_HOME"):
        make(backend="openvino", cache=EngineCache("/proc/rvm"))


def test_temporary_cache_builds_without_keeping(make: Callable[..., Any], machine: Machine) -> None:
    for _ in range(2):
        make(backend="openvino", cache=EngineCache.temporary(), checked=False)
    assert machine.openvino.log == ["build", "load"] * 2


# The gate.


def test_engine_that_computes_something_else_is_refused_each_time(
    make: Callable[..., Any], machine: Machine, lines: list[str]
) -> None:
    machine.openvino.alter = {"features": lambda x, step: 1.5 * x}
    for _ in range(2):
        with pytest.raises(EngineError, match=r"bf16 is refused.*relative error 0\.5, at most 0\.05 is allowed"):
            make(backend="openvino")
    assert machine.openvino.log == ["build", "load"], "refused at once the second time, by the report that was kept"
    assert sum("comparing" in line for line in lines) == 1


def test_engine_that_fails_in_its_first_step_is_an_error(make: Callable[..., Any], machine: Machine) -> None:
    def fail(features: torch.Tensor, step: int) -> torch.Tensor:
        raise RuntimeError("illegal instruction")

    machine.openvino.alter = {"features": fail}
    with pytest.raises(EngineError, match="cannot step: RuntimeError: illegal instruction"):
        make(backend="openvino")


def test_gate_can_be_left_out(make: Callable[..., Any], machine: Machine, cache: EngineCache) -> None:
    machine.openvino.alter = {"features": lambda x, step: 1.5 * x}
    make(backend="openvino", checked=False)
    (entry,) = cache.list()
    assert entry.read_gate() is None
    with pytest.raises(EngineError, match="is refused"):
        make(backend="openvino")


def test_unreadable_report_means_comparing_again(
    make: Callable[..., Any], cache: EngineCache, lines: list[str]
) -> None:
    make(backend="openvino")
    (entry,) = cache.list()
    (entry.folder / GATE).write_text("{}")
    make(backend="openvino")
    assert sum("comparing" in line for line in lines) == 2
    report = entry.read_gate()
    assert report is not None and report.passed


def test_report_of_an_engine_without_files_is_kept_too(
    make: Callable[..., Any], cache: EngineCache, lines: list[str]
) -> None:
    for _ in range(2):
        make(backend="torch", precision="bf16", device="cpu")
    assert sum("comparing" in line for line in lines) == 1
    (entry,) = cache.list()
    assert {path.name for path in entry.folder.iterdir()} == {META, GATE}
    report = entry.read_gate()
    assert report is not None and report.passed and entry.file_bytes == 0


def test_reference_is_neither_compared_nor_kept(make: Callable[..., Any], cache: EngineCache, lines: list[str]) -> None:
    make(backend="torch", precision="fp32", device="cpu")
    assert not any("comparing" in line for line in lines)
    assert not cache.root.exists()


def test_engine_without_files_needs_no_cache(make: Callable[..., Any], lines: list[str]) -> None:
    make(backend="torch", precision="bf16", device="cpu", cache=EngineCache("/proc/rvm"))
    assert any(line.startswith("warning: the result of the comparison is not kept") for line in lines)
    assert any("passed" in line for line in lines)


def test_gate_steps_are_counted(make: Callable[..., Any]) -> None:
    steps: list[tuple[int, int]] = []
    make(backend="openvino", on_gate_step=lambda done, total: steps.append((done, total)))
    assert steps == [(done, 64) for done in range(1, 65)]


def test_same_engine_from_either_format(
    make: Callable[..., Any], machine: Machine, tiny_path: Path, tmp_path: Path
) -> None:
    save_checkpoint(load_checkpoint(tiny_path), tmp_path / "tiny.safetensors")
    make(backend="openvino", model=load_checkpoint(tiny_path), checked=False)
    make(backend="openvino", model=load_checkpoint(tmp_path / "tiny.safetensors"), checked=False)
    assert machine.openvino.log == ["build", "load", "load"]


# Falling back.


def test_without_fallback_a_failure_is_an_error(make: Callable[..., Any], machine: Machine) -> None:
    machine.openvino.build_error = RuntimeError("no such layer")
    with pytest.raises(EngineError, match="no such layer"):
        make()


def test_fallback_warns_with_the_reason(
    make: Callable[..., Any], machine: Machine, lines: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    machine.openvino.build_error = RuntimeError("no such layer")
    engine = make(fallback=True, precision="bf16")
    assert engine.spec.backend == "torch"
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0] == (
        "openvino on cpu in bf16 cannot be built: RuntimeError: no such layer; falling back to torch on cpu in bf16"
    )
    assert f"warning: {warnings[0]}" in lines


def test_fallback_from_a_refused_engine(make: Callable[..., Any], machine: Machine, lines: list[str]) -> None:
    machine.openvino.alter = {"features": lambda x, step: 1.5 * x}
    assert make(fallback=True, precision="bf16").spec.backend == "torch"
    assert any(line.startswith("warning: ") and "is refused" in line for line in lines)


def test_fallback_from_a_runtime_that_is_not_installed(
    make: Callable[..., Any], machine: Machine, lines: list[str]
) -> None:
    assert make(backend="tensorrt", fallback=True, checked=False).spec.backend == "openvino"
    assert lines[0] == "warning: tensorrt cannot be used; falling back to openvino on cpu in bf16"
    assert "tensorrt is not usable: it is not installed" in lines[1]


def test_last_resort_is_the_reference(
    make: Callable[..., Any], machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise EngineError("broken")

    machine.openvino.build_error = RuntimeError("no such layer")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr("rvm_core.engines.create.check_engine", fail)
    assert make(fallback=True).spec.precision == "fp32"
    with pytest.raises(EngineError, match="broken"):
        make(fallback=True, precision="bf16")


def test_choice_is_logged(make: Callable[..., Any], lines: list[str], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="rvm_core"):
        make(backend="torch", precision="fp32", device="cpu")
    assert [record.getMessage() for record in caplog.records] == lines
    assert lines[0].startswith("torch on cpu in fp32: torch 2.")


@pytest.mark.parametrize("name", sorted(set(BACKENDS) - {"auto"}))
def test_installed_runtimes_pass_the_gate(name: str, tiny_model: RVM, cache: EngineCache) -> None:
    """The real backends, from building to loading a second time."""
    backend = backends()[name]
    if missing := backend.missing():
        pytest.skip(missing)
    device = backend.devices()[0]
    for _ in range(2):
        engine = create_engine(tiny_model, backend=name, device=device, image_size=SIZE, cache=cache)
    assert check_engine(engine, tiny_model, steps=16).passed

"""Builds or loads an engine, and lets it step only if it computes what the model computes."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache as remember
from importlib.util import find_spec
from pathlib import Path

import torch

from rvm_core.checkpoint import weights_hash
from rvm_core.engines.base import Backend, Engine, EngineError, EngineSpec, Progress
from rvm_core.engines.cache import BadEntry, CacheEntry, EngineCache, EngineKey
from rvm_core.engines.gate import GateReport, check_engine
from rvm_core.engines.plan import backends, describe, plan_engines
from rvm_core.streaming import StreamingEncoder

WARNING = "warning: "
"""Progress lines that are warnings begin with this."""

_MODEL_MODULES = (
    *("config", "layers", "position", "encoder", "recurrent", "model", "streaming", "linear_scan", "trecvit"),
    *("fused", "export"),
)
_GRAPH_MODULES = (*_MODEL_MODULES, "engines.clip", "engines.calibration", "engines.onnx_int8")
"""Those of rvm_core whose source decides what a backend is given to build."""

_logger = logging.getLogger("rvm_core.engines")


def create_engine(
    model: StreamingEncoder,
    *,
    backend: str = "auto",
    precision: str = "auto",
    image_size: tuple[int, int],
    batch_size: int = 1,
    device: str | None = None,
    fallback: bool = False,
    checked: bool = True,
    cache: EngineCache | None = None,
    progress: Progress | None = None,
    on_gate_step: Callable[[int, int], None] | None = None,
) -> Engine:
    """Makes a model ready to step.

    Files are built once and kept, see `EngineCache`. Before its first use an engine must pass the numeric gate, see
    `check_engine`; the result is kept beside it. Only torch on the CPU in fp32, being the reference, is not compared.

    Args:
        model: in float32, left as it is; the engine holds its own copy of the weights in its precision.
        backend: one of `BACKENDS`; "auto" is the runtime that suits this machine, of those that are installed.
        precision: one of `PRECISIONS`, or "auto": the fastest floating-point one that the device computes natively.
            The engine's `spec.precision` tells which. In all of them softmax, norms, gates, residuals and state are
            float32.
        image_size: (height, width) of the frames in pixels, multiples of 16.
        batch_size: number of streams stepped at once.
        device: "cpu", "cuda" or "cuda:N"; None leaves it to the backend.
        fallback: if the engine cannot be made or is refused, try the next backend that fits, with a warning.
            Otherwise that is an error.
        checked: False leaves the numeric gate out: for benchmarks and tests.
        cache: where built files and reports are kept; None: the user's cache folder.
        progress: is told what is chosen and why, and the stages of building; warnings begin with `WARNING`.
        on_gate_step: is told after each step of the gate how many are done and how many there will be.

    Raises:
        ValueError: the image size is not a multiple of 16 or the batch size is not positive.
        EngineError: an unknown backend or precision; a runtime or device that is not there; an engine that cannot be
            built, kept or loaded; or one that the gate refuses, with its figures.
    """
    plans = plan_engines(backend, precision, image_size, batch_size, device, fallback=fallback)
    weights = remember(lambda: weights_hash(model))
    failed = f"{backend} cannot be used" if backend not in ("auto", plans[0].spec.backend) else ""
    for plan in plans:
        if failed:
            _warn(f"{failed}; falling back to {describe(plan.spec)}", progress)
        _say(plan.reason, progress)
        maker = _Maker(model, plan.spec, weights, cache, checked, progress, on_gate_step)
        try:
            return maker.make()
        except EngineError as error:
            if plan is plans[-1]:
                raise
            failed = str(error)
    raise AssertionError("there is always a plan")


def is_reference(spec: EngineSpec) -> bool:
    """Whether an engine is what others are compared with."""
    return (spec.backend, spec.precision, spec.device) == ("torch", "fp32", "cpu")


def make_key(spec: EngineSpec, model: StreamingEncoder, weights: str) -> EngineKey:
    """The cache's key of an engine. `weights` is the model's `weights_hash`."""
    backend = backends()[spec.backend]
    return EngineKey(
        backend=spec.backend,
        runtime=backend.runtime(),
        hardware=backend.hardware(spec.device),
        precision=spec.precision,
        image_size=spec.image_size,
        batch_size=spec.batch_size,
        weights=weights,
        graph=_graph_hash(model, backend),
    )


def keep_report(cache: EngineCache, key: EngineKey, report: GateReport, progress: Progress | None = None) -> None:
    """Stores a report beside its engine, if that is in the cache or has no files. Warns if it cannot be written."""
    with _only_warn(progress), cache.lock(key, progress or _silent):
        try:
            entry = cache.find(key)
        except BadEntry as error:
            _put_aside(cache, key, error, progress)
            entry = None
        if entry is None and not backends()[key.backend].builds_files:
            entry = cache.build(key, lambda folder: None)
        if entry is not None:
            entry.write_gate(report)


def _graph_hash(model: StreamingEncoder, backend: Backend) -> str:
    """Hash of what determines the graph that a backend builds. Far cheaper than making it, and never too coarse."""
    digest = hashlib.sha256(f"{model.config.encoder_only} torch {torch.__version__}\n".encode())
    for module in (*(f"rvm_core.{name}" for name in _GRAPH_MODULES), type(backend).__module__):
        digest.update(f"{module}\n".encode() + _source(module))
    return digest.hexdigest()


@remember
def _source(module: str) -> bytes:
    """Read once: an update of the files does not change the code that runs."""
    spec = find_spec(module)
    return Path(spec.origin).read_bytes() if spec is not None and spec.origin is not None else b""


class _Maker:
    """Makes one engine, from the cache where it is there."""

    def __init__(
        self,
        model: StreamingEncoder,
        spec: EngineSpec,
        weights: Callable[[], str],
        cache: EngineCache | None,
        checked: bool,
        progress: Progress | None,
        on_gate_step: Callable[[int, int], None] | None,
    ) -> None:
        self._model, self._spec, self._progress, self._on_gate_step = model, spec, progress, on_gate_step
        self._backend = backends()[spec.backend]
        self._weights, self._given_cache = weights, cache
        self._checked = checked and not is_reference(spec)

    def make(self) -> Engine:
        if not self._backend.builds_files and not self._checked:
            return self._load(None)
        key = make_key(self._spec, self._model, self._weights())
        cache = self._given_cache or EngineCache()
        return self._from_files(cache, key) if self._backend.builds_files else self._without_files(cache, key)

    def _from_files(self, cache: EngineCache, key: EngineKey) -> Engine:
        # A bad entry is looked at again under the lock: another process may be building it anew.
        with suppress(BadEntry):
            entry = cache.find(key)
            report = entry.read_gate() if entry and self._checked else None
            if entry and (report or not self._checked):
                self._judge(report)
                return self._load_kept(entry)
        with cache.lock(key, self._say):
            entry, engine = self._load_sound(cache, key)
            if entry is None or engine is None:
                self._say(f"building {describe(self._spec)}, once; it is kept in {cache.root}")
                entry = cache.build(key, self._build)
                engine = self._load(entry.folder)
            if self._checked:
                report = entry.read_gate()
                if report is None:
                    report = self._compare(engine)
                    with _only_warn(self._progress):
                        entry.write_gate(report)
                self._judge(report)
            return engine

    def _load_sound(self, cache: EngineCache, key: EngineKey) -> tuple[CacheEntry | None, Engine | None]:
        """The entry and its engine; none if there is no sound one. A bad one is put aside, with a warning."""
        try:
            entry = cache.find(key)
            return (entry, self._load_kept(entry)) if entry else (None, None)
        except BadEntry as error:
            _put_aside(cache, key, error, self._progress)
            return None, None

    def _without_files(self, cache: EngineCache, key: EngineKey) -> Engine:
        """Only a report is kept, so that a cache that cannot be used is no more than a warning."""
        engine = self._load(None)
        report = None
        with suppress(BadEntry, EngineError):
            entry = cache.find(key)
            report = entry.read_gate() if entry else None
        if report is None:
            report = self._compare(engine)
            keep_report(cache, key, report, self._progress)
        self._judge(report)
        return engine

    def _build(self, folder: Path) -> None:
        with _runtime_errors(f"{describe(self._spec)} cannot be built"):
            self._backend.build(self._model, self._spec, folder, self._say)

    def _load(self, folder: Path | None) -> Engine:
        with _runtime_errors(f"{describe(self._spec)} cannot be loaded"):
            return self._backend.load(self._model, self._spec, folder)

    def _load_kept(self, entry: CacheEntry) -> Engine:
        """Raises `BadEntry` if the backend has no use for the files."""
        self._say(f"loading {entry.folder}")
        try:
            return self._load(entry.folder)
        except _RuntimeFailure:
            # Such as too little memory: says nothing about the files.
            raise
        except EngineError as error:
            raise BadEntry(str(error)) from error

    def _compare(self, engine: Engine) -> GateReport:
        with _runtime_errors(f"{describe(self._spec)} cannot step"):
            return check_engine(engine, self._model, progress=self._say, on_step=self._on_gate_step)

    def _judge(self, report: GateReport | None) -> None:
        if report is None:
            return
        self._say(f"{describe(self._spec)} beside float32 torch, {report.figures()}")
        if not report.passed:
            raise EngineError(
                f"{describe(self._spec)} is refused: it does not compute what the model computes. {report.figures()}. "
                "Choose another precision or backend; `rvm engine check --weights ...` repeats the comparison"
            )

    def _say(self, line: str) -> None:
        _say(line, self._progress)


def _put_aside(cache: EngineCache, key: EngineKey, error: BadEntry, progress: Progress | None) -> None:
    place = cache.quarantine(key, str(error))
    _warn(f"the kept engine {key.name} is bad: {error}; it is now in {place}", progress)


@contextmanager
def _only_warn(progress: Progress | None) -> Iterator[None]:
    """A report that cannot be kept costs time at the next start, but is no reason not to start now."""
    try:
        yield
    except EngineError as error:
        _warn(f"the result of the comparison is not kept, and the next start repeats it: {error}", progress)


class _RuntimeFailure(EngineError):
    """Something a runtime raised that is not part of the contract."""


@contextmanager
def _runtime_errors(what: str) -> Iterator[None]:
    """Turns what a runtime raises into an `EngineError`; those, and the system's own errors, pass as they are."""
    try:
        yield
    except (EngineError, OSError):
        raise
    except Exception as error:  # runtimes raise whatever they like
        raise _RuntimeFailure(f"{what}: {type(error).__name__}: {error}") from error


def _silent(line: str) -> None:
    pass


def _say(line: str, progress: Progress | None) -> None:
    _logger.info(line)
    if progress:
        progress(line)


def _warn(line: str, progress: Progress | None) -> None:
    _logger.warning(line)
    if progress:
        progress(WARNING + line)

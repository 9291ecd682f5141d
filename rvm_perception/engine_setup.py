"""What the parameters ask for, loaded and built: the model, its engine and, for several cameras, one for a batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rvm_core.checkpoint import weights_hash
from rvm_core.encoders import open_encoder
from rvm_core.engines import Engine, EngineError, create_engine
from rvm_core.engines.create import WARNING
from rvm_core.process_memory import release_unused_memory
from rvm_core.shipped_weights import weights_or_shipped
from rvm_core.streaming import StreamingEncoder
from rvm_core.weights import find_weights
from rvm_perception.parameters import NodeParameters
from rvm_perception.processor import ModelIdentity


@dataclass(frozen=True, kw_only=True)
class EngineSetup:
    """What computes."""

    engine: Engine
    identity: ModelIdentity
    width: int
    """Channels of the features."""
    batched: Engine | None = None
    """Steps all cameras at once; None: they are stepped one after the other."""


def set_up_engine(parameters: NodeParameters, log: Callable[[str], None], *, cameras: int = 1) -> EngineSetup:
    """Loads the model and makes the engines, which are all that stays in memory.

    log: is told what happens; warnings begin with `rvm_core.engines.create.WARNING`.

    Raises `CheckpointError`, `EngineError`, `OSError` and `ValueError`, as what it calls does.
    """
    setup = _set_up(parameters, log, cameras)
    release_unused_memory()
    return setup


def _set_up(parameters: NodeParameters, log: Callable[[str], None], cameras: int) -> EngineSetup:
    model, identity = load_model(parameters, log)

    def make(batch_size: int = 1) -> Engine:
        return create_engine(
            model,
            backend=parameters.backend,
            precision=parameters.precision,
            image_size=(parameters.height, parameters.width),
            batch_size=batch_size,
            device=None if parameters.device == "auto" else parameters.device,
            fallback=parameters.engine_fallback,
            progress=log,
        )

    engine = make()
    return EngineSetup(
        engine=engine,
        identity=identity,
        width=model.config.width,
        batched=_make_batched(engine, make, parameters.batching, cameras, log),
    )


def load_model(parameters: NodeParameters, log: Callable[[str], None]) -> tuple[StreamingEncoder, ModelIdentity]:
    """The model and what identifies it. Raises `CheckpointError`, `OSError` and `ValueError`."""
    if weights := weights_or_shipped(parameters.weights, parameters.model):
        path = find_weights(weights)
        log(f"loading weights from {path}")
        model = open_encoder(parameters.model, path)
        return model, ModelIdentity(name=model.config.name, weights_hash=weights_hash(model), weights=weights)
    log(
        f"{WARNING}no weights given: {parameters.model} runs on RANDOM weights (seed {parameters.seed}); its features "
        "mean nothing. Fetch released weights with `rvm weights fetch rvm_s16` and set the parameter weights:=rvm_s16"
    )
    model = open_encoder(parameters.model, seed=parameters.seed)
    name = f"{parameters.model} (random weights)"
    return model, ModelIdentity(name=name, weights_hash=weights_hash(model), weights="")


def _make_batched(
    engine: Engine, make: Callable[[int], Engine], batching: str, cameras: int, log: Callable[[str], None]
) -> Engine | None:
    if cameras == 1 or batching == "never" or (batching == "auto" and not engine.spec.device.startswith("cuda")):
        return None
    try:
        return make(cameras)
    except EngineError as error:
        if batching == "always":
            raise
        log(f"{WARNING}the cameras are stepped one after the other, as there is no engine for {cameras}: {error}")
        return None

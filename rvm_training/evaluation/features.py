"""The encoder under evaluation: features of videos, frame by frame, by the engine of one image size at a time.

Shapes: H x W processing size, N = H / 16 * W / 16 patch tokens, D width; tokens carry [CLS] first, so N+1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from rvm_core.checkpoint import weights_hash
from rvm_core.config import RVMConfig
from rvm_core.engines import Engine, create_engine
from rvm_core.engines.plan import backends, plan_engine
from rvm_core.preprocess import Preprocess, ResizePolicy
from rvm_core.streaming import StreamingEncoder

UInt8Array = npt.NDArray[np.uint8]


class Encoder(Protocol):
    """Makes features of videos; what a benchmark's `create` is given."""

    @property
    def name(self) -> str:
        """For the table, such as "rvm_s16 (random weights)"."""

    @property
    def random(self) -> bool:
        """Whether the weights are random."""

    @property
    def width(self) -> int:
        """D."""

    def identity(self, image_size: tuple[int, int]) -> dict[str, Any]:
        """Plain JSON: what decides the features of a frame. Costs no engine."""

    def encode(
        self,
        frames: Iterable[UInt8Array],
        image_size: tuple[int, int],
        *,
        policy: ResizePolicy = "stretch",
        reset_every_frame: bool = False,
    ) -> Iterator[Tensor]:
        """Features float32 (N+1, D) of the frames of one video, one by one, where the engine computes.

        frames: RGB uint8 (h, w, 3) of any size, brought to `image_size` by `policy`. A frame is taken only when its
        features are asked for. `reset_every_frame`: every frame is seen as a first one.
        """


class EngineEncoder:
    """An `Encoder` by rvm_core's engines.

    The model is loaded for its hash and then let go as soon as the engine has it, so that its weights are not in memory
    twice; another image size loads it again.
    """

    def __init__(
        self,
        load: Callable[[], tuple[StreamingEncoder, str]],
        *,
        random: bool,
        backend: str = "torch",
        precision: str = "auto",
        device: str | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        """`load` gives the model in float32, and its name for the table. Raises what it raises."""
        model, self.name = load()
        self._model: StreamingEncoder | None = model
        self._load, self.random = load, random
        self._backend, self._precision, self._device, self._progress = backend, precision, device, progress
        self.width = model.config.width
        self._hash = weights_hash(model)
        self._without_memory = isinstance(model.config, RVMConfig) and not model.config.memory
        self._engine: Engine | None = None

    def identity(self, image_size: tuple[int, int]) -> dict[str, Any]:
        """See `Encoder.identity`."""
        spec = plan_engine(
            backend=self._backend, precision=self._precision, image_size=image_size, device=self._device
        ).spec
        backend = backends()[spec.backend]
        return {
            "weights_hash": self._hash,
            # The same weights make other features without memory.
            **({"form": "image"} if self._without_memory else {}),
            "image_size": list(image_size),
            "backend": spec.backend,
            "precision": spec.precision,
            "device": spec.device,
            "runtime": backend.runtime(),
            "hardware": backend.hardware(spec.device),
        }

    def encode(
        self,
        frames: Iterable[UInt8Array],
        image_size: tuple[int, int],
        *,
        policy: ResizePolicy = "stretch",
        reset_every_frame: bool = False,
    ) -> Iterator[Tensor]:
        """See `Encoder.encode`."""
        engine = self._engine_of(image_size)
        preprocess = Preprocess(height=image_size[0], width=image_size[1], policy=policy)
        state = engine.init_state()
        for frame in frames:
            features, after = engine.step(preprocess(frame)[None], state)
            if not reset_every_frame:
                state = after
            yield features[0]

    def _engine_of(self, image_size: tuple[int, int]) -> Engine:
        if self._engine is None or self._engine.spec.image_size != image_size:
            self._engine = None
            model, self._model = self._model or self._load()[0], None
            self._engine = create_engine(
                model,
                backend=self._backend,
                precision=self._precision,
                image_size=image_size,
                device=self._device,
                progress=self._progress,
            )
        return self._engine

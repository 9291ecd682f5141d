"""Whether every output of the node is what its accepted frames alone give: the frames are computed again, offline.

The node says which frames it stepped, in which epoch and at which index. From one of them to the next the state must
have gone on as if nothing else had come: features are compared bit for bit, by their hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rvm_core.engines import Engine
from rvm_core.preprocess import Preprocess


@dataclass(frozen=True, kw_only=True)
class Output:
    """What is kept of a FeatureMap."""

    stamp_ns: int
    epoch: int
    index: int
    skipped: int
    digest: bytes
    """Of all features, see `digest_of`."""
    image_size: tuple[int, int]
    """Height and width of the source image."""
    received_ns: int
    """When it came, `time.time_ns`."""

    @property
    def age_ms(self) -> float:
        """From the stamp to the reception."""
        return (self.received_ns - self.stamp_ns) / 1e6


def digest_of(cls: bytes, patches: bytes) -> bytes:
    """Hash of the float32 features of a frame, little-endian: those of [CLS] and of the patches."""
    return hashlib.blake2b(cls + patches, digest_size=16).digest()


@dataclass(kw_only=True)
class Verdict:
    """What the comparison found."""

    compared: int = 0
    """Outputs whose features were computed again."""
    different: list[str] = field(default_factory=list)
    """What differs: silent changes of the state, or an output that no frame explains."""
    unknown: int = 0
    """Outputs after one that this process did not receive, up to the next epoch: they cannot be computed."""

    def add(self, other: Verdict) -> None:
        self.compared += other.compared
        self.different += other.different
        self.unknown += other.unknown


class Checker:
    """Computes outputs again, with an engine made as that of the node.

    Args:
        engine: for one stream.
        preprocess: as in the node.
    """

    def __init__(self, engine: Engine, preprocess: Preprocess) -> None:
        self._engine, self._preprocess = engine, preprocess

    def check(
        self,
        outputs: Sequence[Output],
        images: Mapping[int, Sequence[np.ndarray]],
        on_output: Callable[[], object] = lambda: None,
    ) -> Verdict:
        """Compares the outputs of one process, in the order of their reception.

        images: what was sent under each stamp; several where a stamp came several times, of which one was accepted.
        """
        verdict = Verdict()
        state: Any = None
        before: Output | None = None
        known = False
        for output in outputs:
            problem = _order_problem(before, output)
            if problem:
                verdict.different.append(problem)
            if output.index == 0:
                state, known = self._engine.init_state(), True
            elif before is None or (output.epoch, output.index) != (before.epoch, before.index + 1):
                known = False
            before = output
            on_output()
            if not known:
                verdict.unknown += 1
                continue
            state = self._step(output, images.get(output.stamp_ns, ()), state)
            verdict.compared += 1
            if state is None:
                known = False
                verdict.different.append(
                    f"{_name(output)}: its features are not those of its frame and the state before"
                )
        return verdict

    def _step(self, output: Output, images: Iterable[np.ndarray], state: Any) -> Any:
        """The state after the frame that gives just this output; None: there is none."""
        for image in images:
            if image.shape[:2] != output.image_size:
                continue
            features, after = self._engine.step(self._preprocess(image)[None], state)
            tokens = features[0].cpu().numpy().astype("<f4", copy=False)
            if digest_of(tokens[0].tobytes(), tokens[1:].tobytes()) == output.digest:
                return after
        return None


def _order_problem(before: Output | None, output: Output) -> str:
    """What is wrong with epoch, index and stamp of an output after the one before; empty: nothing."""
    if before is None or output.epoch > before.epoch:
        return ""
    if output.epoch < before.epoch:
        return f"{_name(output)}: the epoch before was {before.epoch}, and epochs only grow"
    if output.index <= before.index:
        return f"{_name(output)}: the index before was {before.index}, and it only grows within an epoch"
    if output.stamp_ns <= before.stamp_ns:
        return f"{_name(output)}: the stamp before was {before.stamp_ns}, and stamps only grow within an epoch"
    return ""


def _name(output: Output) -> str:
    return f"epoch {output.epoch}, index {output.index}, stamp {output.stamp_ns}"

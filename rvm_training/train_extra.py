"""What to install where a package of training is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_PACKAGES = {"av", "jax", "jaxlib", "torchax", "optax", "orbax", "simplejpeg", "tensorboardX"}


@contextmanager
def needs_train_extra() -> Iterator[None]:
    """Names the extra if one of its packages is missing: raises `ImportError`."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _PACKAGES:
            raise
        raise ImportError(
            f"{package} is missing; pip install 'rvm_perception[train]', on a TPU also 'rvm_perception[tpu]'"
        ) from error

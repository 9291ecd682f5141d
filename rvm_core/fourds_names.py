"""The table of the parameters of 4DS's encoder: the release's names and axes <-> those of `FourDS.state_dict()`."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from rvm_core.checkpoint_plan import Family
from rvm_core.config import PATCH_SIZE, TUBE_FRAMES, FourDSConfig
from rvm_core.fourds import FourDS
from rvm_core.parameter_layout import BLOCK, VECTOR, Axes, Layout, Row, encoder_block_rows, own_layout
from rvm_core.readout_names import find_readouts

_TUBES = Axes((4, 3, 0, 1, 2))
_PLAIN = Axes((0, 1, 2, 3))
_MARK = "encoder/patch_embedding/Conv_0/kernel"
"""A parameter that every encoder has, and nothing else."""
USUAL_PREFIX = "params/layers_0/"
"""What stands in front of the encoder's names where it is the first of several layers, as in every release."""

_TABLE: tuple[Row, ...] = (
    Row("patch_embedding.weight", _MARK, ("width", 3, TUBE_FRAMES, PATCH_SIZE, PATCH_SIZE), _TUBES),
    Row("patch_embedding.bias", "encoder/patch_embedding/Conv_0/bias", ("width",), VECTOR),
    Row(
        "position_table",
        "encoder/posenc/embeddings",
        ("position_times", "position_rows", "position_cols", "width"),
        _PLAIN,
    ),
    *encoder_block_rows("blocks.{}", "processor/layers_{}", "width", "heads", "mlp_width"),
)
_DEPTHS = {"blocks.": "depth"}

OFFICIAL = Layout(_TABLE, rf"processor/layers_{BLOCK}/", _DEPTHS)
"""The release's .npz, without what stands in front of its names."""

OWN = own_layout(_TABLE, _DEPTHS)
"""Our .safetensors."""


def official_layout(names: Collection[str]) -> Layout:
    """The layout of a release's file with these names; of one with the usual names where they tell nothing."""
    found = sorted(name.removesuffix(_MARK) for name in names if name.endswith(_MARK))
    return OFFICIAL.with_prefix(found[0] if found else USUAL_PREFIX)


def make_config(sizes: Mapping[str, int]) -> FourDSConfig:
    """The configuration of these sizes. Raises `KeyError` if one is not known and `ValueError` if they do not fit."""
    return FourDSConfig(
        width=sizes["width"],
        depth=sizes["depth"],
        heads=sizes["heads"],
        mlp_width=sizes["mlp_width"],
        position_grid=(sizes["position_times"], sizes["position_rows"], sizes["position_cols"]),
    )


def sizes_of(config: FourDSConfig) -> dict[str, int]:
    """The sizes of a configuration; `make_config` the other way round."""
    sizes = {name: value for name, value in vars(config).items() if isinstance(value, int)}
    return sizes | dict(zip(("position_times", "position_rows", "position_cols"), config.position_grid, strict=True))


def _readouts(names: Collection[str]) -> set[str]:
    """The names of readouts in the same file, which are loaded by themselves."""
    prefixes = tuple(prefix for prefix in find_readouts(names) if prefix)
    return {name for name in names if name.startswith(prefixes)} if prefixes else set()


FAMILY = Family(
    title="4DS",
    model_class=FourDS,
    official=official_layout,
    own=OWN,
    optional=frozenset(),
    make_config=lambda sizes, parts: make_config(sizes),
    sizes_of=sizes_of,
    make_model=lambda config: FourDS(config, seed=None),
    passed_over=_readouts,
)
"""4DS, as its checkpoints have it."""

"""The table of parameters against the model and against a file of the release."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rvm_core import RVM, DecoderConfig, RVMConfig
from rvm_core.checkpoint_names import OFFICIAL, OWN, make_config, sizes_of
from rvm_core.parameter_layout import Layout, PartialShape

ODD_CONFIG = RVMConfig(
    width=48,
    encoder_depth=11,
    encoder_heads=3,
    encoder_mlp_width=50,
    core_depth=2,
    core_heads=6,
    core_mlp_width=70,
    decoder=DecoderConfig(width=20, depth=3, num_heads=5, mlp_width=30, max_time_gap=9),
)
"""Every size is another number, and there are more than ten blocks."""


def whole(shape: PartialShape) -> tuple[int, ...]:
    assert None not in shape
    return tuple(size or 0 for size in shape)


@pytest.mark.parametrize("decoder", [False, True])
def test_table_is_the_state_dict(decoder: bool) -> None:
    config = RVMConfig(**vars(ODD_CONFIG) | ({} if decoder else {"decoder": None}))
    with torch.device("meta"):
        state = RVM(config, seed=None).state_dict()
    sizes = sizes_of(config)
    without = () if decoder else ("decoder",)
    table = {parameter.name: parameter.shape(sizes) for parameter in OWN.parameters(sizes, without=without)}
    assert table == {name: tuple(tensor.shape) for name, tensor in state.items()}


def test_table_is_the_release(tiny_path: Path) -> None:
    with np.load(tiny_path) as file:
        shapes = {name: file[name].shape for name in file.files}
    sizes = OFFICIAL.infer_sizes(shapes)
    parameters = OFFICIAL.parameters(sizes)
    assert {parameter.stored: parameter.stored_shape(sizes) for parameter in parameters} == shapes


@pytest.mark.parametrize("layout", [OFFICIAL, OWN], ids=["official", "own"])
def test_sizes_are_inferred_from_names_and_shapes(layout: Layout) -> None:
    sizes = sizes_of(ODD_CONFIG)
    parameters = layout.parameters(sizes)
    found = layout.infer_sizes({parameter.stored: whole(parameter.stored_shape(sizes)) for parameter in parameters})
    assert found == sizes
    assert make_config(found, decoder=True) == ODD_CONFIG


@pytest.mark.parametrize("layout", [OFFICIAL, OWN], ids=["official", "own"])
def test_axes_turn_back_and_forth(layout: Layout) -> None:
    sizes = sizes_of(ODD_CONFIG)
    for parameter in layout.parameters(sizes):
        tensor = torch.rand(whole(parameter.shape(sizes)))
        stored = parameter.row.axes.to_stored(tensor)
        assert tuple(stored.shape) == parameter.stored_shape(sizes)
        assert parameter.row.axes.own_shape(tuple(stored.shape)) == tuple(tensor.shape)
        assert torch.equal(parameter.row.axes.to_own(stored), tensor)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "encoder",
        "encoder/layers_/mlp_norm/bias",
        "encoder/layers_01/mlp_norm/bias",
        "encoder/layers_-1/mlp_norm/bias",
        "encoder/layers_999999999/mlp_norm/bias",
        "encoder/layers_1/mlp_norm/bias/x",
        "encoder/layers_{}/mlp_norm/bias",
        "encoder/layers_٣/mlp_norm/bias",
        "encoder/xa_blocks_0/mlp_norm/bias",
        "params/cls_token",
    ],
)
def test_other_names_are_not_found(name: str) -> None:
    assert OFFICIAL.find("encoder/layers_0/mlp_norm/bias") is not None
    assert OFFICIAL.find(name) is None
    assert OWN.find(name.replace("/", ".")) is None


def test_depth_is_the_number_of_blocks_not_the_highest() -> None:
    names = [f"encoder/layers_{block}/mlp_norm/bias" for block in (0, 1, 99999)]
    assert OFFICIAL.infer_sizes(dict.fromkeys(names, (8,))) == {"width": 8, "encoder_depth": 3}


def test_size_is_that_of_most_parameters() -> None:
    shapes: dict[str, tuple[int, ...]] = {
        "encoder/LayerNorm_0/bias": (9,),
        "encoder/LayerNorm_0/scale": (8,),
        "cls_token": (1, 8),
    }
    assert OFFICIAL.infer_sizes(shapes) == {"width": 8}

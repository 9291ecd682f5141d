"""The table of a readout's parameters against the modules and against files of the release."""

import pytest
import torch
from torch import nn

from readout_data import load_reference
from rvm_core.heads import BoxHead, BoxHeadConfig, PointHead, PointHeadConfig
from rvm_core.readout import AttentionReadout, ReadoutConfig
from rvm_core.readout_names import RELEASED, Form, find_form, find_readouts, readout_layout
from rvm_core.recurrent_readout import RecurrentReadout, RecurrentReadoutConfig

FORMS: dict[str, Form] = {
    "readout_classify": "learned",
    "readout_depth": "learned",
    "readout_queries": "given",
    "tracking_head_points": "points",
    "tracking_head_boxes": "boxes",
}


def modules() -> dict[Form, nn.Module]:
    """One of each form; every size is another number."""
    with torch.device("meta"):
        return {
            "learned": AttentionReadout(
                ReadoutConfig(features=11, frames=5, channels=12, num_heads=3, outputs=7, num_queries=2, mlp_ratio=8),
                seed=None,
            ),
            "given": AttentionReadout(
                ReadoutConfig(features=11, frames=5, channels=12, num_heads=3, outputs=7, query_width=13), seed=None
            ),
            "points": PointHead(
                PointHeadConfig(
                    features=11, frames=10, copies=5, channels=12, num_heads=3, query_hidden=14, query_width=15
                ),
                seed=None,
            ),
            "boxes": BoxHead(
                BoxHeadConfig(features=11, frames=10, channels=12, num_heads=3, query_hidden=14, query_width=15),
                seed=None,
            ),
            "recurrent": RecurrentReadout(
                RecurrentReadoutConfig(features=11, kind="boxes", channels=12, num_heads=3, fourier_bases=5), seed=None
            ),
        }


@pytest.mark.parametrize("form", ["learned", "given", "points", "boxes", "recurrent"])
def test_table_is_the_state_dict(form: Form) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in modules()[form].state_dict().items()}
    layout = readout_layout(form, own=True)
    sizes = layout.infer_sizes(shapes)
    assert {parameter.stored: parameter.stored_shape(sizes) for parameter in layout.parameters({})} == shapes


@pytest.mark.parametrize(("name", "form"), FORMS.items())
def test_table_is_the_release(name: str, form: Form) -> None:
    params = load_reference(name).params
    shapes = {f"params/layers_2/{name}": value.shape for name, value in params.items()}
    assert find_readouts(shapes) == ["params/layers_2/"]
    assert find_form(shapes, RELEASED, prefix="params/layers_2/") == form
    layout = readout_layout(form, prefix="params/layers_2/")
    sizes = layout.infer_sizes(shapes)
    assert {parameter.stored: parameter.stored_shape(sizes) for parameter in layout.parameters({})} == shapes


def test_forms_are_told_apart_with_parameters_missing_or_added() -> None:
    for name, form in FORMS.items():
        names = set(load_reference(name).params)
        for missing in names - {"query", "temporal_tile_posenc/embeddings", "Dense_2/kernel", "Dense_2/bias"}:
            assert find_form(names - {missing} | {"extra"}, RELEASED) == form, (name, missing)
    assert find_form({"cls_token"}, RELEASED) is None


def test_several_readouts_are_found() -> None:
    names = ["a/temporal_posenc/embeddings", "b/attention_readout/temporal_posenc/embeddings", "c/query"]
    assert find_readouts(names) == ["a/", "b/"]
    assert find_readouts(["my_temporal_posenc/embeddings", "temporal_posenc/embeddings/x"]) == []

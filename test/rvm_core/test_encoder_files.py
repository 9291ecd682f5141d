"""Files of the other encoders: told apart by content, and every problem told at once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from readout_data import load_reference, write_release
from rvm_core import CheckpointError, load_checkpoint
from rvm_core.checkpoint import (
    load_encoder,
    load_fourds,
    load_model,
    load_trecvit,
    read_info,
    save_checkpoint,
    weights_hash,
)
from rvm_core.config import ENCODER_NAMES
from rvm_core.encoders import make_encoder, open_encoder, without_memory
from rvm_core.fourds import FourDS
from rvm_core.fourds_names import FAMILY as FOURDS
from rvm_core.model import RVM
from rvm_core.parameter_layout import PartialShape
from rvm_core.trecvit import TRecViT
from rvm_core.trecvit_names import FAMILY as TRECVIT

Params = dict[str, np.ndarray]


@pytest.fixture
def trecvit_path(tmp_path: Path) -> Path:
    return write_release("trecvit_tiny", tmp_path)


@pytest.fixture
def fourds_path(tmp_path: Path) -> Path:
    return write_release("fourds_tiny", tmp_path)


def write(params: Params, folder: Path) -> Path:
    np.savez(folder / "damaged.npz", **params)  # type: ignore[arg-type]
    return folder / "damaged.npz"


def whole(shape: PartialShape) -> tuple[int, ...]:
    assert None not in shape
    return tuple(size or 0 for size in shape)


@pytest.mark.parametrize(("name", "family", "load"), [("trecvit_tiny", TRECVIT, load_trecvit)])
def test_table_is_the_release_and_the_state_dict(
    name: str, family: type, load: Callable[[Path], torch.nn.Module], tmp_path: Path
) -> None:
    shapes = {key: value.shape for key, value in load_reference(name).params.items()}
    sizes = TRECVIT.official(shapes).infer_sizes(shapes)
    parameters = TRECVIT.official(shapes).parameters(sizes)
    assert {parameter.stored: parameter.stored_shape(sizes) for parameter in parameters} == shapes
    state = load(write_release(name, tmp_path)).state_dict()
    own = {parameter.name: whole(parameter.shape(sizes)) for parameter in TRECVIT.own.parameters(sizes)}
    assert own == {key: tuple(value.shape) for key, value in state.items()}


def test_files_are_told_by_content(tiny_path: Path, trecvit_path: Path, fourds_path: Path) -> None:
    assert isinstance(load_encoder(tiny_path), RVM)
    assert isinstance(load_encoder(trecvit_path), TRecViT)
    assert [type(load_model(path)) for path in (tiny_path, trecvit_path, fourds_path)] == [RVM, TRecViT, FourDS]
    assert read_info(trecvit_path).optional == {"classifier"}
    assert read_info(tiny_path).optional == {"decoder"}


def test_other_models_are_refused_by_name(tiny_path: Path, trecvit_path: Path, fourds_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected RVM, found the parameters of TRecViT"):
        load_checkpoint(trecvit_path)
    with pytest.raises(CheckpointError, match="expected TRecViT, found the parameters of RVM"):
        load_trecvit(tiny_path)
    with pytest.raises(CheckpointError, match="expected RVM or TRecViT, found the parameters of 4DS"):
        load_encoder(fourds_path)
    with pytest.raises(CheckpointError, match="expected 4DS, found the parameters of TRecViT"):
        load_fourds(trecvit_path)


def test_hash_is_that_of_the_features(trecvit_path: Path, tmp_path: Path) -> None:
    """With and without the classifier, in either format."""
    full, bare = load_trecvit(trecvit_path), load_encoder(trecvit_path)
    assert full.classifier is not None
    assert isinstance(bare, TRecViT) and bare.classifier is None and bare.config.classes is None
    save_checkpoint(bare, tmp_path / "bare.safetensors")
    again = load_encoder(tmp_path / "bare.safetensors")
    assert weights_hash(full) == weights_hash(bare) == weights_hash(again)


def test_masked_pretraining_without_classifier_loads(tmp_path: Path) -> None:
    """Its decoder is of no published form, so its tensors are left alone."""
    params = {
        name: value for name, value in load_reference("trecvit_tiny").params.items() if not name.startswith("decoder/")
    }
    bare = load_trecvit(write(params, tmp_path))
    assert bare.classifier is None
    other = load_trecvit(write(params | {"decoder/Dense_0/kernel": np.zeros((4, 5), np.float32)}, tmp_path))
    assert weights_hash(other) == weights_hash(bare)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    params = load_reference("trecvit_tiny").params
    block = "encoder/residualblock_01/recurrent_block"
    del params[f"{block}/conv_1d/b"]
    params[f"{block}/linear_x/kernel"] = params[f"{block}/linear_x/kernel"][:, :100]
    params["tokenizer/cls"] = params["tokenizer/cls"].astype(np.float64)
    params["encoder/residualblock_1/temporal_pre_norm/scale"] = params["tokenizer/embedding/bias"]
    params["encoder/encoder_norm/bias"] = np.full(64, np.nan, np.float32)
    with pytest.raises(CheckpointError) as caught:
        load_trecvit(write(params, tmp_path))
    assert "not a sound TRecViT checkpoint, 5 problems" in str(caught.value)
    assert sorted(problem.split(" ", 2)[1] for problem in caught.value.problems) == sorted(
        [
            f"{block}/conv_1d/b",
            f"{block}/linear_x/kernel:",
            "tokenizer/cls:",
            "encoder/residualblock_1/temporal_pre_norm/scale",
            "finite:",
        ]
    )


def test_positions_must_be_a_square(tmp_path: Path) -> None:
    params = load_reference("trecvit_tiny").params
    params["tokenizer/pos_embedding"] = params["tokenizer/pos_embedding"][:, :15]
    with pytest.raises(CheckpointError, match="positions of a square grid, got 15"):
        load_trecvit(write(params, tmp_path))


def test_problems_of_4ds_are_told_at_once_and_its_readout_is_left_alone(tmp_path: Path) -> None:
    params = load_reference("fourds_tiny").params
    del params["params/layers_0/processor/layers_3/mlp/dense_in/bias"]
    params["params/layers_0/processor/layers_2/mlp/dense_out/bias"] = np.zeros(63, np.float32)
    del params["params/layers_2/Dense_0/bias"]
    with pytest.raises(CheckpointError) as caught:
        load_fourds(write(params, tmp_path))
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["missing", "shape"]


def test_own_4ds_file_has_the_names_of_the_state_dict(fourds_path: Path) -> None:
    model = load_fourds(fourds_path)
    sizes = FOURDS.sizes_of(model.config)
    own = {parameter.name: whole(parameter.shape(sizes)) for parameter in FOURDS.own.parameters(sizes)}
    assert own == {key: tuple(value.shape) for key, value in model.state_dict().items()}


def test_damaged_values_are_found(trecvit_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "saved.safetensors"
    save_checkpoint(load_trecvit(trecvit_path), path)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="do not match the (weights|classifier)_hash"):
        load_trecvit(path)


# By name.


def test_named_encoders_are_all_of_a_known_class() -> None:
    assert "trecvit_b16" in ENCODER_NAMES and "rvm_s16" in ENCODER_NAMES and "rvm_s16_image" in ENCODER_NAMES
    with torch.device("meta"):
        for name in ENCODER_NAMES:
            assert make_encoder(name, seed=None).config.name == name
    with pytest.raises(ValueError, match="unknown model 'rvm_x'; known models: rvm_nano, rvm_s16, .*trecvit_b16"):
        make_encoder("rvm_x")


def test_file_decides_over_the_name(trecvit_path: Path, tiny_path: Path) -> None:
    assert isinstance(open_encoder("rvm_s16", trecvit_path), TRecViT)
    image = open_encoder("rvm_s16_image", tiny_path)
    assert image.config.name == "rvm_custom_image"
    with pytest.raises(ValueError, match="only RVM has a form without memory"):
        open_encoder("rvm_s16_image", trecvit_path)


@torch.inference_mode()
def test_model_without_memory_sees_every_frame_as_the_first(tiny_model: RVM) -> None:
    image = without_memory(tiny_model)
    assert weights_hash(image) == weights_hash(tiny_model)
    frames = torch.rand(3, 1, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    state = image.init_state(1, 32, 48)
    assert state == ()
    for frame in frames:
        features, state = image(frame, state)
        expected, _ = tiny_model(frame, tiny_model.init_state(1, 32, 48))
        assert torch.equal(features, expected)
        assert state == ()
    assert not isinstance(tiny_model.init_state(1, 32, 48), tuple)


def test_own_file_of_a_model_without_memory_says_so(tiny_model: RVM, tmp_path: Path) -> None:
    save_checkpoint(without_memory(tiny_model), tmp_path / "image.safetensors")
    assert load_checkpoint(tmp_path / "image.safetensors").config.memory is False
    assert read_info(tmp_path / "image.safetensors").config.name == "rvm_custom_image"
    save_checkpoint(tiny_model, tmp_path / "stream.safetensors")
    assert load_checkpoint(tmp_path / "stream.safetensors").config.memory is True


def test_model_without_memory_reconstructs_from_one_frame() -> None:
    from rvm_core import DecoderConfig, RVMConfig

    sizes = {"width": 8, "encoder_depth": 1, "encoder_heads": 2, "encoder_mlp_width": 8}
    core = {"core_depth": 1, "core_heads": 2, "core_mlp_width": 8}
    decoder = DecoderConfig(width=8, depth=1, num_heads=2, mlp_width=8)
    model = RVM(RVMConfig(**sizes, **core, decoder=decoder, memory=False))
    source, target = torch.rand(1, 2, 3, 32, 32), torch.rand(1, 1, 3, 32, 32)
    gaps, visible = torch.ones(1, 1, dtype=torch.int64), torch.zeros(1, 1, 1, dtype=torch.int64)
    pixels, _ = model.reconstruct(source[:, :1], target, gaps, visible)
    assert pixels.shape == target.shape
    with pytest.raises(ValueError, match="one source frame"):
        model.reconstruct(source, target, gaps, visible)

"""Encoders of the transformers library, by small random models of its own classes, saved to a folder and loaded."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers", reason="the extra rvm_perception[encoders] is not installed")

from rvm_core.streaming import StreamingEncoder
from rvm_core.transformers_encoder import (
    IMAGE_MEAN,
    IMAGE_STD,
    ClipTransformer,
    FrameTransformer,
    TransformersError,
    load_transformer,
    make_transformer,
)

WIDTH = 24
_SIZES: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES: dict[str, dict[str, Any]] = {
    "dinov2": _SIZES | {"image_size": 56, "patch_size": 14},
    "registers": _SIZES | {"image_size": 64, "patch_size": 16, "num_register_tokens": 3},
    "dinov3": _SIZES | {"intermediate_size": 48, "num_register_tokens": 4},
    "videomae": _SIZES | {"intermediate_size": 48, "image_size": 64, "num_frames": 4},
    "vjepa2": _SIZES
    | {"crop_size": 64, "frames_per_clip": 4, "pred_hidden_size": 24, "pred_num_attention_heads": 2}
    | {"pred_num_hidden_layers": 1},
}
SIZES["registers"]["model_type"] = "dinov2_with_registers"
FRAME_KINDS = ("dinov2", "registers", "dinov3")
TOLERANCE = 2e-5
"""Features are of order 1; the same operations in another order differ by rounding."""


def make(kind: str, **more: Any) -> Any:
    return make_transformer("dinov2" if kind == "registers" else kind, **(SIZES[kind] | more))


def saved(kind: str, folder: Path) -> Path:
    """The library's own folder of a small random model."""
    wrapped = make(kind)
    if kind == "vjepa2":
        import transformers

        torch.manual_seed(0)
        transformers.VJEPA2Model(transformers.VJEPA2Config(**SIZES["vjepa2"])).save_pretrained(folder)
    else:
        wrapped.model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", FRAME_KINDS)
def test_frame_encoder_is_the_librarys_with_cls_first_and_no_registers(kind: str) -> None:
    encoder = make(kind)
    assert isinstance(encoder, FrameTransformer) and isinstance(encoder, StreamingEncoder)
    frames = torch.rand(2, 3, 64, 64)
    state = encoder.init_state(2, 64, 64)
    with torch.inference_mode():
        features, after = encoder(frames, state)
        size = 4 * encoder.config.patch_size
        resized = torch.nn.functional.interpolate(frames, (size, size), mode="bilinear", antialias=True)
        pixels = (resized - torch.tensor(IMAGE_MEAN).view(3, 1, 1)) / torch.tensor(IMAGE_STD).view(3, 1, 1)
        tokens = encoder.model(pixel_values=pixels).last_hidden_state
    assert state == after == ()
    assert features.shape == (2, 4 * 4 + 1, WIDTH)
    torch.testing.assert_close(features[:, 0], tokens[:, 0], atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(features[:, 1:], tokens[:, -16:], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", FRAME_KINDS)
def test_frame_encoder_has_the_grid_that_is_asked_for(kind: str) -> None:
    features, _ = make(kind)(torch.rand(1, 3, 32, 80), ())
    assert features.shape == (1, 2 * 5 + 1, WIDTH)


def test_patches_of_a_grid_are_in_row_major_order() -> None:
    encoder = make("dinov2")
    frame = torch.full((1, 3, 64, 64), 0.5)
    changed = frame.clone()
    changed[..., 16:32, 48:64] = 1.0
    with torch.inference_mode():
        embed = encoder.model.embeddings.patch_embeddings
        moved = (embed(encoder.pixels(changed)) - embed(encoder.pixels(frame))).abs().sum(-1)[0]
    assert int(moved.argmax()) == 1 * 4 + 3


@pytest.mark.parametrize("kind", ["videomae", "vjepa2"])
def test_clip_encoder_is_the_librarys_at_its_own_size(kind: str, tmp_path: Path) -> None:
    import transformers

    folder = saved(kind, tmp_path / "model")
    encoder = load_transformer(kind, folder)
    assert isinstance(encoder, ClipTransformer)
    library = transformers.AutoModel.from_pretrained(folder).eval()
    clips = torch.rand(1, 4, 3, 64, 64)
    with torch.inference_mode():
        features = encoder(clips)
        pixels = encoder.pixels(clips[0]).unsqueeze(0)
        options = {"skip_predictor": True} if kind == "vjepa2" else {}
        tubes = library(pixels, **options).last_hidden_state.unflatten(1, (2, 16))
    assert features.shape == (1, 4, 16, WIDTH)
    # Two tubes are resized to four frames by a kernel whose weights add up to one.
    torch.testing.assert_close(features.mean(dim=1), tubes.mean(dim=1), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", ["videomae", "vjepa2"])
def test_clip_encoder_takes_other_grids_and_lengths(kind: str) -> None:
    encoder = make(kind)
    with torch.inference_mode():
        assert encoder(torch.rand(1, 4, 3, 32, 80)).shape == (1, 4, 10, WIDTH)
        assert encoder.with_frames(6)(torch.rand(1, 6, 3, 64, 64)).shape == (1, 6, 16, WIDTH)
    with pytest.raises(ValueError, match="clips of 4 frames, got 6"):
        encoder(torch.rand(1, 6, 3, 64, 64))
    with pytest.raises(ValueError, match="multiple of 2"):
        encoder.with_frames(5)


def test_vjepa2_knows_rows_and_columns_of_a_grid_that_is_not_square() -> None:
    """The tokens of a square grid's upper half alone, as numbered there, are those of the half as an image."""
    encoder = make("vjepa2", num_hidden_layers=1)
    clip = torch.rand(1, 4, 3, 64, 64)
    with torch.inference_mode():
        upper = encoder(clip[..., :32, :])
        attention = encoder.model.layer[0].attention
        assert attention.grid_size == 4
        places = torch.arange(2 * 16).view(2, 4, 4)[:, :2].flatten()[None]
        rows = attention.get_position_ids(torch.empty(1, 16, WIDTH), masks=places)[1]
    assert upper.shape == (1, 4, 8, WIDTH)
    assert sorted(set(rows.flatten().tolist())) == [0, 1]


@pytest.mark.parametrize("kind", SIZES)
def test_weights_come_from_a_folder(kind: str, tmp_path: Path) -> None:
    folder = saved(kind, tmp_path / "some_model")
    encoder = load_transformer("dinov2" if kind == "registers" else kind, folder)
    assert "some_model" in encoder.config.name
    assert not encoder.training
    original = make(kind).model.state_dict()
    loaded = encoder.model.state_dict()
    assert loaded.keys() == original.keys()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, original[name]), name


def test_normalisation_is_the_preprocessors(tmp_path: Path) -> None:
    folder = saved("dinov2", tmp_path)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    encoder = load_transformer("dinov2", folder)
    assert encoder.config.mean == (0.5,) * 3 and encoder.config.std == (0.25,) * 3
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_std": [0, 1, 1]}))
    with pytest.raises(TransformersError, match="positive deviation"):
        load_transformer("dinov2", folder)


def test_missing_and_damaged_weights_are_errors(tmp_path: Path) -> None:
    file = saved("dinov2", tmp_path) / "model.safetensors"
    tensors = load_file(file)
    norm = tensors.pop("layernorm.weight")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(TransformersError, match=r"missing.*layernorm\.weight"):
        load_transformer("dinov2", tmp_path)
    save_file(tensors | {"layernorm.weight": norm * torch.nan}, file, {"format": "pt"})
    with pytest.raises(TransformersError, match=r"NaN.*layernorm\.weight"):
        load_transformer("dinov2", tmp_path)
    file.write_bytes(b"not a tensor file")
    with pytest.raises(TransformersError, match="no weights of dinov2"):
        load_transformer("dinov2", tmp_path)


def test_a_pickle_is_never_read(tmp_path: Path) -> None:
    folder = saved("dinov2", tmp_path)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(TransformersError, match="no weights of dinov2"):
        load_transformer("dinov2", folder)


def test_code_beside_the_weights_is_never_run(tmp_path: Path) -> None:
    folder = saved("dinov2", tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard_of", "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(TransformersError):
        load_transformer("dinov2", folder)
    assert not (tmp_path / "ran").exists()


def test_another_model_and_an_empty_folder_are_errors(tmp_path: Path) -> None:
    folder = saved("videomae", tmp_path / "model")
    with pytest.raises(TransformersError, match="is of type videomae; dinov2 has dinov2 or dinov2_with_registers"):
        load_transformer("dinov2", folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TransformersError, match=r"expected a folder with config\.json"):
        load_transformer("dinov3", tmp_path / "empty")
    with pytest.raises(TransformersError, match="nothing is downloaded"):
        load_transformer("dinov2", "nobody/has-this-model")


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "transformers":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"rvm_perception\[encoders\]"):
        make_transformer("dinov2")

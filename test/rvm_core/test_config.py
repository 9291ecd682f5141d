"""Sizes of the model: names, checks, immutability."""

from dataclasses import FrozenInstanceError, replace

import pytest

from rvm_core import DecoderConfig, RVMConfig
from rvm_core.config import NAMED_SIZES, check_image_size


def test_named_sizes() -> None:
    assert list(NAMED_SIZES) == ["rvm_nano", "rvm_s16", "rvm_b16", "rvm_l16", "rvm_h16"]
    small = RVMConfig.named("rvm_s16")
    assert small == RVMConfig(
        width=384,
        encoder_depth=12,
        encoder_heads=6,
        encoder_mlp_width=1536,
        core_depth=4,
        core_heads=8,
        core_mlp_width=2048,
    )
    assert small.decoder is None


@pytest.mark.parametrize("name", NAMED_SIZES)
@pytest.mark.parametrize("decoder", [False, True])
def test_name_is_found_again(name: str, decoder: bool) -> None:
    config = RVMConfig.named(name, decoder=decoder)
    assert config.name == name
    nano = DecoderConfig(width=128, depth=3, num_heads=4, mlp_width=512)
    assert config.decoder == ((nano if name == "rvm_nano" else DecoderConfig()) if decoder else None)


def test_other_sizes_are_custom() -> None:
    assert replace(RVMConfig.named("rvm_s16"), core_heads=6).name == "rvm_custom"


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"unknown model 'rvm_xl'.*rvm_nano, rvm_s16, rvm_b16, rvm_l16, rvm_h16"):
        RVMConfig.named("rvm_xl")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("width", 0, "RVMConfig.width must be positive, got 0"),
        ("core_depth", -1, "RVMConfig.core_depth must be positive, got -1"),
        ("encoder_heads", 7, "encoder_heads must divide width, got 7 and 384"),
        ("core_heads", 7, "core_heads must divide width, got 7 and 384"),
    ],
)
def test_wrong_sizes_are_refused(field: str, value: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RVMConfig(**vars(RVMConfig.named("rvm_s16")) | {field: value})


def test_wrong_decoder_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="num_heads must divide width, got 5 and 512"):
        DecoderConfig(num_heads=5)
    with pytest.raises(ValueError, match="DecoderConfig.max_time_gap must be positive"):
        DecoderConfig(max_time_gap=0)


def test_configuration_is_frozen() -> None:
    config = RVMConfig.named("rvm_b16")
    with pytest.raises(FrozenInstanceError):
        config.width = 1  # type: ignore[misc]


@pytest.mark.parametrize(("height", "width"), [(0, 16), (-16, 16), (16, 17), (250, 256)])
def test_image_sizes_are_multiples_of_a_patch(height: int, width: int) -> None:
    check_image_size(16, 1920)
    with pytest.raises(ValueError, match=f"multiples of 16, got {height}x{width}"):
        check_image_size(height, width)

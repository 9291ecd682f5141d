"""How many floating-point operations a training step takes, by formula."""

from __future__ import annotations

from rvm_core.config import PATCH_SIZE, TUBE_FRAMES, DecoderConfig, RVMConfig, TRecViTConfig
from rvm_training.mae_config import TubeletMAEConfig, TubeMAEConfig
from rvm_training.pretrain_config import ClipSamplingConfig, PretrainConfig, SamplingConfig
from rvm_training.pretrain_model import aggregator_mlp_width

_PATCH_VALUES = 3 * PATCH_SIZE**2


def train_flops(config: PretrainConfig) -> int:
    """FLOPs of one step over the whole batch: two for each multiplication in a matrix product, forward and backward.

    Norms, softmax, activations and the optimiser are not counted, and nothing is counted twice that rematerialisation
    computes twice. The backward pass takes two products for each one of the forward pass, but only one where the input
    is data.
    """
    if isinstance(config.sampling, SamplingConfig):
        forward, of_data = _sources_and_targets(config)
    elif isinstance(config.model, TubeMAEConfig):
        forward, of_data = _tubes(config.model, config.sampling)
    else:
        assert isinstance(config.model, TubeletMAEConfig)
        forward, of_data = _tubelets(config.model, config.sampling)
    return config.batch_size * (3 * forward + 2 * of_data)


def _sources_and_targets(config: PretrainConfig) -> tuple[int, int]:
    """Forward FLOPs of an example: of products of activations, of products of data."""
    model, sampling = config.rvm_model, config.rvm_sampling
    decoder = model.decoder or DecoderConfig()
    aggregate = _core if config.aggregator == "core" else _self_attention
    forward = _encoder(model, sampling) + aggregate(model, sampling) + _decoder(decoder, model.width, sampling)
    return forward, _patch_embedding(model, sampling) + _time_gaps(decoder, sampling)


def _tubes(model: TubeMAEConfig, sampling: ClipSamplingConfig) -> tuple[int, int]:
    encoder, decoder = model.encoder, model.decoder
    tokens, width = sampling.visible + 1, encoder.width
    block = _recurrent_block(encoder, tokens) + _vit_block(tokens, width, encoder.mlp_width)
    decoder_block = _vit_block(sampling.patches + 1, decoder.width, decoder.mlp_width)
    pixels = _product(sampling.patches, decoder.width, _PATCH_VALUES)
    embedding = _product(tokens, width, decoder.width)
    frame = encoder.depth * block + embedding + decoder.depth * decoder_block + pixels
    return sampling.frames * frame, sampling.frames * _product(sampling.patches, _PATCH_VALUES, width)


def _tubelets(model: TubeletMAEConfig, sampling: ClipSamplingConfig) -> tuple[int, int]:
    encoder, tokens = model.encoder, sampling.places
    first = _vit_block(sampling.visible, encoder.width, encoder.mlp_width)
    last = _vit_block(tokens, encoder.width, encoder.mlp_width)
    blocks = (encoder.depth - model.decoder_blocks) * first + model.decoder_blocks * last
    pixels = _product(tokens, encoder.width, TUBE_FRAMES * _PATCH_VALUES)
    return blocks + pixels, _product(tokens, TUBE_FRAMES * _PATCH_VALUES, encoder.width)


def _recurrent_block(model: TRecViTConfig, tokens: int) -> int:
    inner = model.recurrent_width
    gates = 2 * _product(tokens, inner, inner // model.recurrent_heads)
    return 3 * _product(tokens, model.width, inner) + gates


def _patch_embedding(model: RVMConfig, sampling: SamplingConfig) -> int:
    frames = sampling.source_frames + sampling.targets
    return _product(frames * sampling.patches, _PATCH_VALUES, model.width)


def _time_gaps(decoder: DecoderConfig, sampling: SamplingConfig) -> int:
    return _product(sampling.targets, decoder.max_time_gap, decoder.width)


def _encoder(model: RVMConfig, sampling: SamplingConfig) -> int:
    width, mlp_width = model.width, model.encoder_mlp_width
    source = _vit_block(sampling.patches + 1, width, mlp_width)
    target = _vit_block(sampling.visible + 1, width, mlp_width)
    return model.encoder_depth * (sampling.source_frames * source + sampling.targets * target)


def _core(model: RVMConfig, sampling: SamplingConfig) -> int:
    tokens, width = sampling.patches + 1, model.width
    gates = 4 * _product(tokens, width, width)
    cross = _attention(tokens, tokens, width)
    block = cross + _vit_block(tokens, width, model.core_mlp_width)
    return sampling.source_frames * (gates + model.core_depth * block)


def _self_attention(model: RVMConfig, sampling: SamplingConfig) -> int:
    tokens = sampling.source_frames * (sampling.patches + 1)
    return model.core_depth * _vit_block(tokens, model.width, aggregator_mlp_width(model))


def _decoder(decoder: DecoderConfig, encoder_width: int, sampling: SamplingConfig) -> int:
    width, targets, tokens = decoder.width, sampling.targets, sampling.patches + 1
    context = sampling.source_frames * tokens
    embedding = _product(context + targets * (sampling.visible + 1), encoder_width, width)
    block = _attention(targets * tokens, context, width) + targets * _vit_block(tokens, width, decoder.mlp_width)
    return embedding + decoder.depth * block + _product(targets * sampling.patches, width, _PATCH_VALUES)


def _vit_block(tokens: int, width: int, mlp_width: int) -> int:
    return _attention(tokens, tokens, width) + 2 * _product(tokens, width, mlp_width)


def _attention(queries: int, keys: int, width: int) -> int:
    """Heads share the width, so their number does not matter."""
    projections = 2 * _product(queries, width, width) + 2 * _product(keys, width, width)
    return projections + 2 * _product(queries, keys, width)


def _product(rows: int, inner: int, columns: int) -> int:
    return 2 * rows * inner * columns

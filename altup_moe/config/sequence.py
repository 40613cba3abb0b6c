"""The layers that Sequence-AltUp strides, from the ranges of the section `sequence`."""

from __future__ import annotations

import re

from altup_moe.config.errors import ConfigError
from altup_moe.config.model_schema import SequenceConfig

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")


def layer_range(text: str, num_layers: int, key: str = "sequence.layers") -> range:
    """Layers of "first..last": from 0, both ends included, negative ones counted from the end as in Python.

    Raises:
        ConfigError: it is not a range, leaves the model, or holds no layer. ``key`` is the field it names.
    """
    fits = f"first..last would fit, from 0 to {num_layers - 1} or from -{num_layers} to -1, as in 0..-1"
    match = _RANGE.fullmatch(text)
    if not match:
        raise ConfigError(key, text, fits)
    ends = [int(end) for end in match.groups()]
    if not all(-num_layers <= end < num_layers for end in ends):
        raise ConfigError(key, text, f"there are {num_layers} layers; {fits}")
    first, last = (end % num_layers for end in ends)
    if first > last:
        raise ConfigError(key, text, f"holds none of the {num_layers} layers; {fits}")
    return range(first, last + 1)


def strided_layers(sequence: SequenceConfig, num_layers: int) -> range:
    """Global indices of the layers that run on every sequence.stride-th token; none with a stride of 1.

    An encoder-decoder's are the encoder's; `strided_decoder_layers` has the decoder's.
    """
    return layer_range(sequence.layers, num_layers) if sequence.stride > 1 else range(0)


def strided_decoder_layers(sequence: SequenceConfig, decoder_layers: int) -> range:
    """Layers of an encoder-decoder's decoder that stride, counted in their stack; none unless it is asked for."""
    if sequence.stride == 1 or sequence.decoder_layers is None:
        return range(0)
    return layer_range(sequence.decoder_layers, decoder_layers, "sequence.decoder_layers")

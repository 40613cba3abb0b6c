"""What transformers calls the KV cache in a model's call and in its output: releases differ."""

from __future__ import annotations

import dataclasses
from typing import Any

from transformers.modeling_outputs import CausalLMOutputWithPast

CACHE_NAMES = ("past_key_values", "cache")
"""Up to transformers 5.23, and from 5.24 on. A model takes both."""
CACHE = CACHE_NAMES["cache" in {field.name for field in dataclasses.fields(CausalLMOutputWithPast)}]
"""The name of the installed release, under which `generate` passes the cache and looks for it in the output."""


def given_cache(past_key_values: Any, cache: Any) -> Any:
    """The one of both that is given, or None.

    Raises:
        ValueError: two different caches.
    """
    if past_key_values is not None and cache is not None and past_key_values is not cache:
        raise ValueError("cache and past_key_values are two names of one argument, but two caches are given")
    return past_key_values if cache is None else cache

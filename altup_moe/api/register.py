"""Add rows to the tables: stream variants, expert backends, objectives and corpora of your own.

A name is known in the process that registers it, so every rank's program does, before it loads a configuration. Reading
a run that uses one needs it as well. The commands take such a program by the environment (`altup_moe.config.plugins`):

    ALTUP_MOE_PLUGINS=examples/own_variant.py altup-moe train quickstart --altup.variant leaky
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from altup_moe.altup.coefficients import Coefficient
from altup_moe.altup.variants import VARIANTS, StreamVariant
from altup_moe.config import ConfigError
from altup_moe.config.architectures import ARCHITECTURES
from altup_moe.config.data_checks import ADDED_CORPORA, TASK_NAMES
from altup_moe.config.load import renew_names
from altup_moe.config.model_schema import BACKEND_NAMES

if TYPE_CHECKING:
    from torch import Tensor

    from altup_moe.altup.static import Mixing
    from altup_moe.config import DataConfig, ModelConfig
    from altup_moe.data.recipes import SampleRecipe
    from altup_moe.data.tokenizer import Tokenizer

_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_added: set[tuple[str, str]] = set()
"""(key, name) of every row that this process has added."""


def register_variant(
    name: str,
    coefficients: Mapping[str, Coefficient],
    weights: Callable[[int, Mapping[str, Tensor]], Mixing],
    *,
    architectures: Sequence[str] = ("gpt", "t5"),
    overwrite: bool = False,
) -> None:
    """Add a stream variant: ``altup.variant: NAME`` then trains it, under every layout.

    For a token's blocks X [K, d] and a layer F that computes on one block: u = r X; y = F(u); X' = M X + g (x) y.

    Args:
        coefficients: the learned parameters of each layer by name: shape ("K" is the number of blocks), initial value.
        weights: function (j, coefficients) -> `Mixing`, the weights r [K] (or a block's number), M [K, K] and g [K] of
            a layer whose turn it is to compute on block j. fp32 tensors; it is differentiated, and called every step.
        architectures: values of model.arch that carry it.
        overwrite: replace a variant that this process has registered before (a notebook's cell that runs again).

    Raises:
        ConfigError: the name is taken or has other characters than a-z, 0-9, _ and -, or an unknown architecture.
        TypeError: coefficients that are none, or weights that cannot be called.

    Examples:
        >>> def half(block, c):  # doctest: +SKIP
        ...     return Mixing(block, torch.eye(len(c["gate"])), torch.tanh(c["gate"]))
        >>> register_variant("half", {"gate": Coefficient(("K",), "ones")}, half)  # doctest: +SKIP
        >>> config = load_config("quickstart", {"altup.variant": "half"})  # doctest: +SKIP
    """
    _check_architectures(architectures)
    for key, one in coefficients.items():
        if not isinstance(one, Coefficient):
            raise TypeError(f"coefficients[{key!r}] is {one!r}; a Coefficient would fit")
    if not callable(weights):
        raise TypeError(f"weights is {weights!r}; a function (block, coefficients) -> Mixing would fit")
    row = StreamVariant(name, dict(coefficients), weights, architectures=tuple(architectures), planned=False)
    _add("altup.variant", VARIANTS, name, row, overwrite)
    renew_names()


def register_backend(
    name: str, layer: type, *, stacked: bool = True, allows_overlap: bool = True, overwrite: bool = False
) -> None:
    """Add an expert backend: ``moe.backend: NAME`` then computes the experts by it.

    Args:
        layer: class of the feed-forward of an MoE layer: ``layer(config, submodules, layer_number=None,
            pg_collection=groups)``, called with hidden states [S, B, d], returning (output [S, B, d], None). The text
            of `altup_moe.moe.backends` is the contract; a class derived from `OverlappedMoELayer` needs only experts.
        stacked: expert weights are two matrices, ``experts.fc1`` [E_local * 2f, d] and ``experts.fc2``
            [E_local * d, f] (`StackedWeights`); False: modules ``experts.local_experts.N.linear_fc1`` and
            ``linear_fc2``.
        allows_overlap: whether other work runs while its exchanges are in flight.
        overwrite: as in `register_variant`.

    Raises:
        ConfigError: the name is taken or has other characters than a-z, 0-9, _ and -. TypeError: layer is no class.

    Examples:
        >>> register_backend("mine", MyLayer)  # doctest: +SKIP
        >>> config = load_config("quickstart", {"moe.backend": "mine"})  # doctest: +SKIP
    """
    from altup_moe.moe.backends import BACKENDS, Backend

    if not isinstance(layer, type):
        raise TypeError(f"layer is {layer!r}; a class would fit")
    _add("moe.backend", BACKENDS, name, Backend(name, layer, stacked, allows_overlap), overwrite)
    if name not in BACKEND_NAMES:
        BACKEND_NAMES.append(name)
    renew_names()


def register_objective(
    name: str,
    recipe: Callable[[ModelConfig, DataConfig, Tokenizer], SampleRecipe],
    *,
    architectures: Sequence[str] = ("gpt",),
    overwrite: bool = False,
) -> None:
    """Add a training objective: ``data.objective: NAME`` then makes samples of text windows by it.

    Args:
        recipe: function (config.model, config.data, tokenizer) -> `SampleRecipe`: how many tokens a window has, and
            what is made of them. A sample must depend on its tokens and its own random generator alone.
        architectures: values of model.arch that it fits.
        overwrite: as in `register_variant`.

    Raises:
        ConfigError: the name is taken or has other characters than a-z, 0-9, _ and -, or an unknown architecture.
        TypeError: recipe cannot be called.

    Examples:
        >>> register_objective("my-objective", my_recipe)  # doctest: +SKIP
        >>> config = load_config("quickstart", {"data.objective": "my-objective"})  # doctest: +SKIP
    """
    from altup_moe.data.recipes import OBJECTIVES

    _check_architectures(architectures)
    if not callable(recipe):
        raise TypeError(f"recipe is {recipe!r}; a function (model, data, tokenizer) -> SampleRecipe would fit")
    _add("data.objective", OBJECTIVES, name, recipe, overwrite)
    for arch, row in ARCHITECTURES.items():
        others = tuple(one for one in row.objectives if one != name)
        ARCHITECTURES[arch] = replace(row, objectives=(*others, name) if arch in architectures else others)
    renew_names()


def register_corpus(
    name: str, documents: Callable[[], Iterable[str]], *, description: str = "", overwrite: bool = False
) -> None:
    """Add a corpus: ``data.corpus: NAME`` then trains on its texts, tokenised once and split by documents.

    Args:
        documents: function that gives the texts, in the same order at every call; none is empty. Their hash is part of
            the prepared data's name, so other texts are other data.
        description: one line.
        overwrite: as in `register_variant`.

    Raises:
        ConfigError: the name is taken or has other characters than a-z, 0-9, _ and -. TypeError: documents cannot be
            called.

    Examples:
        >>> register_corpus("poems", lambda: ["Two roads diverged ..."])  # doctest: +SKIP
        >>> config = load_config("quickstart", {"data.corpus": "poems"})  # doctest: +SKIP
    """
    from altup_moe.data.corpora import CORPORA, Corpus, texts_sha256
    from altup_moe.data.document import Document

    if not callable(documents):
        raise TypeError(f"documents is {documents!r}; a function without arguments that gives texts would fit")
    if name in TASK_NAMES:
        raise ConfigError("data.corpus", name, "is the name of a task; another would fit")

    def load() -> list[Document]:
        return [Document(f"{name}:{number}", text) for number, text in enumerate(documents())]

    corpus = Corpus(name, description, lambda: texts_sha256(load()), lambda cache_dir: load())
    _add("data.corpus", CORPORA, name, corpus, overwrite)
    if name not in ADDED_CORPORA:
        ADDED_CORPORA.append(name)


def _add(key: str, table: MutableMapping[str, Any], name: str, row: Any, overwrite: bool) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(key, name, "a letter, then letters, digits, _ or -, all lower case, would fit")
    if name in table and not (overwrite and (key, name) in _added):
        own = "; overwrite=True replaces it" if (key, name) in _added else ""
        raise ConfigError(key, name, f"is taken{own}; a name that is none of {', '.join(table)} would fit")
    table[name] = row
    _added.add((key, name))


def _check_architectures(names: Sequence[str]) -> None:
    for name in names:
        if name not in ARCHITECTURES:
            raise ConfigError("model.arch", name, f"{', '.join(ARCHITECTURES)} would fit")

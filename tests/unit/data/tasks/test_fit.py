"""Inputs that are too long: passages lose their ends, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altup_moe.config import ConfigError
from altup_moe.data.layouts import shortened
from altup_moe.data.tasks.fit import (
    Room,
    check_classes,
    count_cut,
    encoded,
    fitted,
    fitted_inputs,
    fitting,
    tokens_at_most,
)
from altup_moe.data.tasks.records import Example, Passage, example
from altup_moe.data.tasks.registry import TASKS
from altup_moe.data.tokenizer import Tokenizer, load_tokenizer
from tests.unit.data.tokenizers_for_tests import forgetful, metaspace
from tests.unit.train.runs import TEXT, tiny

WORDS = ("the", "cat", "sat", "on", "a", "mat", "question:", "Änne", "\ufdfa", "日本", "x<5", "\u01d6", "dog's")
sentences = st.lists(st.sampled_from(WORDS), min_size=1, max_size=12).map(" ".join)


@pytest.fixture(scope="module", params=["byte-level", "metaspace"])
def tokenizer(request: pytest.FixtureRequest, bpe: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    if request.param == "byte-level":
        return bpe
    directory = tmp_path_factory.mktemp("metaspace") / "tokenizer"
    return load_tokenizer(metaspace(directory, TEXT, byte_fallback=True))


@given(st.lists(st.tuples(sentences, st.booleans()), min_size=1, max_size=4), sentences, st.integers(2, 70))
def test_only_passages_are_cut_and_as_little_as_needed(
    tokenizer: Tokenizer, parts: list[tuple[str, bool]], targets: str, length: int
) -> None:
    one = example([Passage(text) if cut else text for text, cut in parts], targets, 0)
    whole = encoded(one, tokenizer).inputs
    found = fitted_inputs(one, tokenizer, length)
    assert whole.tolist() == [*tokenizer.encode(" ".join(text for text, _ in parts)), tokenizer.eod]
    if len(whole) <= length:
        assert found is not None
        assert found.tolist() == whole.tolist()
    elif found is not None:
        assert len(found) == length
        rest = iter(whole.tolist())
        assert all(token in rest for token in found.tolist())  # in their order, some left out
        text, kept = tokenizer.decode(found[:-1].tolist()), [text for text, cut in parts if not cut]
        assert all(part in text for part in kept)
    else:
        assert sum(len(tokenizer.encode(f" {text}")) for text, cut in parts if not cut) + 1 > length - len(parts)
    room = Room(length, None)
    assert (fitting([one], tokenizer, room) == [one]) is (fitted(one, tokenizer, room) is not None)
    assert count_cut([one], tokenizer, room) == (len(whole) + len(tokenizer.encode(targets)) > length)


@given(sentences, sentences, st.integers(1, 60))
def test_a_passage_at_the_end_is_cut_as_a_whole_text_is(bpe: Tokenizer, first: str, last: str, length: int) -> None:
    """As T5's preprocessors cut, and as earlier versions did: their runs go on as they began."""
    one = example([first, Passage(last)], "x", 0)
    plain = Example(f"{first} {last}", "x", 0)
    cut = shortened(encoded(plain, bpe).inputs, length).tolist()
    assert [ids.tolist() for ids in [fitted_inputs(plain, bpe, length)] if ids is not None] == [cut]
    found = fitted_inputs(one, bpe, length)
    assert found is None or found.tolist() == cut


def test_the_longer_of_two_passages_is_cut(bpe: Tokenizer) -> None:
    long, short = Passage("the cat sat on the mat, the dog lay on the log, and the bird flew"), Passage("the house")
    for parts in (["s1:", long, "s2:", short], ["s1:", short, "s2:", long]):
        found = fitted_inputs(example(parts, "x", 0), bpe, 20)
        assert found is not None
        text = bpe.decode(found[:-1].tolist())
        assert "the house" in text
        assert "the cat" in text


@given(st.text(max_size=40))
def test_no_text_has_more_tokens_than_the_bound(tokenizer: Tokenizer, text: str) -> None:
    assert len(tokenizer.encode(text)) + 1 <= tokens_at_most(text)


def test_a_class_that_the_tokenizer_cannot_spell_is_refused(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(forgetful(tmp_path / "tokenizer", "_"))
    with pytest.raises(ConfigError, match=r"data\.tokenizer=.*rte's answer 'not_entailment' as 'notentailment'"):
        check_classes(TASKS["rte"], tokenizer, tiny().model)

"""One function builds the inputs of a text: what a run was trained on, what it is asked, and what transformers builds
from the exported tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from altup_moe.config import DataConfig, ModelConfig, RunConfig
from altup_moe.data.document import Document
from altup_moe.data.encode import ByteCount, encode_documents
from altup_moe.data.recipes import layout_of
from altup_moe.data.special_tokens import prompt_format
from altup_moe.data.tasks.fit import encoded
from altup_moe.data.tasks.records import Example
from altup_moe.data.tokenizer import Tokenizer, load_tokenizer, save_tokenizer, train_bpe
from altup_moe.inference.hub_tokenizer import export_tokenizer, imported_tokenizer, write_json
from tests.unit.inference.alike import TEXT, prompts, qwen_like, sentencepiece_like, t5_like

GPT, T5 = ModelConfig(vocab_size=512), ModelConfig(vocab_size=512, arch="t5", num_query_groups=8)
IMPORTED = DataConfig(add_special_tokens=True)


def trained(directory: Path, sentinels: int) -> Tokenizer:
    return train_bpe([TEXT], 400, directory, sentinels)


def taken(make: Callable[[Path], dict[str, Any]]) -> Callable[[Path], Tokenizer]:
    """The tokenizer of an import, as its run keeps it."""

    def build(directory: Path) -> Tokenizer:
        write_json(directory.parent / "generation.json", make(directory))
        tokenizer, _ = imported_tokenizer(directory, 512)
        save_tokenizer(tokenizer, directory.parent / "run")
        return load_tokenizer(directory.parent / "run", add_special_tokens=True)

    return build


RUNS: dict[str, tuple[ModelConfig, DataConfig, Callable[[Path], Tokenizer]]] = {
    "own gpt": (GPT, DataConfig(), lambda d: trained(d, 0)),
    "own gpt on spans": (GPT, DataConfig(objective="span_corruption"), lambda d: trained(d, 20)),
    "own gpt on tasks": (GPT, DataConfig(mixture=("sst2=1", "cola=2")), lambda d: trained(d, 0)),
    "own t5": (T5, DataConfig(), lambda d: trained(d, 20)),
    "imported Llama": (GPT, IMPORTED, taken(lambda d: sentencepiece_like(d, "PreTrainedTokenizerFast"))),
    "imported Mixtral": (GPT, IMPORTED, taken(lambda d: sentencepiece_like(d, "LlamaTokenizer"))),
    "imported Qwen3": (GPT, IMPORTED, taken(qwen_like)),
    "imported T5": (T5, IMPORTED, taken(t5_like)),
    # From scratch, with the tokenizer of another model: nothing stood before its documents.
    "own gpt, Llama's tokenizer": (
        GPT, DataConfig(), lambda d: (sentencepiece_like(d, "LlamaTokenizer"), load_tokenizer(d))[1],
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=RUNS)
def run(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, RunConfig, Tokenizer, Any]:
    """(name, configuration, our tokenizer, transformers' from the export)."""
    model, data, make = RUNS[request.param]
    root = tmp_path_factory.mktemp("run")
    tokenizer, config = make(root / "source"), RunConfig(model, data=data)
    (root / "out").mkdir()
    export_tokenizer(tokenizer.directory, root / "out", config)
    return request.param, config, tokenizer, AutoTokenizer.from_pretrained(root / "out")


TEXTS = st.one_of(
    st.text(min_size=1, max_size=30).filter(str.strip),
    st.integers(0, 10_000).map(
        lambda seed: prompts(1, ("<s>", "<turn>", "<extra_id_3>", "<|im_start|>", "</s>"), seed)[0]
    ),
)


@given(text=TEXTS)
def test_a_prompt_is_what_transformers_builds(run: tuple[str, RunConfig, Tokenizer, Any], text: str) -> None:
    _, config, ours, theirs = run
    form = prompt_format(config.model, config.data, ours)
    expected = theirs(text)["input_ids"]
    assert form.ids(text, ours) == (expected or [ours.eod])


@given(text=st.text(min_size=1, max_size=30).filter(str.strip))
def test_training_builds_the_same(run: tuple[str, RunConfig, Tokenizer, Any], text: str) -> None:
    """Documents and tasks' inputs, in which strings of special tokens are plain text."""
    _, config, ours, theirs = run
    plain = theirs(text, split_special_tokens=True)["input_ids"]
    inputs = encoded(Example(text, "yes", 0), ours).inputs.tolist()
    if config.model.encoder_decoder or config.data.objective or config.data.mixture:
        assert inputs == plain
    else:  # a decoder alone: a prompt is continued, a task's input ends before the answer
        assert inputs == [*plain, ours.eod]
        assert ours.document(ours.encode(text)) == [*plain, ours.eod]


def test_what_stands_around(run: tuple[str, RunConfig, Tokenizer, Any]) -> None:
    """By hand: the ids themselves."""
    name, config, ours, _ = run
    form, body = prompt_format(config.model, config.data, ours), ours.encode("the cat")
    end = {"own gpt": 0, "own gpt on spans": 1, "own gpt on tasks": 0, "own t5": 1, "imported T5": 1}.get(name, 2)
    end = ours.backend.token_to_id("<|im_end|>") if name == "imported Qwen3" else end
    before = [1] if name in ("imported Llama", "imported Mixtral") else []
    after = [end] if "t5" in name.lower() or " on " in name else []
    assert form.ids("the cat", ours) == [*before, *body, *after]
    assert ours.document(body) == [*before, *body, end]


def test_documents_of_an_import_begin_as_its_prompts(tmp_path: Path) -> None:
    sentencepiece_like(tmp_path / "llama", "PreTrainedTokenizerFast")
    documents = [Document("d", "the cat sat"), Document("e", "<s> now </s>")]
    plain, special = (
        list(encode_documents(documents, load_tokenizer(tmp_path / "llama", chosen), ByteCount()))
        for chosen in (False, True)
    )
    assert special == [[1, *ids] for ids in plain]
    assert all(ids[-1] == 2 and 1 not in ids and ids.count(2) == 1 for ids in plain)  # spelled ones are text


def test_special_tokens_are_text_where_the_tokenizer_splits_them(tmp_path: Path) -> None:
    sentencepiece_like(tmp_path / "whole", "PreTrainedTokenizerFast")
    whole = load_tokenizer(tmp_path / "whole")
    write_json(tmp_path / "whole" / "tokenizer_config.json", {**whole.settings, "split_special_tokens": True})
    split, theirs = load_tokenizer(tmp_path / "whole"), AutoTokenizer.from_pretrained(tmp_path / "whole")
    turn = whole.backend.token_to_id("<turn>")
    assert turn in whole.encode_prompt("a <turn> b")
    assert turn not in split.encode_prompt("a <turn> b")
    assert split.encode_prompt("a <turn> b") == theirs("a <turn> b", add_special_tokens=False)["input_ids"]


def test_an_imported_decoder_s_first_token_is_its_own(tmp_path: Path) -> None:
    """Not padding, where generation_config.json names another: in training too."""
    t5_like(tmp_path / "t5")
    write_json(tmp_path / "t5" / "generation_config.json", {"decoder_start_token_id": 7})
    tokenizer = load_tokenizer(tmp_path / "t5", add_special_tokens=True)
    sample = layout_of(T5, tokenizer)(encoded(Example("the cat", "sat", 0), tokenizer))
    given = [7, *tokenizer.encode("sat")]
    assert sample["tokens"][: len(given)].tolist() == given
    assert sample["tokens"][-1] == tokenizer.pad_id == 0


def test_the_run_s_tokenizer_keeps_what_the_import_brought(tmp_path: Path) -> None:
    """A copy for training has the ids and rules of generation, or a tuned import would lose them."""
    special = sentencepiece_like(tmp_path / "llama", "PreTrainedTokenizerFast")
    write_json(tmp_path / "llama" / "generation_config.json", special)
    save_tokenizer(load_tokenizer(tmp_path / "llama"), tmp_path / "copy")
    assert load_tokenizer(tmp_path / "copy").generation == special


def test_a_backend_class_of_transformers_is_taken_as_it_builds_it(tmp_path: Path) -> None:
    """LlamaTokenizer puts no space behind a special token; the same file read as it stands does."""
    sentencepiece_like(tmp_path / "m", "LlamaTokenizer")
    alone = load_tokenizer(tmp_path / "m", add_special_tokens=True)
    tokenizer, lines = imported_tokenizer(tmp_path / "m", 512)
    text = "a<turn>b"
    expected = AutoTokenizer.from_pretrained(tmp_path / "m")(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.encode_prompt(text) == expected != alone.encode_prompt(text)
    assert "as transformers' LlamaTokenizer builds it" in lines[0]
    assert lines[-1] == "before a text stands <s>, behind it nothing, as its tokenizer says"
    generic = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "m" / "tokenizer.json"))
    assert generic(text, add_special_tokens=False)["input_ids"] == alone.encode_prompt(text)

"""Models and prompts that transformers and we are asked alike: every kind of tokenizer, tiny random weights."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen3Config,
    T5Config,
)

from altup_moe.commands.convert import main as convert
from altup_moe.config import AltUpConfig, LogConfig, ModelConfig, RunConfig
from altup_moe.config.load import save_config
from altup_moe.config.run_directory import tokenizer_dir
from altup_moe.data.tokenizer import train_bpe
from altup_moe.inference.generate import GREEDY, continuation, generated_ids, room_behind, through_end
from altup_moe.inference.load_run import FinishedRun, load_run
from altup_moe.model.reference.build import reference_model
from tests.checkpoints import head, write_tensors

TEXT = "the cat sat on a mat and saw his dog run home; now it is red. Is it? 1999, 42 x ÷ ö é 日本\n" * 4
LENGTH, NEW = 96, 8
SHAPE: dict[str, Any] = {
    "vocab_size": 512, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": LENGTH,
}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A run of ours, the files and the class of the same model for transformers, and special tokens to spell."""

    run: FinishedRun
    files: Path
    spelled: tuple[str, ...]

    @property
    def reads(self) -> bool:
        return self.run.config.model.encoder_decoder

    def theirs(self) -> tuple[Any, Any]:
        """(model, tokenizer) through the files alone."""
        auto = AutoModelForSeq2SeqLM if self.reads else AutoModelForCausalLM
        model = auto.from_pretrained(self.files, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(self.files)
        if tokenizer.pad_token is None:  # as everyone does whose model has none
            tokenizer.pad_token = tokenizer.eos_token
        return model, tokenizer


# ---------------------------------------------------------------------------------------------------------- tokenizers


def sentencepiece_like(directory: Path, name: str) -> dict[str, Any]:
    """As Llama's and Mixtral's: a BOS, a space before every text, bytes for what has no token."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    backend.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=400, special_tokens=pieces, show_progress=False))
    spec = json.loads(backend.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["id"] < 3]
    backend = tokenizers.Tokenizer.from_str(json.dumps(spec))
    backend.add_special_tokens(["<turn>"])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    save(directory, backend, {"tokenizer_class": name, **tokens})
    return {"bos_token_id": 1, "eos_token_id": [2, backend.token_to_id("<turn>")], "pad_token_id": None}


def qwen_like(directory: Path) -> dict[str, Any]:
    """As Qwen's: byte-level, no BOS, chat tokens, a second end, and a penalty in generation_config.json."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.normalizer, backend.decoder = normalizers.NFC(), decoders.ByteLevel()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([TEXT], trainer)
    backend.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    save(
        directory,
        backend,
        {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    )
    end, _, turn = (backend.token_to_id(t) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    return {"bos_token_id": end, "eos_token_id": [turn, end], "pad_token_id": end, "repetition_penalty": 1.05}


def t5_like(directory: Path) -> dict[str, Any]:
    """As T5's: unigram pieces, an end behind every text, padding first, sentinels last, closed-up punctuation."""
    backend = tokenizers.Tokenizer(models.Unigram(pieces_with_scores(200), unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    sentinels = [f"<extra_id_{n}>" for n in range(100)]
    backend.add_special_tokens(["<pad>", "</s>", "<unk>"])
    backend.add_special_tokens(sentinels[::-1])
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokens = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "extra_ids": 100}
    settings = {"tokenizer_class": "T5Tokenizer", "clean_up_tokenization_spaces": True, **tokens}
    save(directory, backend, {**settings, "additional_special_tokens": sentinels})
    return {"eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0}


def pieces_with_scores(size: int) -> list[tuple[str, float]]:
    """A unigram vocabulary: special tokens, all characters, and the text's likeliest pieces of up to six characters.

    Not trained: the library's trainer gives other scores at every run, and with each of them another test.
    """
    words = [f"▁{word}" for word in TEXT.split()]
    counts = Counter(
        word[first:last]
        for word in words
        for first in range(len(word))
        for last in range(first + 1, min(first + 6, len(word)) + 1)
    )
    ranked = sorted(counts, key=lambda piece: (len(piece) > 1, -counts[piece] * len(piece), piece))
    pieces = ranked[: size - 3]
    total = sum(counts[piece] for piece in pieces)
    special = [(token, 0.0) for token in ("<pad>", "</s>", "<unk>")]
    return [*special, *((piece, math.log(counts[piece] / total)) for piece in pieces)]


def save(directory: Path, backend: tokenizers.Tokenizer, settings: dict[str, Any]) -> None:
    directory.mkdir(parents=True)
    backend.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


# -------------------------------------------------------------------------------------------------------------- models


def imported(directory: Path, config: PretrainedConfig, special: dict[str, Any], spelled: tuple[str, ...]) -> Asked:
    """A random model of transformers beside its tokenizer, and our import of both."""
    torch.manual_seed(1)
    rules = {"repetition_penalty": special.pop("repetition_penalty")} if "repetition_penalty" in special else {}
    for name, value in special.items():
        setattr(config, name, value)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    model = auto.from_config(config).eval()
    if config.is_encoder_decoder:  # transformers 5 ties T5's table to its output layer whatever the configuration says
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(0, 0.3)
    model.generation_config.update(**special, **rules)
    model.save_pretrained(directory)
    run = directory.with_name(f"{directory.name} run")
    assert convert(["import", str(directory), str(run)]) == 0
    return Asked(load_run(run), directory, spelled)


def llama(root: Path) -> Asked:
    special = sentencepiece_like(root / "llama", "PreTrainedTokenizerFast")
    return imported(root / "llama", LlamaConfig(**SHAPE), special, ("<turn>", "<s>", "</s>"))


def mixtral(root: Path) -> Asked:
    special = sentencepiece_like(root / "mixtral", "LlamaTokenizer")
    config = MixtralConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2)
    return imported(root / "mixtral", config, special, ("<turn>", "<s>"))


def qwen3(root: Path) -> Asked:
    config = Qwen3Config(**SHAPE, head_dim=8)
    return imported(root / "qwen3", config, qwen_like(root / "qwen3"), ("<|im_start|>", "<|im_end|>"))


def t5(root: Path) -> Asked:
    config = T5Config(
        vocab_size=512, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )  # fmt: skip
    return imported(root / "t5", config, t5_like(root / "t5"), ("<extra_id_0>", "<extra_id_7>", "</s>"))


def own(root: Path, name: str, arch: str, sentinels: int, plain: bool, width: int = 1) -> Asked:
    """A run of ours with random weights, exported."""
    torch.manual_seed(2)
    model = ModelConfig(
        num_layers=2, hidden_size=32, ffn_hidden_size=48, num_attention_heads=4, num_query_groups=4, seq_length=LENGTH,
        vocab_size=512, share_embeddings_and_output_weights=False, arch=arch,
    )  # fmt: skip
    run_dir = root / name
    config = RunConfig(model, AltUpConfig(width=width), log=LogConfig(run_dir=str(run_dir)))
    weights = reference_model(config).state_dict()
    weights = {key: torch.randn_like(t) * 0.3 if t.dim() > 1 else t for key, t in weights.items()}
    run_dir.mkdir(parents=True)
    save_config(config, run_dir / "config.yaml")
    train_bpe([TEXT], 400, tokenizer_dir(run_dir), sentinels)
    write_tensors(run_dir, head(config, 1), {f"weights/{key}": value for key, value in weights.items()})
    out = root / f"{name} out"
    assert convert(["export", str(run_dir), str(out), *(["--plain"] if plain else [])]) == 0
    spelled = ("<|endoftext|>", "<extra_id_0>", "<pad>") if sentinels else ("<|endoftext|>",)
    return Asked(load_run(run_dir), out, spelled)


def exported_again(make: Callable[[Path], Asked], root: Path) -> Asked:
    """An import, and its export as a class of transformers."""
    asked = make(root)
    out = asked.files.with_name(f"{asked.files.name} out")
    assert convert(["export", asked.run.config.log.run_dir, str(out), "--plain"]) == 0
    return replace(asked, files=out)


MODELS: dict[str, Callable[[Path], Asked]] = {
    "own gpt, --plain": lambda root: own(root, "gpt", "gpt", 0, plain=True),
    "own gpt, K = 2, our class": lambda root: own(root, "gpt2", "gpt", 0, plain=False, width=2),
    "own t5, --plain": lambda root: own(root, "t5", "t5", 20, plain=True),
    "own t5, K = 2, our class": lambda root: own(root, "t5_2", "t5", 20, plain=False, width=2),
    "imported Llama-like": llama,
    "imported Qwen3-like": qwen3,
    "imported Mixtral-like": mixtral,
    "imported T5": t5,
    "exported Llama-like": lambda root: exported_again(llama, root),
    "exported Qwen3-like": lambda root: exported_again(qwen3, root),
    "exported Mixtral-like": lambda root: exported_again(mixtral, root),
    "exported T5": lambda root: exported_again(t5, root),
}

# ------------------------------------------------------------------------------------------------------------- prompts


def prompts(count: int, spelled: tuple[str, ...], seed: int = 0) -> list[str]:
    """Texts of all kinds: words, punctuation, white space, other scripts, special tokens spelled out."""
    drawn = random.Random(seed)
    words = [*TEXT.split(), " ", "  ", "\n", ".", ", ", "don't", "Ω", "🙂", "日本", "\t", "<turn", "<|x|>", *spelled]
    found = []
    while len(found) < count:
        pieces = drawn.choices(words, k=drawn.randint(1, 12))
        text = drawn.choice([" ", " ", ""]).join(pieces)
        if text.strip():
            found.append(text)
    return found


@dataclass(frozen=True)
class Counts:
    """Prompts whose ids and new ids are the same, alone and in batches, and whose printed text is."""

    asked: int
    alone: int
    batched: int
    texts: int


@torch.no_grad()
def counts(asked: Asked, count: int, batch: int = 8) -> Counts:
    """Ask both sides."""
    run, texts = asked.run, prompts(count, asked.spelled)
    model, tokenizer = asked.theirs()
    tokenizer.padding_side, given = "left", model.generation_config.eos_token_id
    ends = given if isinstance(given, list) else [given]
    alone = batched = same_text = 0
    for first in range(0, count, batch):
        some = texts[first : first + batch]
        ids = [run.prompt_format.ids(text, run.tokenizer) for text in some]
        assert all(room_behind(run, i) >= NEW for i in ids)
        encoded = tokenizer(some, return_tensors="pt", padding=True)
        out = model.generate(encoded.input_ids, attention_mask=encoded.attention_mask, max_new_tokens=NEW, **GREEDY)
        start = 1 if asked.reads else encoded.input_ids.shape[1]
        theirs = [through_end(row.tolist(), ends) for row in out[:, start:]]
        batched += sum(a == b for a, b in zip(generated_ids(run, ids, NEW, GREEDY), theirs, strict=True))
        for text, mine in zip(some, ids, strict=True):
            one = tokenizer(text, return_tensors="pt").input_ids
            row = model.generate(one, attention_mask=torch.ones_like(one), max_new_tokens=NEW, **GREEDY)[0].tolist()
            (new,) = generated_ids(run, [mine], NEW, GREEDY)
            alone += one[0].tolist() == mine and new == row[1 if asked.reads else one.shape[1] :]
            whole = tokenizer.decode(row, skip_special_tokens=True)
            before = "" if asked.reads else tokenizer.decode(one[0], skip_special_tokens=True)
            if whole.startswith(before):
                same_text += before + continuation(run, text, NEW, 0.0, 1.0, seed=0) == whole
            else:  # lone bytes behind a prompt that ends with bytes: transformers spoils the prompt's last character
                same_text += run.tokenizer.decode_answer([*mine, *new]) == whole
    return Counts(count, alone, batched, same_text)

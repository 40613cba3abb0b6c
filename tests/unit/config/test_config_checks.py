"""Which values fit together: every rule has a config that breaks it alone, with its key and what would fit."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path

import pytest

from altup_moe.config import ConfigError, RunConfig
from altup_moe.config.checks import check_config
from altup_moe.config.data_checks import CORPUS_NAMES
from altup_moe.config.load import HINTS
from altup_moe.config.ranges import RANGES


def run(**values: object) -> RunConfig:
    """The default configuration with dotted keys (written a__b) replaced."""
    config = RunConfig()
    for dotted, value in values.items():
        section, _, key = dotted.partition("__")
        config = dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **{key: value})})
    return config


EXPERTS = {"moe__num_experts": 8}
SUM = {"altup__variant": "sum", "altup__recycled": False, "model__share_embeddings_and_output_weights": False}

T5 = {
    "model__arch": "t5",
    "model__num_query_groups": 8,
    "model__num_decoder_layers": 3,
    "model__decoder_seq_length": 62,
}
MUP = {"optim__parametrization": "mup", "optim__mup_base_hidden_size": 64}
FITTING = [
    (MUP, 1),
    ({**MUP, "optim__mup_base_num_layers": 2}, 1),
    (T5, 1),
    ({**T5, **EXPERTS, "parallel__tensor": 2, "parallel__expert": 2, "altup__cross_attention": "wide"}, 2),
    ({**T5, "sequence__stride": 32, "parallel__tensor": 2, "sequence__method": "average_pool"}, 2),
    ({**T5, "sequence__stride": 2, "sequence__decoder_layers": "0..-1"}, 1),
    ({**T5, "sequence__decoder_layers": "nonsense"}, 1),
    ({}, 1),
    ({}, 2),
    ({"parallel__tensor": 4}, 4),
    ({"parallel__tensor": 2, "parallel__pipeline": 2, "parallel__context": 2, "parallel__data": 2}, 16),
    ({**EXPERTS, "parallel__expert": 4, "train__global_batch_size": 16}, 4),
    ({**EXPERTS, "parallel__expert": 2, "parallel__expert_tensor": 2, "train__global_batch_size": 16}, 4),
    # Without dense layers their width need not divide.
    ({**EXPERTS, "model__ffn_hidden_size": 701, "parallel__tensor": 2}, 2),
    ({"parallel__pipeline": 2, "parallel__virtual_pipeline": 2}, 2),
    ({"parallel__pipeline": 3, "parallel__first_stage_layers": 2}, 3),
    ({"parallel__pipeline": 2, "parallel__first_stage_layers": 3, "parallel__last_stage_layers": 5}, 2),
    ({"parallel__pipeline": 4, "parallel__first_stage_layers": 1, "parallel__last_stage_layers": 1}, 4),
    (SUM, 1),
    ({**SUM, "altup__width": 1, "model__share_embeddings_and_output_weights": True}, 1),
    ({"altup__recycled": False}, 1),
    ({"model__num_attention_heads": 12, "model__kv_channels": 10}, 1),
    ({**EXPERTS, "overlap__microbatch_halves": True}, 1),
    ({"overlap__microbatch_halves": False, "train__micro_batch_size": 1}, 1),
    ({**EXPERTS, "moe__expert_bias_update_rate": 1e-3, "moe__score_function": "sigmoid"}, 1),
    ({**EXPERTS, "moe__layer_freq": 8, "moe__top_k": 8}, 1),
    ({"optim__schedule": "wsd", "optim__decay_steps": 180}, 1),
    ({"optim__warmup_steps": 500, "train__stop_after": 200}, 1),
    ({"data__corpus": "wikipedia-sample"}, 1),
    ({"sequence__layers": "nonsense"}, 1),
    ({"sequence__stride": 32, "parallel__tensor": 4}, 4),
    ({"sequence__stride": 32, "parallel__context": 4}, 4),
    ({"sequence__stride": 2, "sequence__layers": "-8..7", "sequence__method": "average_pool"}, 1),
]


@pytest.mark.parametrize(("values", "world"), FITTING)
def test_fits(values: dict[str, object], world: int) -> None:
    check_config(run(**values), world)


# (what is wrong, world size, key, words of what would fit)
WRONG = [
    ({"model__num_decoder_layers": 2}, 1, "model.num_decoder_layers", "null would fit"),
    ({"model__decoder_seq_length": 2}, 1, "model.decoder_seq_length", "null would fit"),
    ({"altup__cross_attention": "wide"}, 1, "altup.cross_attention", "narrow would fit"),
    ({**T5, "parallel__pipeline": 2}, 2, "parallel.pipeline", "reads the encoder's output"),
    ({**T5, "parallel__context": 2}, 2, "parallel.context", "whole ones; 1 would fit"),
    ({**T5, "model__num_query_groups": 4}, 1, "model.num_query_groups", "8 would fit"),
    ({**T5, "model__qk_layernorm": True}, 1, "model.qk_layernorm", "false would fit"),
    ({**T5, "model__rotary_scaling_factor": 8.0}, 1, "model.rotary_scaling_factor", "null would fit"),
    (
        {**T5, "model__relative_attention_num_buckets": 9},
        1,
        "model.relative_attention_num_buckets",
        "8 or 10 would fit",
    ),
    ({**T5, "model__relative_attention_max_distance": 16}, 1, "model.relative_attention_max_distance", "more than 16"),
    ({**T5, "parallel__tensor": 4}, 4, "parallel.tensor", "model.decoder_seq_length (62); 1, 2 would fit"),
    ({"model__num_attention_heads": 3}, 1, "model.num_attention_heads", "1, 2, 4, 8, 16, 32, 64, 128 would fit"),
    ({"model__num_attention_heads": 256}, 1, "model.num_attention_heads", "even width"),
    ({"model__num_query_groups": 3}, 1, "model.num_query_groups", "1, 2, 4, 8 would fit"),
    ({"model__kv_channels": 33}, 1, "model.kv_channels", "32 or 34 would fit"),
    ({"model__num_attention_heads": 9, "model__kv_channels": 32}, 1, "model.num_query_groups", "1, 3, 9 would fit"),
    (
        {"overlap__microbatch_halves": True, "train__micro_batch_size": 3, "train__global_batch_size": 9},
        1,
        "train.micro_batch_size",
        "2 or 4 would fit",
    ),
    (
        {**EXPERTS, "overlap__microbatch_halves": True, "moe__dispatcher": "allgather"},
        1,
        "overlap.microbatch_halves",
        "moe.dispatcher alltoall",
    ),
    ({"altup__width": 3}, 1, "altup.width", "1, 2, 4, 8 would fit"),
    ({"altup__variant": "sum"}, 1, "altup.recycled", "false would fit"),
    ({"altup__variant": "mhc"}, 1, "altup.level", "branch would fit"),
    (
        {"altup__variant": "mhc", "altup__level": "branch", "sequence__stride": 2},
        1,
        "sequence.stride",
        "1 would fit",
    ),
    (
        {"altup__variant": "sum", "altup__level": "branch", "altup__recycled": False},
        1,
        "altup.level",
        "layer would fit",
    ),
    ({"altup__variant": "dynamic", "altup__recycled": False}, 1, "altup.recycled", "narrow embedding"),
    ({"altup__variant": "wide_residual", "altup__select": "same"}, 1, "altup.select", "alternating would fit"),
    (
        {"altup__variant": "mhc", "altup__level": "branch", "altup__select": "same"},
        1,
        "altup.select",
        "no step of altup.variant=mhc has a block of its own; alternating would fit",
    ),
    (
        {"altup__correct": "delayed", "altup__width": 1, **T5},
        1,
        "altup.correct",
        "the streams of model.arch t5 do not carry it; next would fit",
    ),
    ({"altup__correct": "delayed", **SUM}, 1, "altup.correct", "altup.variant sum has one block"),
    (
        {"altup__correct": "delayed", "altup__variant": "mhc", "altup__level": "branch"},
        1,
        "altup.correct",
        "follows from the last output; next would fit, or altup.variant altup, gemma, round_robin, hc, wide_residual, "
        "wide_residual_kept, mhc_single_pass",
    ),
    # Not that it stands around branches, for there it would be refused as well.
    ({"altup__correct": "delayed", "altup__variant": "mhc"}, 1, "altup.correct", "follows from the last output"),
    ({"altup__correct": "delayed", "altup__select": "same"}, 1, "altup.select", "alternating would fit"),
    (
        {**EXPERTS, "altup__correct": "delayed", "overlap__microbatch_halves": True},
        1,
        "overlap.microbatch_halves",
        "two layers are under way already; false would fit",
    ),
    ({"altup__coef_clip": 120.0}, 1, "altup.coef_clip", "altup.variant dynamic; null would fit"),
    ({"moe__partial": True}, 1, "moe.partial", "moe.num_experts is 0"),
    ({**EXPERTS, "moe__partial": True, "moe__shared_expert_size": 32}, 1, "moe.shared_expert_size", "0 would fit"),
    (
        {**EXPERTS, "moe__partial": True, "model__ffn_hidden_size": 701, "parallel__tensor": 2},
        2,
        "parallel.tensor",
        "model.ffn_hidden_size (701)",
    ),
    (
        {**SUM, "model__share_embeddings_and_output_weights": True},
        1,
        "model.share_embeddings_and_output_weights",
        "false would fit",
    ),
    ({"sequence__stride": 3}, 1, "sequence.stride", "(256); 1, 2, 4, 8, 16, 32, 64, 128, 256 would fit"),
    ({"sequence__stride": 128, "parallel__context": 2}, 2, "sequence.stride", "(128 and 64)"),
    (
        {"sequence__stride": 4, "sequence__method": "average_pool", "parallel__context": 2},
        2,
        "parallel.context",
        "pools",
    ),
    ({"sequence__stride": 4, "sequence__layers": "1-6"}, 1, "sequence.layers", "first..last would fit, from 0 to 7"),
    ({"sequence__stride": 4, "sequence__layers": "-9..2"}, 1, "sequence.layers", "from -8 to -1"),
    ({"sequence__stride": 4, "model__num_layers": 2}, 1, "sequence.layers", "holds none of the 2 layers"),
    ({"sequence__decoder_layers": "0..-1"}, 1, "sequence.decoder_layers", "model.arch t5's decoder; null would fit"),
    ({**T5, "sequence__stride": 4, "sequence__layers": "1..8"}, 1, "sequence.layers", "from 0 to 7"),
    ({**T5, "sequence__stride": 2, "sequence__decoder_layers": "1..3"}, 1, "sequence.decoder_layers", "from 0 to 2"),
    (
        {**T5, "sequence__stride": 2, "sequence__decoder_layers": "0..-1", "parallel__tensor": 2},
        2,
        "sequence.stride",
        "of model.seq_length and of model.decoder_seq_length (128 and 31); 1 would fit",
    ),
    ({"parallel__expert": 2}, 2, "parallel.expert", "moe.num_experts is 0"),
    ({"parallel__expert_tensor": 2}, 2, "parallel.expert_tensor", "moe.num_experts is 0"),
    ({**EXPERTS, "parallel__expert": 3}, 3, "parallel.expert", "1, 2, 4, 8 would fit"),
    ({**EXPERTS, "parallel__expert_tensor": 3}, 3, "parallel.expert_tensor", "moe.ffn_hidden_size (352)"),
    ({**EXPERTS, "moe__top_k": 9}, 1, "moe.top_k", "at most moe.num_experts (8)"),
    ({**EXPERTS, "moe__layer_freq": 9}, 1, "moe.layer_freq", "at most model.num_layers (8)"),
    ({**EXPERTS, "moe__expert_bias_update_rate": 0.1}, 1, "moe.expert_bias_update_rate", "sigmoid"),
    ({"model__num_query_groups": 8, "parallel__tensor": 3}, 3, "parallel.tensor", "model.num_attention_heads (8)"),
    ({"parallel__tensor": 8}, 8, "parallel.tensor", "model.num_query_groups (4); 1, 2, 4 would fit"),
    ({"model__vocab_size": 4097, "parallel__tensor": 2}, 2, "parallel.tensor", "model.vocab_size (4097)"),
    ({"model__seq_length": 255, "parallel__tensor": 2}, 2, "parallel.tensor", "model.seq_length (255)"),
    ({"model__ffn_hidden_size": 701, "parallel__tensor": 2}, 2, "parallel.tensor", "model.ffn_hidden_size (701)"),
    (
        {**EXPERTS, "moe__layer_freq": 2, "model__ffn_hidden_size": 701, "parallel__tensor": 2},
        2,
        "parallel.tensor",
        "model.ffn_hidden_size (701)",
    ),
    ({**EXPERTS, "moe__shared_expert_size": 33, "parallel__tensor": 2}, 2, "parallel.tensor", "moe.shared_expert_size"),
    ({"model__seq_length": 254, "parallel__context": 2}, 2, "parallel.context", "model.seq_length (254); 1, 127 would"),
    ({"parallel__pipeline": 3}, 3, "parallel.pipeline", "1, 2, 4, 8 would fit"),
    ({"parallel__first_stage_layers": 2}, 1, "parallel.first_stage_layers", "null would fit"),
    ({"parallel__last_stage_layers": 2}, 1, "parallel.last_stage_layers", "null would fit"),
    (
        {"parallel__pipeline": 3, "parallel__first_stage_layers": 1},
        3,
        "parallel.first_stage_layers",
        "2, 4, 6 would fit",
    ),
    ({"parallel__pipeline": 3, "parallel__last_stage_layers": 8}, 3, "parallel.last_stage_layers", "2, 4, 6 would fit"),
    (
        {"parallel__pipeline": 2, "parallel__first_stage_layers": 3, "parallel__last_stage_layers": 4},
        2,
        "parallel.first_stage_layers",
        "4 would fit",
    ),
    ({"parallel__virtual_pipeline": 2}, 1, "parallel.virtual_pipeline", "parallel.pipeline above 1"),
    (
        {"parallel__pipeline": 2, "parallel__virtual_pipeline": 3},
        2,
        "parallel.virtual_pipeline",
        "pipeline rank (4); 1, 2, 4 would fit",
    ),
    (
        {"parallel__pipeline": 2, "parallel__virtual_pipeline": 2, "parallel__first_stage_layers": 3},
        2,
        "parallel.virtual_pipeline",
        "pipeline rank (3, 5); 1 would fit",
    ),
    ({"parallel__tensor": 2}, 1, "parallel.tensor", "launch torchrun --ranks-per-node 2"),
    (
        {"parallel__tensor": 2, "parallel__pipeline": 2},
        2,
        "parallel.pipeline",
        "launch torchrun --ranks-per-node 4",
    ),
    ({"parallel__context": 2}, 3, "parallel.context", "launch torchrun --ranks-per-node 2"),
    ({**EXPERTS, "parallel__expert": 4}, 2, "parallel.expert", "launch torchrun --ranks-per-node 4"),
    (
        {**EXPERTS, "parallel__expert": 4, "parallel__pipeline": 2, "parallel__tensor": 2},
        4,
        "parallel.expert",
        "launch torchrun --ranks-per-node 8",
    ),
    (
        {"parallel__data": 4},
        2,
        "parallel.data",
        "or start with altup-moe launch torchrun --ranks-per-node 4",
    ),
    ({}, 3, "train.global_batch_size", "12 would fit"),
    ({"train__global_batch_size": 6}, 1, "train.global_batch_size", "4 or 8 would fit"),
    (
        {"parallel__pipeline": 2, "parallel__virtual_pipeline": 2, "train__global_batch_size": 12},
        2,
        "train.global_batch_size",
        "8 or 16 would fit",
    ),
    ({"optim__min_learning_rate": 1.0}, 1, "optim.min_learning_rate", "at most optim.learning_rate"),
    ({"optim__schedule": "wsd", "optim__decay_steps": 181}, 1, "optim.decay_steps", "(180)"),
    ({"train__hang_timeout": 0.001}, 1, "train.hang_timeout", "at least 1 s would fit; 0 or null is off"),
    ({"checkpoint__save_at": (5, 201)}, 1, "checkpoint.save_at", "steps from 1 to train.steps (200) would fit"),
    ({"checkpoint__branch_from": "a", "checkpoint__initial_load_path": "b"}, 1, "checkpoint.branch_from", "one of the"),
    ({"optim__decay_steps": 20}, 1, "optim.decay_steps", "optim.warmup_steps (20)"),
    ({"optim__decay_steps": 8, "optim__schedule": "inverse_sqrt"}, 1, "optim.decay_steps", "null would fit"),
    ({"optim__parametrization": "mup"}, 1, "optim.mup_base_hidden_size", "as 256"),
    ({"optim__mup_base_hidden_size": 64}, 1, "optim.mup_base_hidden_size", "null would fit"),
    ({"optim__mup_base_num_layers": 4}, 1, "optim.mup_base_num_layers", "null would fit"),
    ({**MUP, "optim__optimizer": "adafactor"}, 1, "optim.optimizer", "adamw would fit"),
    ({**MUP, **T5}, 1, "model.arch", "gpt would fit"),
    ({"optim__decay_steps": 8, "optim__schedule": "constant"}, 1, "optim.decay_steps", "null would fit"),
    ({"train__stop_after": 201}, 1, "train.stop_after", "at most train.steps (200)"),
    ({"data__corpus": "python-doc"}, 1, "data.corpus", "python-docs or wikipedia-sample"),
    ({"data__tokenizer": "nowhere"}, 1, "data.tokenizer", "not a directory"),
    ({"optim__optimizer": "adafactor", "parallel__tensor": 2}, 2, "parallel.tensor", "whole on a rank; 1 would fit"),
    (
        {**EXPERTS, "optim__optimizer": "adafactor", "parallel__expert_tensor": 2},
        2,
        "parallel.expert_tensor",
        "1 would fit",
    ),
    (
        {"optim__optimizer": "adafactor", "parallel__distributed_optimizer": True},
        1,
        "parallel.distributed_optimizer",
        "false would fit",
    ),
    ({"data__mixture": ("cb", "python-doc")}, 1, "data.mixture", "no file python-doc.idx; squad, "),
    ({"data__mixture": ("cb", "cb")}, 1, "data.mixture", "each name once"),
    ({"data__mixture": ("cb=1", "rte=0")}, 1, "data.mixture", "above 0"),
    ({"data__mixture": ("cb",), "data__corpus": "none"}, 1, "data.corpus", "python-docs"),
    ({"data__task_files": ("cd=/",)}, 1, "data.task_files", "TASK=DIRECTORY"),
    ({"data__task_files": ("cb=nowhere",)}, 1, "data.task_files", "no directory nowhere"),
    ({**T5, "data__objective": "causal"}, 1, "data.objective", "span_corruption, prefix or null"),
    ({**T5, "model__decoder_seq_length": 1}, 1, "model.decoder_seq_length", "at least 2"),
    ({"log__run_dir": ""}, 1, "log.run_dir", "must name a directory"),
    ({"log__run_dir": __file__}, 1, "log.run_dir", "must name a directory"),
]


@pytest.mark.parametrize(("values", "world", "key", "says"), WRONG)
def test_does_not_fit(values: dict[str, object], world: int, key: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_config(run(**values), world)
    assert caught.value.key == key
    assert says in caught.value.fits


def numeric_fields() -> set[str]:
    return {key for key, hint in HINTS.items() if {int, float} & {hint, *typing.get_args(hint)}}


def test_every_numeric_field_has_a_range() -> None:
    assert set(RANGES) == numeric_fields()


@pytest.mark.parametrize("key", sorted(RANGES))
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_no_number_may_be_negative_or_infinite(key: str, value: float) -> None:
    with pytest.raises(ConfigError) as caught:
        check_config(run(**{key.replace(".", "__"): value}), 1)
    assert caught.value.key == key


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("data.valid_fraction", 0.0, "(0, 1)"),
        ("data.valid_fraction", 1.0, "(0, 1)"),
        ("model.hidden_dropout", 1.0, "[0, 1)"),
        ("optim.adam_beta2", 1.0, "[0, 1)"),
        ("moe.capacity_factor", 0.0, "above 0"),
        ("model.rotary_scaling_factor", 0.5, "at least 1"),
        ("model.kv_channels", 0, "at least 1"),
        ("optim.learning_rate", 0.0, "above 0"),
        ("train.seed", 2**32, "[0, 4294967295]"),
        ("checkpoint.keep", 0, "at least 1"),
        ("train.stop_after", 0, "at least 1"),
        ("parallel.tensor", 0, "at least 1"),
    ],
)
def test_ends_of_ranges(key: str, value: float, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_config(run(**{key.replace(".", "__"): value}), 1)
    assert (caught.value.key, says in caught.value.fits) == (key, True)


def test_zero_where_it_switches_off() -> None:
    off = ("moe.aux_loss_coeff", "optim.warmup_steps", "optim.clip_grad", "train.eval_interval", "train.seed")
    check_config(run(**{key.replace(".", "__"): 0 for key in (*off, "checkpoint.save_interval")}), 1)


def test_a_prepared_dataset_and_a_tokenizer_that_exist(tmp_path: Path) -> None:
    (tmp_path / "text.idx").touch()
    check_config(run(data__corpus=str(tmp_path / "text"), data__tokenizer=str(tmp_path)), 1)


def test_mixtures_that_fit(tmp_path: Path) -> None:
    mixture = ("python-docs=0.5", "squad-bigbench=2", "cb=1")
    check_config(run(data__mixture=mixture, data__task_files=(f"cb={tmp_path}",)), 1)
    # The tokenizer is given, so data.corpus is not looked at.
    check_config(run(data__mixture=("cb",), data__tokenizer="t5", data__corpus="none"), 1)


def test_corpus_names_are_the_data_packages() -> None:
    from altup_moe.data import corpora

    assert tuple(corpora.CORPORA) == CORPUS_NAMES

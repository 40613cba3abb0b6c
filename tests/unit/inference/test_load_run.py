"""A run directory read back: the same model, wherever the directory lies now, or an error that says what is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from altup_moe.config import DataError, UserError
from altup_moe.config.load import save_config
from altup_moe.config.run_directory import checkpoints_dir
from altup_moe.data.tokenizer import Tokenizer
from altup_moe.inference.load_run import load_run, tokenizer_dir
from tests.unit.train.runs import tiny, write_run

TOKENS = torch.arange(20)[None]


@pytest.mark.parametrize("tied", [True, False])
def test_the_same_model_comes_back(tied: bool, bpe: Tokenizer, tmp_path: Path) -> None:
    # A run that was trained has its order of samples written down.
    config = tiny(model={"share_embeddings_and_output_weights": tied}, data={"shuffle": "epoch"})
    written = write_run(tmp_path / "run", config, bpe, seed=5)
    run = load_run(tmp_path / "run")
    assert run.config == written.config
    assert run.step == 3
    assert run.tokenizer.sha256 == bpe.sha256
    assert not run.model.training
    assert run.model.generation_config.eos_token_id == bpe.eod
    with torch.no_grad():
        assert torch.equal(run.model(TOKENS).logits, written.model(TOKENS).logits)


def test_a_directory_that_was_moved(bpe: Tokenizer, tmp_path: Path) -> None:
    write_run(tmp_path / "run", tiny(), bpe)
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    run = load_run(tmp_path / "elsewhere")
    assert run.config.log.run_dir == str(tmp_path / "elsewhere")
    assert run.tokenizer.directory == tokenizer_dir(tmp_path / "elsewhere")


def test_no_checkpoint_yet(bpe: Tokenizer, tmp_path: Path) -> None:
    write_run(tmp_path / "run", tiny(), bpe)
    shutil.rmtree(checkpoints_dir(tmp_path / "run"))
    with pytest.raises(UserError, match="has no checkpoint yet"):
        load_run(tmp_path / "run")


def test_no_run_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.yaml"):
        load_run(tmp_path / "nothing")


@pytest.mark.parametrize(
    "section", [{"altup": {"width": 4}}, {"model": {"num_layers": 4}}, {"moe": {"num_experts": 0}}]
)
def test_a_checkpoint_of_another_model_is_an_error(section: dict, bpe: Tokenizer, tmp_path: Path) -> None:
    write_run(tmp_path / "run", tiny(), bpe)
    save_config(tiny(**section), tmp_path / "run" / "config.yaml")
    with pytest.raises(DataError, match=r"is not of the model in config\.yaml") as error:
        load_run(tmp_path / "run")
    assert "step_00000003" in error.value.file
    assert "\n" not in str(error.value)


def test_a_missing_tokenizer_is_named(bpe: Tokenizer, tmp_path: Path) -> None:
    write_run(tmp_path / "run", tiny(), bpe)
    shutil.rmtree(tokenizer_dir(tmp_path / "run"))
    with pytest.raises(DataError, match="no such tokenizer directory"):
        load_run(tmp_path / "run")

"""The command `altup-moe`: one line and exit code 2 for a mistake, the right call for the rest, and torch last."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from altup_moe.cli import COMMANDS, main
from altup_moe.config import RunConfig, UserError
from altup_moe.config.load import HINTS, SECTIONS, load_config

ROOT = Path(__file__).parents[2]
QUICKSTART = str(ROOT / "configs" / "quickstart.yaml")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, function: str) -> list[Any]:
    """Put a recorder in a module's place, so that the command runs without torch. Returns the recorded calls."""
    calls: list[Any] = []

    def record(*args: Any, **kwargs: Any) -> int:
        calls.append(args[0] if args else kwargs)
        return 7

    fake = types.ModuleType(module)
    setattr(fake, function, record)
    package, _, name = module.rpartition(".")
    monkeypatch.setitem(sys.modules, module, fake)
    monkeypatch.setattr(sys.modules.get(package) or __import__(package, fromlist=["_"]), name, fake, raising=False)
    return calls


BAD = {
    "unknown key": (["--parallel.expart", "2"], 2, "parallel.expart"),
    "unknown section": (["--paralel.expert=2"], 2, "paralel.expert"),
    "wrong type": (["--train.steps", "many"], 2, "train.steps"),
    "no value": (["--train.steps"], 2, "train.steps"),
    "not a choice": (["--altup.width", "3"], 2, "altup.width"),
    "out of range": (["--model.hidden-dropout", "1.5"], 2, "model.hidden_dropout"),
    "heads do not divide": (["--model.num-attention-heads", "5"], 2, "model.num_attention_heads"),
    "experts do not divide": (["--parallel.expert", "3"], 3, "parallel.expert"),
    "tensor does not divide": (["--parallel.tensor", "4", "--parallel.expert", "1"], 4, "parallel.tensor"),
    "layers do not divide": (["--parallel.pipeline", "3", "--parallel.expert", "1"], 3, "parallel.pipeline"),
    "sequence does not divide": (["--parallel.context", "3", "--parallel.expert", "1"], 3, "parallel.context"),
    "batch does not divide": (["--train.global-batch-size", "9"], 2, "train.global_batch_size"),
    "world size does not match": ([], 1, "parallel.expert"),
    "data-parallel size does not match": (["--parallel.data", "4"], 2, "parallel.data"),
    "no such corpus": (["--data.corpus", "nowhere/data"], 2, "data.corpus"),
    "schedule": (["--optim.min-learning-rate", "1"], 2, "optim.min_learning_rate"),
    "stray word": (["train.steps=3"], 2, "train.steps"),
}


@pytest.mark.parametrize(("words", "world", "key"), BAD.values(), ids=BAD)
def test_a_bad_config_is_one_line_and_exit_code_2(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], world: int, key: str
) -> None:
    calls = stand_in(monkeypatch, "altup_moe.train.loop", "train")
    monkeypatch.setenv("WORLD_SIZE", str(world))
    assert main(["train", QUICKSTART, *words]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("altup-moe: error: ")
    assert err.count("\n") == 1
    assert key in err
    assert not calls


def test_a_backend_that_is_not_installed(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(monkeypatch, "altup_moe.train.loop", "train")
    # Hides it also where it is installed.
    monkeypatch.setattr("altup_moe.config.packages.find_spec", lambda name: None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", QUICKSTART, "--moe.backend", "deepspeed"]) == 2
    assert capfd.readouterr().err == (
        "altup-moe: error: moe.backend='deepspeed': is not installed; "
        "pip install 'deepspeed>=0.19.4,<0.20', or megatron would fit\n"
    )
    assert not calls


def test_bad_files(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("model: [\n")
    (tmp_path / "twice.yaml").write_text("train: {steps: 1, steps: 2}\n")
    for name, says in (("broken.yaml", "line"), ("twice.yaml", "train.steps"), ("none.yaml", "No such file")):
        assert main(["train", str(tmp_path / name)]) == 2
        err = capfd.readouterr().err
        assert says in err
        assert err.count("\n") == 1


def test_a_rank_names_itself_after_it_has_waited_for_rank_0(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its launcher ends it meanwhile if rank 0, or the first rank of its node, has the same mistake."""
    waits: list[float] = []
    monkeypatch.setattr("altup_moe.cli.time.sleep", waits.append)
    for local in ("0", "1"):
        monkeypatch.setenv("RANK", "9")
        monkeypatch.setenv("LOCAL_RANK", local)
        assert main(["train", QUICKSTART, "--train.steps", "many"]) == 2
        line = rf"altup-moe: error: on rank 9 \({re.escape(platform.node())}\): train\.steps='many': .*\n"
        assert re.fullmatch(line, capfd.readouterr().err)
    assert 0 < waits[0] < waits[1]
    monkeypatch.setenv("RANK", "0")
    assert main(["train", QUICKSTART, "--train.steps", "many"]) == 2
    assert capfd.readouterr().err.startswith("altup-moe: error: train.steps='many': ")
    assert len(waits) == 2


def test_a_rank_that_is_ended_while_it_waits_says_nothing(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ended(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("altup_moe.cli.time.sleep", ended)
    monkeypatch.setenv("RANK", "1")
    assert main(["train", QUICKSTART, "--train.steps", "many"]) == 130
    assert capfd.readouterr() == ("", "")


def test_train_gets_the_checked_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(monkeypatch, "altup_moe.train.loop", "train")
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = ["--parallel.expert", "2", "--train.steps", "50"]
    assert main(["train", QUICKSTART, *words]) == 7
    assert calls == [load_config(QUICKSTART, words)]
    assert isinstance(calls[0], RunConfig)
    assert calls[0].train.steps == 50


def test_an_error_of_the_run_is_one_line_too(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, "altup_moe.train.loop", "train")

    def fail(config: RunConfig) -> int:
        raise UserError("first\nsecond")

    monkeypatch.setattr("altup_moe.train.loop.train", fail)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", QUICKSTART]) == 2
    assert capfd.readouterr().err == "altup-moe: error: first second\n"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").touch()
    (tmp_path / "checkpoints" / "step_00000001").mkdir(parents=True)
    return tmp_path


def test_evaluate_tasks(monkeypatch: pytest.MonkeyPatch, run_dir: Path) -> None:
    calls = stand_in(monkeypatch, "altup_moe.inference.evaluate_tasks", "evaluate_tasks_command")
    files = ["--task-files", f"cb={run_dir}"]
    assert main(["evaluate", str(run_dir), "--tasks", "cb,rte", "--limit", "5", "--json", *files]) == 7
    (call,) = calls
    assert (call["tasks"], call["limit"], call["files"], call["as_json"]) == (["cb", "rte"], 5, {"cb": run_dir}, True)


def test_evaluate(monkeypatch: pytest.MonkeyPatch, run_dir: Path) -> None:
    calls = stand_in(monkeypatch, "altup_moe.inference.evaluate", "evaluate_command")
    assert main(["evaluate", str(run_dir)]) == 7
    assert main(["evaluate", "--json", str(run_dir), "--samples", "3", "--corpus", "python-docs"]) == 7
    assert calls == [
        {"run_dir": run_dir, "corpus": None, "samples": None, "as_json": False},
        {"run_dir": run_dir, "corpus": "python-docs", "samples": 3, "as_json": True},
    ]


def test_generate(monkeypatch: pytest.MonkeyPatch, run_dir: Path) -> None:
    calls = stand_in(monkeypatch, "altup_moe.inference.generate", "generate_command")
    assert main(["generate", str(run_dir), "--prompt", "The import statement"]) == 7
    assert main(["generate", str(run_dir), "--prompt=--x", "--temperature=0", "--top-p", "1", "--seed", "5"]) == 7
    defaults = {"run_dir": run_dir, "max_new_tokens": 64, "temperature": 0.8, "top_p": 0.95, "seed": 0}
    assert calls == [
        {**defaults, "prompt": "The import statement"},
        {**defaults, "prompt": "--x", "temperature": 0.0, "top_p": 1.0, "seed": 5},
    ]


def test_bench_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(
        "altup_moe.bench.bench_overlap.bench_overlap", lambda options, ranks: calls.append((options, ranks)) or 7
    )
    assert main(["bench", "overlap", "--widths", "1", "4", "--out", "traces"]) == 7
    assert (calls[0][0].widths, calls[0][0].out, calls[0][1]) == ((1, 4), "traces", 2)


def test_profile_is_three_recorded_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = stand_in(monkeypatch, "altup_moe.train.loop", "train")
    file = tmp_path / "run.yaml"
    file.write_text("train: {steps: 4}\n")
    assert main(["train", str(file), "--profile", "--train.steps", "6"]) == 7
    assert (calls[0].log.profile_steps, calls[0].train.steps) == (3, 6)


def test_bench_step(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(monkeypatch, "altup_moe.bench.bench_step", "bench_step")
    assert main(["bench", "step", "--widths", "1", "4", "--hidden-size", "64", "--json"]) == 7
    assert (calls[0].widths, calls[0].hidden_size, calls[0].repeats, calls[0].json) == ((1, 4), 64, 9, True)


def test_bench_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(monkeypatch, "altup_moe.bench.bench_sequence", "bench_sequence")
    assert main(["bench", "sequence", "--stride", "8", "--methods", "altup", "--layers=-3..-2"]) == 7
    assert (calls[0].stride, calls[0].methods, calls[0].layers) == (8, ("altup",), "-3..-2")


def test_bench_mixing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = stand_in(monkeypatch, "altup_moe.bench.bench_mixing", "bench_mixing")
    assert main(["bench", "mixing", "--widths", "4", "--exponents", "16", "21", "--no-rivals", "--json"]) == 7
    assert (calls[0].widths, calls[0].exponents, calls[0].rivals, calls[0].json) == ((4,), (16, 21), False, True)
    assert main(["bench", "mixing", "--dynamic"]) == 7
    assert (calls[0].dynamic, calls[1].dynamic) == (False, True)


def test_bench_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = stand_in(monkeypatch, "altup_moe.bench.bench_checkpoint", "bench_checkpoint")
    assert main(["bench", "checkpoint", "--megabytes", "64", "--directory", str(tmp_path)]) == 7
    assert (calls[0].megabytes, calls[0].repeats, calls[0].directory) == (64, 7, str(tmp_path))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["evaluate"], "RUN_DIR is missing"),
        (["evaluate", "nowhere"], "run_dir='nowhere'"),
        (["evaluate", "RUN", "--samples", "0"], "samples=0: must be at least 1"),
        (["evaluate", "RUN", "--corpus", "nowhere"], "corpus='nowhere'"),
        (["evaluate", "RUN", "--tasks", "cb,cd"], "tasks='cd': no such task"),
        (["evaluate", "RUN", "--answers", "a.jsonl"], "answers='a.jsonl': belongs to tasks"),
        (
            ["evaluate", "RUN", "--tasks", "cb", "--answers", "no/a.jsonl"],
            "must name a file in a directory that exists",
        ),
        (["evaluate", "RUN", "--tasks", "cb", "--limit", "0"], "limit=0: must be at least 1"),
        (["evaluate", "RUN", "--tasks", "cb", "--samples", "3"], "samples=3: is of no use beside tasks"),
        (["evaluate", "RUN", "--tasks", "cb", "--task_files", "cb=nowhere"], "there is no directory nowhere"),
        (["evaluate", "RUN", "--sample", "3"], "--sample: unknown option; nearest is --samples"),
        (["generate", "RUN"], "--prompt is missing"),
        (["generate", "RUN", "--prompt", "x", "--temperature", "-1"], "temperature=-1.0: must be at least 0"),
        (
            ["generate", "RUN", "--prompt", "x", "--temperature", "1e-40"],
            "temperature=1e-40: must lie in [1e-06, 1e+30]",
        ),
        (["generate", "RUN", "--prompt", "x", "--temperature", "1e31"], "0 takes the likeliest token"),
        (["generate", "RUN", "--prompt", "a\udcffb"], "word 4 of the command line is not UTF-8: b'a\\xffb'"),
        (["train", "\udce9.yaml"], "word 2 of the command line is not UTF-8"),
        (["generate", "RUN", "--prompt", "x", "--top-p", "0"], "--top-p=0.0: must lie in (0, 1]"),
        (["generate", "RUN", "--prompt", "x", "--max-new-tokens", "0"], "--max-new-tokens=0: must be at least 1"),
        (["generate", "RUN", "--prompt", "x", "--top-p", "most"], "--top-p='most': expects a number"),
        (["bench", "step", "--widths", "3"], "widths=3"),
        (["bench", "step", "--repeats", "0"], "repeats=0"),
        (["bench", "sequence", "--stride", "1"], "stride=1: must be at least 2"),
        (["bench", "sequence", "--methods", "max"], "methods='max'"),
        (["bench", "mixing", "--exponents", "40"], "exponents=40: must lie in [10, 30]"),
        (["bench", "mixing", "--threads", "0"], "threads=0"),
        (["bench", "mixing", "--hidden-size", "100"], "--hidden-size=100: must be a power of two"),
        (["bench", "overlap", "--micro-batch-size", "3"], "--micro-batch-size=3: must be even"),
        (["bench", "mixing", "--kernels", "fast"], "kernels='fast'"),
        (["bench", "checkpoint", "--megabytes", "0"], "megabytes=0: must be at least 1"),
        (["bench", "checkpoint", "--directory", "nowhere"], "directory='nowhere': is no directory"),
        (["bench", "steep"], "nearest is bench step"),
        (["trian"], "nearest is train"),
        (["train"], "name a configuration file"),
        ([], "name a command"),
    ],
)
def test_mistakes_of_the_other_commands(
    capfd: pytest.CaptureFixture[str], run_dir: Path, words: list[str], says: str
) -> None:
    assert main([str(run_dir) if word == "RUN" else word for word in words]) == 2
    out, err = capfd.readouterr()
    assert says in err
    assert (out, err.count("\n")) == ("", 1)


def test_help_lists_the_commands_and_the_version(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capfd.readouterr().out
    for name in COMMANDS:
        assert len([line for line in out.splitlines() if line.startswith(f"  {name} ")]) == 1
    assert main(["--version"]) == 0
    assert capfd.readouterr().out.startswith("altup-moe ")


def test_train_help_documents_every_field(capfd: pytest.CaptureFixture[str]) -> None:
    out = ""
    for section in SECTIONS:
        assert main(["train", QUICKSTART, "--help", section]) == 0
        out += capfd.readouterr().out
    for key in HINTS:
        assert re.search(rf"--{re.escape(key.replace('_', '-'))}\s", out)
    assert "Tokens of a training sample (context length). (default: 256)" in " ".join(out.split())
    assert "(default: runs/quickstart)" in " ".join(out.split()), "defaults are the file's"
    for command in (["evaluate"], ["generate"], ["bench", "step"], ["bench", "mixing"], ["bench", "checkpoint"]):
        assert main([*command, "--help"]) == 0
        assert f"usage: altup-moe {' '.join(command)}" in capfd.readouterr().out


def python(code: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_help_and_errors_need_no_torch() -> None:
    code = (
        "import sys; from altup_moe.cli import main; code = main(sys.argv[1:]);"
        "print('\\nheavy:', sorted({'torch', 'megatron', 'transformers', 'numpy'} & set(sys.modules))); sys.exit(code)"
    )
    for words in (["--help"], ["train", "--help"], ["evaluate", "--help"], ["bench", "step", "--help"]):
        helped = python(code, *words)
        assert (helped.returncode, helped.stdout.splitlines()[-1]) == (0, "heavy: []"), words
    refused = python(code, "train", QUICKSTART, "--parallel.expert", "3", WORLD_SIZE="3", RANK="0")
    assert (refused.returncode, refused.stdout.splitlines()[-1]) == (2, "heavy: []")
    assert refused.stderr == "altup-moe: error: parallel.expert=3: must divide moe.num_experts (4); 1, 2, 4 would fit\n"


def test_a_training_rank_loads_no_transformers() -> None:
    """Ranks import what they need: transformers is for the reference model, generation and export."""
    code = (
        "import sys, altup_moe.train.loop;"
        "print('heavy:', sorted({'transformers', 'datasets', 'scipy', 'sklearn', 'matplotlib'} & set(sys.modules)))"
    )
    assert python(code).stdout.splitlines()[-1] == "heavy: []"


def test_a_reader_that_leaves_early_is_no_error() -> None:
    code = "import sys; from altup_moe.cli import main; sys.exit(main(['train', '--help']))"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=60) == 0

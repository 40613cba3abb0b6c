"""The `cluster` section: nodes of a row, every mistake in one line, and what does not change a row's identity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from altup_moe.config import ConfigError
from altup_moe.study.read_study import load_study
from altup_moe.study.slurm.cluster import Cluster, read_cluster
from altup_moe.study.study_directory import StudyDirectory
from tests.unit.study.test_study_spec import SMALL, problem


@pytest.mark.parametrize(
    ("cluster", "ranks", "nodes"),
    [
        (Cluster(), 3, (3, 1)),
        (Cluster(ranks_per_node=2), 4, (2, 2)),
        (Cluster(gpus_per_node=8), 16, (2, 8)),
        (Cluster(gpus_per_node=8), 1, (1, 1)),
        (Cluster(gpus_per_node=8, ranks_per_node=4), 8, (2, 4)),
    ],
)
def test_ranks_fill_nodes(cluster: Cluster, ranks: int, nodes: tuple[int, int]) -> None:
    assert cluster.place(ranks) == nodes


MISTAKES: list[tuple[dict[str, Any], str, str]] = [
    ({"ranks_per_node": 3}, "cluster.ranks_per_node=3", "ranks of a row (4); cluster.ranks_per_node: 2 would fit"),
    ({"gpus_per_node": 3}, "cluster.gpus_per_node=3", "cluster.ranks_per_node: 2 would fit"),
    ({"ranks_per_node": 0}, "cluster.ranks_per_node=0", "must lie in [1, 1024]"),
    ({"gpus_per_node": -1}, "cluster.gpus_per_node=-1", "must lie in"),
    ({"cpus_per_task": "many"}, "cluster.cpus_per_task='many'", "whole number"),
    ({"partion": "gpu"}, "cluster.partion='gpu'", "nearest is cluster.partition"),
    ({"partition": "gpu short"}, "cluster.partition='gpu short'", "a name without spaces"),
    ({"account": ""}, "cluster.account=''", "a name without spaces"),
    ({"time": "two hours"}, "cluster.time='two hours'", "in quotes: '12:00:00'"),
    ({"time": 43200}, "cluster.time=43200", "text"),
    ({"setup": "module load x"}, "cluster.setup='module load x'", "expects one or more, each text"),
    ({"sbatch": ["--array=0-3"]}, "cluster.sbatch='--array=0-3'", "the study decides it"),
    ({"sbatch": ["-N4"]}, "cluster.sbatch='-N4'", "the study decides it"),
    ({"sbatch": ["--time=1"]}, "cluster.sbatch='--time=1'", "cluster.time decides it"),
    ({"sbatch": ["qos=high"]}, "cluster.sbatch='qos=high'", "--name=value would fit"),
    ({"poll_seconds": 0.1}, "cluster.poll_seconds=0.1", "must lie in [1, 3600]"),
]


@pytest.mark.parametrize(("cluster", "key", "says"), MISTAKES, ids=[key for _, key, _ in MISTAKES])
def test_a_mistake_is_one_line_with_its_key(tmp_path: Path, cluster: dict, key: str, says: str) -> None:
    rows = [{"name": "a", "set": {"train.micro_batch_size": 1}}]
    said = problem(tmp_path, launcher="slurm", ranks=4, rows=rows, cluster=cluster)
    assert said.startswith(f"{key}: ")
    assert says in said
    assert "\n" not in said


def test_slurm_is_the_whole_study_s(tmp_path: Path) -> None:
    rows = [{"name": "here"}, {"name": "there", "set": {"launcher": "slurm"}}]
    assert problem(tmp_path, rows=rows).startswith(
        "rows.here.launcher='torchrun': rows.there has launcher slurm, which"
    )
    assert "is launcher netlab's" in problem(tmp_path, launcher="slurm", rate="9mbit")


def test_one_file_serves_all_launchers_and_the_cluster_is_no_part_of_a_row(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    content = {**SMALL, "ranks": 2}
    file.write_text(yaml.safe_dump(content))
    plain = load_study(file).rows
    cluster = {"ranks_per_node": 2, "partition": "gpu", "time": "1:00:00", "sbatch": ["--qos=high"]}
    file.write_text(yaml.safe_dump({**content, "launcher": "slurm", "cluster": cluster}))
    there = load_study(file)
    assert (there.on_slurm, there.cluster.partition) == (True, "gpu")
    # Lines of studies before there was a cluster stay valid.
    assert [row.config_hash for row in load_study(file, "torchrun").rows] == [row.config_hash for row in plain]
    assert {row.launcher for row in load_study(file, "netlab").rows} == {"netlab"}
    file.write_text(yaml.safe_dump({**content, "launcher": "slurm"}))
    assert [row.config_hash for row in load_study(file).rows] == [row.config_hash for row in there.rows]
    assert there.rows[0].config_hash != plain[0].config_hash


def test_the_launcher_of_the_command_is_that_of_rows_too(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    rows = [{"name": "pair", "set": {"launcher": "netlab", "ranks": 2}}, {"name": "one"}]
    file.write_text(yaml.safe_dump({**SMALL, "rows": rows}))
    assert {row.launcher for row in load_study(file, "slurm").rows} == {"slurm"}
    with pytest.raises(ConfigError, match=r"rows\.one\.ranks=1: launcher netlab joins ranks"):
        load_study(file, "netlab")


def test_what_is_laid_out_reads_back(tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    cluster = {"ranks_per_node": 2, "setup": ["module load x"], "exclusive": False}
    file.write_text(yaml.safe_dump({**SMALL, "launcher": "slurm", "cluster": cluster}))
    directory, study = StudyDirectory(tmp_path / "study"), load_study(file)
    directory.lay_out(study)
    back = directory.study()
    assert (back.cluster, back.on_slurm) == (study.cluster, True)
    assert [row.config_hash for row in back.rows] == [row.config_hash for row in study.rows]
    directory.lay_out(load_study(file, "torchrun"))
    assert "cluster" not in yaml.safe_load((directory.root / "study.yaml").read_text())
    assert read_cluster(None) == Cluster()

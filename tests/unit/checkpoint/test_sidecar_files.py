"""What a tool takes along from beside a checkpoint."""

from __future__ import annotations

from pathlib import Path

from altup_moe.checkpoint.sidecar_files import copy_sidecar_files, sidecar_files


def test_readable_lines_up_to_the_step_are_copied_as_they_are(tmp_path: Path) -> None:
    checkpoint, new = tmp_path / "old" / "checkpoints" / "step_00000004", tmp_path / "new"
    checkpoint.mkdir(parents=True)
    new.mkdir()
    good = [b'{"step": 1, "loss":  2.50}', b'{"step": 2, "changed": {"a.b": [1, 2]}}', b'{"step": 4}']
    bad = [b"", b'{"step": 3, "lo', b"null", b"[1]", b'{"step": "4"}', b"\xff\xfe", b'{"step": 5}']
    metrics = tmp_path / "old" / "metrics.jsonl"
    metrics.write_bytes(b"\n".join([bad[0], good[0], bad[1], good[1], *bad[2:], good[2]]))
    assert sidecar_files(checkpoint) == ["metrics.jsonl"]
    copy_sidecar_files(checkpoint, 4, new)
    assert (new / "metrics.jsonl").read_bytes() == b"".join(line + b"\n" for line in good)

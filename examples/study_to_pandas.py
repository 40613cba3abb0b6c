"""Read the results of a study into pandas: which width of the stream is worth its time?

    python examples/study_to_pandas.py [DIRECTORY or rows.jsonl]

Without a word it reads the committed results of configs/study/paper_small.yaml: AltUp of several widths against dense
models, three seeds each, on two CPU cores. `altup-moe study run NAME` makes a directory of your own.
"""

import sys
from pathlib import Path

from altup_moe import api

SHIPPED = Path(__file__).parents[1] / "configs" / "study" / "results" / "paper_small"


def main() -> None:
    """One line a configuration, then the fastest configurations for their loss."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else SHIPPED

    # Records first: one configuration with one seed each. Their fields are those of `api.StudyRow`.
    rows = api.read_study(path)
    done = [row for row in rows if row.status == "done"]
    print(f"{path}: {len(rows)} rows, {len(rows) - len(done)} of them failed")
    longest = max(done, key=lambda row: len(row.curve))
    print(f"loss curve of {longest.name}, seed {longest.seed}: {len(longest.curve)} points, last {longest.curve[-1]}")

    # The same as a table: columns of records inside have a dot.
    frame = api.study_frame(done)
    loss, time = "quality.valid_loss", "latency.train_step.median"
    table = frame.groupby(["family", "name"]).agg(
        seeds=("seed", "count"),
        parameters=("parameters", "first"),
        loss=(loss, "mean"),
        spread=(loss, "std"),
        step_ms=(time, "median"),
    )
    print(table.sort_values("loss").round(3).to_string())

    # Pareto: no other configuration is both faster and better.
    best = table.sort_values("step_ms")
    best = best[best.loss <= best.loss.cummin()]
    print("not beaten in time and loss:", ", ".join(name for _, name in best.index))


if __name__ == "__main__":
    main()

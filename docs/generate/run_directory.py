"""The page of a run directory, from the modules that name its files."""

from __future__ import annotations

from altup_moe.config import run_directory
from docs.generate.markdown import cell, docstring, table, text_of
from docs.generate.source import functions, module_doc

FILE = "altup_moe/config/run_directory.py"
CHECKPOINTS = "altup_moe/checkpoint/store.py"
STUDY = "altup_moe/study/study_directory.py"


def page() -> str:
    """The page's text."""
    rows = []
    for name, parameters, returned, doc in functions(FILE):
        # A function of a run directory names one file or folder of it.
        if parameters == ["run_dir"] and returned == "Path":
            path = getattr(run_directory, name)("RUN").as_posix()
            rows.append([f"`{path.removeprefix('RUN/')}`", f"`{name}`", cell(docstring(doc))])
    return text_of(
        [
            "# Run directory",
            "",
            "Everything that a run writes lies in its directory, `log.run_dir`. Every file is complete or absent.",
            "",
            *_tree(FILE),
            "",
            f"The functions of `{FILE}` name them:",
            "",
            *table(["path", "function", "what it is"], rows),
            "",
            "## Checkpoints",
            "",
            *_tree(CHECKPOINTS),
            "",
            "Files are written into `step_N.partial`; when all are on the disk, the directory is renamed, and",
            "`latest` is replaced last. A process that is killed at any moment leaves a complete checkpoint behind.",
            "Tensors are safetensors; nothing is a pickle. `altup-moe inspect` lists a checkpoint and verifies it.",
            "",
            "## Study directory",
            "",
            *_tree(STUDY),
        ]
    )


def _tree(file: str) -> list[str]:
    """The lines of a module's docstring that draw a directory, as a block."""
    lines = module_doc(file).splitlines()
    first = next(number for number, line in enumerate(lines) if line.strip().startswith(("RUN/", "DIR/")))
    drawn = []
    for line in lines[first:]:
        if not line.strip():
            break
        drawn.append(line)
    left = min(len(line) - len(line.lstrip()) for line in drawn)
    return ["```text", *(line[left:] for line in drawn), "```"]

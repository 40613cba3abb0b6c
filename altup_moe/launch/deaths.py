"""Which rank failed first, and what is said of it and of the others. Pure, but for reading records."""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Iterable, Sequence
from dataclasses import replace

from altup_moe.config.exit_codes import EXIT_STOPPED
from altup_moe.parallel.death_record import Death

# What a rank says whose peer has gone (gloo, NCCL, TCPStore): it failed because another one did.
_PEER_GONE = re.compile(
    r"connection (was )?(closed|reset|refused|aborted)|broken ?pipe|socket closed|gloo.?/transport|"
    r"failed to recv, got 0 bytes|ncclRemoteError|remote process exited|store.*(closed|has been shut)",
    re.IGNORECASE,
)
_NUMBERS = re.compile(r"0x[0-9a-fA-F]+|\d{4,}|:\d+\b")


def lost_its_peer(death: Death) -> bool:
    """Whether a rank failed because another one had ended."""
    return bool(_PEER_GONE.search(death.error))


def in_order(deaths: Iterable[Death]) -> list[Death]:
    """Failures, the first one first: by time, but who lost a peer comes after who did not, and told ones come last.

    Ranks that were stopped and saved come after those that failed.

    A process that is killed leaves no record, and its launcher may notice its end later than its peers do.
    """
    return sorted(deaths, key=_place)


def _place(death: Death) -> tuple[bool, bool, bool, float, int]:
    return death.told, death.code == EXIT_STOPPED, lost_its_peer(death), death.time, death.rank


def joined(observed: Iterable[Death], records: Iterable[Death], told_at: float = math.inf) -> list[Death]:
    """Each rank's end as its launcher saw it, with what the rank itself left: time, error and step.

    Records of ranks that were not observed stay as they are (of another node, in one directory).

    Args:
        told_at: when the launcher told the ranks to end. Who has left a record before that had failed by itself, and
            its exit code is the record's, whatever signal ended it on its way out.
    """
    left = {record.rank: record for record in records}
    seen = []
    for death in observed:
        record = left.pop(death.rank, None)
        told = (record or death).time >= told_at
        if record is not None:
            code = record.code if death.time >= told_at and not told else death.code
            death = replace(record, code=code)
        seen.append(replace(death, told=told))
    return [*seen, *left.values()]


def same_failure(one: Death, other: Death) -> bool:
    """Whether two starts failed alike: in the same step, with the same error but for addresses and other numbers.

    Where the step or the error is not known they did not.
    """
    if one.step is None or one.step != other.step or not one.error or not other.error:
        return False
    return _NUMBERS.sub("#", one.error) == _NUMBERS.sub("#", other.error)


def how_it_ended(death: Death) -> str:
    """The end in a few words."""
    number = death.code - 128
    with_name = ""
    if number > 0:
        try:
            with_name = f" (killed by signal {number}, {signal.Signals(number).name})"
        except ValueError:
            with_name = ""
    step = f" in step {death.step}" if death.step else ""
    return f"ended with exit code {death.code}{with_name}{step}"


def report(name: str, deaths: Sequence[Death], quiet_codes: Sequence[int] = ()) -> list[str]:
    """What a launcher prints of the ranks that failed: the first one whole, a line each of those that followed.

    Ranks that were told to end are left out, and so are those that repeat the first one's mistake.

    Args:
        name: prefix of the lines.
        quiet_codes: exit codes whose rank has said all itself.
    """
    ordered = in_order(deaths)
    if not ordered:
        return []
    first, *others = ordered
    lines = first.trace.splitlines() if first.trace and first.code not in quiet_codes else []
    end = f": {first.error}" if first.error else ""
    if lost_its_peer(first):
        end += "; a rank of another node ended before it"
    lines.append(f"{name}: rank {first.rank} {how_it_ended(first)}{end}")
    for death in others:
        if death.told or (death.code == first.code and not death.error):
            continue
        why = "its peer had gone" if lost_its_peer(death) else death.error
        later = f"{max(0.0, death.time - first.time):.1f} s later "
        lines.append(f"{name}: rank {death.rank} {later}{how_it_ended(death)}" + (f": {why}" if why else ""))
    return lines

"""When a router's alarm comes on, and what it says."""

from __future__ import annotations

from altup_moe.config import MoEConfig
from altup_moe.train.guards.router_alarms import RouterAlarms
from altup_moe.train.routing import RoutingSummary

MOE = MoEConfig(num_experts=4, top_k=2, alarm_expert_share=0.9, alarm_dropped_share=0.3, alarm_steps=2)


def routed(first: float, dropped: float = 0.0) -> RoutingSummary:
    """100 tokens, of which expert 0 of layer 1 takes some; layer 0 is dense."""
    rest = (200 - first) / 3
    return RoutingSummary([[0.0] * 4, [first, rest, rest, rest]], 0.0, 0.0, 0.0, 1.0, [0.0, dropped])


def test_an_expert_that_takes_nearly_all_tokens_is_named_once() -> None:
    alarms = RouterAlarms(MOE)
    assert alarms.step(routed(91)) == (0, [])
    line = "router alarm: layer 1, expert 0 takes 95% of the tokens (moe.alarm_expert_share 0.9) for 2 steps in a row"
    assert alarms.step(routed(95)) == (1, [line])
    assert alarms.step(routed(100)) == (1, [])
    assert alarms.step(routed(89)) == (0, [])
    assert alarms.step(routed(95)) == (0, []), "the steps in a row begin anew"


def test_a_layer_that_drops_its_routes_is_named() -> None:
    alarms = RouterAlarms(MOE)
    assert alarms.step(routed(50, dropped=61)) == (0, [])
    active, lines = alarms.step(routed(95, dropped=80))
    assert (active, lines) == (
        1,
        ["router alarm: layer 1 drops 40% of its routes (moe.alarm_dropped_share 0.3) for 2 steps in a row"],
    )
    assert alarms.step(routed(95, dropped=80))[0] == 2


def test_without_bounds_or_experts_nothing_is_said() -> None:
    assert not RouterAlarms(MoEConfig(num_experts=4)).on
    assert not RouterAlarms(MoEConfig(alarm_expert_share=0.5)).on
    one = RouterAlarms(MoEConfig(num_experts=4, top_k=2, alarm_dropped_share=0.3, alarm_steps=1))
    assert one.step(routed(100)) == (0, [])
    assert one.step(None) == (None, [])

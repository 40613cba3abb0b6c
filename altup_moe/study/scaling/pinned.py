"""A multiplier from one run each, on a curve whose floor and exponent are assumed: what is commonly published.

L(C) = floor + scale C^-exponent goes through the reference's own run, so its scale drops out. How well floor and
exponent are known is left out; `multiplier` on fitted laws has it. With the spread of losses over seeds there is an
interval, which says how little two runs tell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy import stats

from altup_moe.config import UserError
from altup_moe.study.scaling.records import Interval


@dataclass(frozen=True)
class PinnedCurve:
    """floor: the loss of unlimited cost, nats a token. exponent: of the cost. Both are assumed, not fitted here."""

    floor: float
    exponent: float

    def multiplier(self, loss: float, reference_loss: float, speed: float = 1.0) -> float:
        """Cost that the reference needs for a model's loss, over the model's, where both spent the same.

        Args:
            loss, reference_loss: of the two runs, nats a token.
            speed: the model's tokens (or FLOPs, whichever was the same) a second over the reference's; 1 for the
                multiplier at equal cost, else for the one at equal seconds.

        Raises:
            UserError: a loss that is not above the floor.
        """
        for name, value in (("loss", loss), ("reference_loss", reference_loss)):
            if not value > self.floor:
                raise UserError(f"{name} is {value}; a loss above the curve's floor of {self.floor} fits")
        return float(((reference_loss - self.floor) / (loss - self.floor)) ** (1 / self.exponent) * speed)

    def interval(
        self, loss: float, reference_loss: float, spread: float, speed: float = 1.0, level: float = 0.9
    ) -> Interval:
        """Interval of the multiplier, by the delta method on its logarithm.

        spread: standard deviation of a run's loss over seeds, nats a token, taken as known.
        """
        ratio = self.multiplier(loss, reference_loss, speed)
        each = (spread / (self.exponent * (one - self.floor)) for one in (loss, reference_loss))
        reach = stats.norm.ppf(0.5 + level / 2) * math.hypot(*each)
        return Interval(ratio * math.exp(-reach), ratio * math.exp(reach), level)

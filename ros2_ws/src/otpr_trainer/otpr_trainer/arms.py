# SPDX-License-Identifier: Apache-2.0
"""Two ways of acting, measured side by side in training: a plain sample, and the critic's choice."""

from collections import deque
from math import sqrt

from otpr_policy.success import SuccessRate

WINDOW = 50  # latest episodes of each that count


class Arms:
    """Outcomes of the latest training episodes, those that were played by a plain sample apart from those by compatibility."""

    def __init__(self, outcomes: list[list[bool]] | None = None) -> None:
        """Goes on from :meth:`to_json`'s data; without, from nothing."""
        self._outcomes = [deque(arm, maxlen=WINDOW) for arm in outcomes or [[], []]]

    def add(self, selected: bool, success: bool) -> None:
        """Adds an episode."""
        self._outcomes[selected].append(success)

    @property
    def selecting_is_not_worse(self) -> bool:
        """False while either is unknown, and when the critic's choice succeeds less often by more than a standard error of the difference.

        Each rate's variance is that of its posterior mean under a uniform prior, which is not 0 after a run of successes.
        """
        plain, selected = (SuccessRate(sum(arm), len(arm)) if arm else None for arm in self._outcomes)
        if plain is None or selected is None:
            return False
        variance = sum((rate.successes + 1) * (rate.episodes - rate.successes + 1) / (rate.episodes + 2) ** 3 for rate in (plain, selected))
        return selected.rate - plain.rate > -sqrt(variance)

    def metrics(self) -> dict[str, float]:
        """Success of each; 0 where there is no episode yet."""
        return {f"arms/{name}": sum(arm) / max(len(arm), 1) for name, arm in zip(("plain", "selected"), self._outcomes, strict=True)}

    def to_json(self) -> list[list[bool]]:
        """Plain data to go on from."""
        return [list(arm) for arm in self._outcomes]

# SPDX-License-Identifier: Apache-2.0
"""Carries out chunks tick by tick: asks lanes for them in time, joins what they yield, and changes the policy without a gap.

Evaluation, the lockstep twin and the robot run this one class; they differ in their lanes alone.
"""

from collections.abc import Callable

import numpy as np

from otpr_policy.lanes import Lanes, Patience
from otpr_policy.spec import Array
from otpr_policy.timeline import SEAM_TICKS, ChunkRequest, ChunkResult, Gap, Seam, TimedAction, Timeline, TimelineCounters

Event = ChunkRequest | ChunkResult | TimedAction | Gap
"""What an observer is told, in the order in which it happens. With the requests every chunk and action can be computed again."""

Outcome = Callable[[str | None], None]
"""Told once what became of a change of the policy: None when it was made, else why the old one was kept."""


class ChunkExecutor:
    """One action per tick from the chunks of one policy. Not thread-safe."""

    def __init__(self, lanes: Lanes, seam_ticks: int = SEAM_TICKS, observer: Callable[[Event], None] = lambda event: None) -> None:
        """``seam_ticks``: see :class:`Timeline`; ``observer`` is told of everything and must not take long."""
        self._lanes = lanes
        self._next: tuple[Lanes, Outcome] | None = None  # asked from the next request on, until its first chunk has joined
        self._asked_next = False
        self.observer = observer
        self._timeline = Timeline(lanes.spec, lanes.noise_shape, seam_ticks)
        self.on_seam: Callable[[Seam], None] = lambda seam: None

    @property
    def lanes(self) -> Lanes:
        """Those of the policy that acts."""
        return self._lanes

    @property
    def asked(self) -> Lanes:
        """Those that chunks are asked of now."""
        return self._lanes if self._next is None else self._next[0]

    @property
    def counters(self) -> TimelineCounters:
        """Since this was made."""
        return self._timeline.counters

    def reset(self, rng: np.random.Generator) -> None:
        """Starts an episode: no past, and noise from ``rng`` from here on."""
        self.forget()
        self._timeline.reset(rng)

    def forget(self) -> None:
        """Drops history, plan and what is under way. A policy that waits for its turn takes it: there is nothing to bridge."""
        self._timeline.forget()
        if self._next is not None:
            lanes, _ = self._next
            if not self._asked_next:
                self._timeline.adopt(lanes.spec, lanes.noise_shape)
            self._change()

    def due(self, tick: int) -> bool:
        """Whether a tick, the present or the next one, has to ask for a chunk."""
        self._timeline.delay_ticks = self._expected_delay()
        return self._timeline.due(tick)

    def change(self, lanes: Lanes, outcome: Outcome, at_once: bool = False) -> None:
        """Changes the policy: the next chunk is asked of ``lanes``, and the plan of the old policy goes on until it has come.

        When it does not come in time, or an error instead, the old policy is kept.

        Args:
            lanes: of the new policy, with the same fields and rate.
            outcome: called in the thread that ticks.
            at_once: the robot does not move: nothing has to be bridged.
        """
        if self._next is not None:
            self._keep("another policy was loaded after it")
        self._next, self._asked_next = (lanes, outcome), False
        if at_once:
            self.forget()

    def give_up_change(self, reason: str) -> None:
        """Keeps the old policy, unless the new one has taken over already."""
        if self._next is not None:
            self._keep(reason)

    def act(self, tick: int, observation: Array, stamp_ns: int = 0) -> TimedAction | Gap:
        """The action of a tick, given its observation (Do,). Ticks ascend.

        Raises:
            Exception: whatever the policy raised.
        """
        for lanes in self._all_lanes():
            lanes.begin_tick()
        timeline = self._timeline
        timeline.observe(tick, observation, stamp_ns)
        self._ask(tick)
        self._take()
        timeline.collected()
        if self._ask(tick):  # a first chunk that took long has just come, or another one is overdue: the next has to be on its way at once
            self._take()
        action = timeline.act()
        if isinstance(action, Gap) and self._asked_next:
            self._keep("its first chunk did not come in time")
            self._ask(tick)
        self.observer(action)
        return action

    def _all_lanes(self) -> list[Lanes]:
        return [self._lanes] if self._next is None else [self._lanes, self._next[0]]

    def _expected_delay(self) -> int:
        """The next chunk's. A new policy is first asked in time for either."""
        return self.asked.delay_ticks if self._asked_next else max(lanes.delay_ticks for lanes in self._all_lanes())

    def _ask(self, tick: int) -> bool:
        """Asks for a chunk if one is due and a lane is free; says whether it did."""
        lanes = self.asked
        if lanes.free < 1 or not self.due(tick):
            return False
        if self._next is not None and not self._asked_next:
            self._timeline.adopt(lanes.spec, lanes.noise_shape)
            self._timeline.delay_ticks = lanes.delay_ticks
            self._asked_next = True
        request = self._timeline.request()
        try:
            lanes.submit(request)
        except Exception:
            self._timeline.withdraw(request)
            raise
        self.observer(request)
        return True

    def _take(self) -> None:
        while True:
            *others, asked = self._all_lanes()
            results = [result for lanes in others for result in lanes.collect(Patience.NONE)]
            results += asked.collect(self._patience())
            for result in results:
                self._receive(result)
            if not results:
                return

    def _patience(self) -> Patience:
        timeline = self._timeline
        if not timeline.uncovered or timeline.in_flight == 0:
            return Patience.NONE
        return Patience.LONG if timeline.empty else Patience.SHORT

    def _receive(self, result: ChunkResult) -> None:
        self.observer(result)
        request, timeline = result.request, self._timeline
        of_next = self._asked_next and request.generation == timeline.generation
        if result.chunk is None:
            if not timeline.expects(request):
                return  # an answer that nobody waits for any more
            timeline.withdraw(request)
            error = result.error or RuntimeError("the policy yields nothing")
            if not of_next:
                raise error
            self._keep(f"it failed: {error!r}")
            return
        joined = timeline.deliver(request, result.chunk)
        if joined and timeline.seam is not None:
            self.on_seam(timeline.seam)
        if joined and of_next:
            self._change()

    def _change(self) -> None:
        assert self._next is not None
        timeline = self._timeline
        timeline.keep_only(lambda request: request.generation == timeline.generation)  # nobody collects what the old lanes still compute
        (self._lanes, outcome), self._next, self._asked_next = self._next, None, False
        outcome(None)

    def _keep(self, reason: str) -> None:
        assert self._next is not None
        (_, outcome), timeline = self._next, self._timeline
        if self._asked_next:
            timeline.keep_only(lambda request: request.generation != timeline.generation)
            timeline.adopt(self._lanes.spec, self._lanes.noise_shape)
        self._next, self._asked_next = None, False
        outcome(reason)

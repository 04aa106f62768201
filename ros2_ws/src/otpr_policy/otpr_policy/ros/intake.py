# SPDX-License-Identifier: Apache-2.0
"""The robot's state topics on their way into the observation buffer. Takes no lock of the control loop's."""

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from otpr_policy.contract import ObservationSource, RobotContract
from otpr_policy.health import Counters
from otpr_policy.observation import ObservationBuffer
from otpr_policy.ros.messages import MESSAGE_CLASSES, decode, stamp_to_ns, subscription_qos
from otpr_policy.ros.reader import Reader


class Intake:
    """Subscribes to the topics that a contract names for some fields, and pushes what arrives."""

    def __init__(
        self,
        reader: Reader,
        contract: RobotContract,
        fields: Collection[str],
        buffer: ObservationBuffer,
        counters: Counters,
        now_ns: Callable[[], int] | None,
        arrived: Callable[[], None],
    ) -> None:
        """Subscribes.

        Args:
            reader: of the policy node, not started yet.
            contract: says which field is in which topic.
            fields: names of those that are read.
            buffer: what is filled.
            counters: where refused messages are counted.
            now_ns: the data's clock. None in lockstep: the newest stamp is what time it is, for /clock may arrive after the data.
            arrived: called after each message, in the reader's thread.
        """
        self._buffer = buffer
        self._counters = counters
        self._now_ns = now_ns
        self._arrived = arrived
        for topic, sources in contract.sources_by_topic(fields).items():
            source = next(iter(sources.values()))
            reader.subscribe(MESSAGE_CLASSES[source.type], topic, partial(self._take, sources), subscription_qos(source.reliability))

    def _take(self, sources: Mapping[str, ObservationSource], message: Any) -> None:
        stamp_ns = stamp_to_ns(message.header.stamp)
        now_ns = stamp_ns if self._now_ns is None else self._now_ns()
        for name, source in sources.items():
            try:
                refused = self._buffer.push(name, stamp_ns, decode(source, message), now_ns)
            except ValueError as error:
                self._buffer.refuse(name, str(error))
                refused = str(error)
            if refused is not None:
                self._counters.refused_messages += 1
        self._arrived()

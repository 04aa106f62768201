# SPDX-License-Identifier: Apache-2.0
"""The health record as a diagnostics message."""

from collections.abc import Sequence
from dataclasses import asdict

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from otpr_policy.control import State
from otpr_policy.health import Counters, Percentiles
from otpr_policy.timeline import TimelineCounters

_LEVELS = {
    State.READY: DiagnosticStatus.OK,
    State.ENGAGED: DiagnosticStatus.OK,
    State.HOLD: DiagnosticStatus.WARN,
    State.STOPPED: DiagnosticStatus.ERROR,
}


def diagnostics(
    node_name: str,
    stamp: Time,
    state: State,
    reason: str,
    counters: Counters,
    timeline: TimelineCounters | None,
    inference: Percentiles | None,
    facts: dict[str, str],
    warnings: Sequence[str] = (),
) -> DiagnosticArray:
    """One status with the state as its message, and every counter, latency [ms] and fact as a key.

    ``warnings``: what is wrong with the machine rather than with the robot; each is in the message and makes an OK a WARN.
    """
    values = {key: str(value) for key, value in (asdict(counters) | ({} if timeline is None else asdict(timeline))).items()}
    if inference is not None:
        values |= {f"inference_{key}_ms": f"{value:.4f}" for key, value in inference.to_json().items()}
    message = "; ".join([f"{state.value}: {reason}" if reason else state.value, *warnings])
    status = DiagnosticStatus(
        level=max(_LEVELS[state], DiagnosticStatus.WARN if warnings else DiagnosticStatus.OK),
        name=f"{node_name}: policy",
        hardware_id=facts.get("robot", ""),
        message=message,
        values=[KeyValue(key=key, value=value) for key, value in (values | facts).items()],
    )
    array = DiagnosticArray(status=[status])
    array.header.stamp = stamp
    return array

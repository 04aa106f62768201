# SPDX-License-Identifier: Apache-2.0
"""Flights as MCAP files with JSON messages, which Foxglove plots as they are. docs/deploy.md names the topics.

JSON keeps a float64 bit for bit: the text is the shortest that reads back as the same number. JSON has no NaN and no infinity,
and a policy that yielded one is what the file is for: NaN is ``null``, infinities are the texts ``inf`` and ``-inf``.
"""

import heapq
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from otpr_policy.command import CartesianTarget
from otpr_policy.errors import RecordingError
from otpr_policy.files import atomic_path
from otpr_policy.flight import Flight, FlightLog, RequestRecord, ResultRecord, TickRecord
from otpr_policy.mcap import read_mcap
from otpr_policy.mcap_writer import McapWriter
from otpr_policy.observation import Observation
from otpr_policy.spec import Array
from otpr_policy.timeline import ChunkRequest, ChunkResult, Committed, Gap, SeamPoint, Source, TimedAction

LAYOUT_VERSION = "1"
FACTS = "otpr.flight"
TICK, REQUEST, CHUNK = "/flight/tick", "/flight/request", "/flight/chunk"
_RECORDS_PER_FLUSH = 200

_NUMBERS = {"type": "array", "items": {"type": ["number", "null", "string"]}}
_STAMP = {"type": "object", "properties": {"sec": {"type": "integer"}, "nsec": {"type": "integer"}}}
_SCHEMAS: dict[str, dict[str, Any]] = {
    TICK: {
        "number": {"type": "integer"},
        "time_s": {"type": "number", "description": "monotonic clock"},
        "seconds": {"type": "number", "description": "how long the tick took"},
        "stamp": _STAMP,
        "state": {"type": "string"},
        "reason": {"type": "string"},
        "observation": {"type": ["object", "null"]},
        "observation_stamp": _STAMP,
        "action": _NUMBERS,
        "source": {"type": ["object", "null"], "description": "request and index in its chunk"},
        "target": {"type": ["object", "null"]},
    },
    REQUEST: {
        "number": {"type": "integer"},
        "tick": {"type": "integer"},
        "policy": {"type": "string", "description": "sha256 of the policy file"},
        "stamp": _STAMP,
        "observation": {"type": "array", "items": _NUMBERS},
        "noise": {"type": "array"},
    },
    CHUNK: {
        "request": {"type": "integer"},
        "duration_s": {"type": "number"},
        "chunk": {"type": "array", "items": _NUMBERS},
        "error": {"type": ["string", "null"]},
    },
}


def write_flight(path: Path, flight: Flight, wall_ns: int, time_s: float, pause: Callable[[], None] = lambda: None) -> None:
    """Writes a flight, whole or not at all.

    Args:
        path: replaced if it exists.
        flight: log and facts.
        wall_ns: an instant, since 1970.
        time_s: the same instant on the monotonic clock of the log, which places the log in time.
        pause: called after every record. A writer beside a control thread lets that go first.

    Raises:
        OutputError: the folder or disk does not take it.
    """

    def logged_ns(record: TickRecord | RequestRecord | ResultRecord) -> int:
        return max(0, wall_ns + round((record.time_s - time_s) * 1e9))

    with atomic_path(path) as temporary:
        temporary.unlink()
        writer = McapWriter(temporary, "")
        try:
            writer.add_metadata(FACTS, {"layout": LAYOUT_VERSION, **flight.facts})
            channels = {topic: writer.add_channel(topic, _schema(topic), "json") for topic in _SCHEMAS}
            for count, (topic, record, plain) in enumerate(_in_time(flight.log)):
                writer.write(channels[topic], logged_ns(record), json.dumps(plain(record), allow_nan=False).encode())
                if count % _RECORDS_PER_FLUSH == 0:
                    writer.flush()
                pause()
            writer.close()
        finally:
            writer.abandon()


def read_flight(path: Path) -> Flight:
    """Reads what :func:`write_flight` wrote.

    Raises:
        RecordingError: there is no such file, it is damaged in any bit, or it is not a flight.
    """
    content = read_mcap(path)
    if content.damage:
        raise RecordingError(f"{path} is damaged: {content.damage}")
    facts = dict(content.metadata).get(FACTS)
    if facts is None:
        raise RecordingError(f"{path} is not a flight of the policy node; it lacks the metadata {FACTS!r}")
    if facts.get("layout") != LAYOUT_VERSION:
        raise RecordingError(f"{path} has layout {facts.get('layout')!r}; this version reads {LAYOUT_VERSION}")
    messages: dict[str, list[Any]] = {topic: [] for topic in _SCHEMAS}
    try:
        for message in content.messages:
            messages[content.channels[message.channel_id].topic].append(json.loads(message.data))
        requests = {record.request.number: record for record in map(_request, messages[REQUEST])}
        results = tuple(_result(data, requests) for data in messages[CHUNK] if data["request"] in requests)
        ticks = tuple(map(_tick, messages[TICK]))
    except (KeyError, TypeError, ValueError) as error:
        raise RecordingError(f"{path} holds a message that is not of a flight: {error!r}") from error
    return Flight(FlightLog(ticks, tuple(requests.values()), results), facts)


def _in_time(log: FlightLog) -> Iterator[tuple[str, Any, Callable[[Any], dict[str, Any]]]]:
    """Topic, record, and what makes plain data of it, in the order of time; within a tick as it happened. Made one by one."""
    return heapq.merge(
        ((REQUEST, record, _request_to_json) for record in log.requests),
        ((CHUNK, record, _result_to_json) for record in log.results),
        ((TICK, record, _tick_to_json) for record in log.ticks),
        key=lambda entry: entry[1].time_s,
    )


def _schema(topic: str) -> tuple[str, str, bytes]:
    name = "otpr.flight." + topic.rsplit("/", 1)[1].capitalize()
    text = json.dumps({"title": name, "type": "object", "properties": _SCHEMAS[topic]})
    return name, "jsonschema", text.encode()


def _tick_to_json(record: TickRecord) -> dict[str, Any]:
    action, observation, target = record.action, record.observation, record.target
    timed = action if isinstance(action, TimedAction) else None
    return {
        "number": record.number,
        "time_s": record.time_s,
        "seconds": record.seconds,
        "stamp": _stamp(record.data_ns),
        "state": record.state,
        "reason": record.reason,
        "observation": None if observation is None else {name: _plain(values) for name, values in observation.values.items()},
        "observation_stamp": None if observation is None else _stamp(observation.stamp_ns),
        "action": None if timed is None else _plain(timed.vector),
        "source": None if timed is None else _source(timed.source),
        "seam": None if timed is None else _seam(timed.seam),
        "gap": {"expected": action.expected} if isinstance(action, Gap) else None,
        "target": None
        if target is None
        else {"position": _plain(target.position), "quaternion": _plain(target.quaternion), "gripper_position": target.gripper_position},
    }


def _tick(data: Mapping[str, Any]) -> TickRecord:
    number = int(data["number"])
    action: TimedAction | Gap | None = None
    if data["gap"] is not None:
        action = Gap(number, bool(data["gap"]["expected"]))
    elif data["action"] is not None:
        action = TimedAction(number, _array(data["action"]), _parse_source(data["source"]), _parse_seam(data["seam"]))
    observation = data["observation"]
    target = data["target"]
    return TickRecord(
        number,
        float(data["time_s"]),
        float(data["seconds"]),
        _nanoseconds(data["stamp"]),
        str(data["state"]),
        str(data["reason"]),
        None
        if observation is None
        else Observation(_nanoseconds(data["observation_stamp"]), {name: _array(values) for name, values in observation.items()}),
        action,
        None
        if target is None
        else CartesianTarget(_array(target["position"]), _array(target["quaternion"]), float(target["gripper_position"])),
    )


def _request_to_json(record: RequestRecord) -> dict[str, Any]:
    request, committed = record.request, record.request.committed
    return {
        "number": request.number,
        "epoch": request.epoch,
        "generation": request.generation,
        "tick": request.tick,
        "time_s": record.time_s,
        "policy": record.policy,
        "stamp": _stamp(request.stamp_ns),
        "first": request.first,
        "observation": _plain(request.observation),
        "noise": _plain(request.noise),
        "previous": None if request.previous is None else _plain(request.previous),
        "committed": None if committed is None else {"actions": _plain(committed.actions), "weight": _plain(committed.weight)},
    }


def _request(data: Mapping[str, Any]) -> RequestRecord:
    committed = data["committed"]
    request = ChunkRequest(
        number=int(data["number"]),
        epoch=int(data["epoch"]),
        generation=int(data["generation"]),
        tick=int(data["tick"]),
        stamp_ns=_nanoseconds(data["stamp"]),
        observation=_array(data["observation"]),
        noise=_array(data["noise"]),
        previous=None if data["previous"] is None else _array(data["previous"]),
        committed=None if committed is None else Committed(_array(committed["actions"]), _array(committed["weight"])),
        first=bool(data["first"]),
    )
    return RequestRecord(float(data["time_s"]), str(data["policy"]), request)


def _result_to_json(record: ResultRecord) -> dict[str, Any]:
    result = record.result
    return {
        "request": result.request.number,
        "time_s": record.time_s,
        "duration_s": result.duration_s,
        "chunk": None if result.chunk is None else _plain(result.chunk),
        "error": None if result.error is None else repr(result.error),
    }


def _result(data: Mapping[str, Any], requests: Mapping[int, RequestRecord]) -> ResultRecord:
    chunk = None if data["chunk"] is None else _array(data["chunk"])
    error = None if data["error"] is None else RuntimeError(data["error"])
    return ResultRecord(float(data["time_s"]), ChunkResult(requests[int(data["request"])].request, chunk, error, float(data["duration_s"])))


def _source(source: Source) -> dict[str, int]:
    return {"request": source.request, "index": source.index}


def _parse_source(data: Mapping[str, int]) -> Source:
    return Source(int(data["request"]), int(data["index"]))


def _seam(seam: SeamPoint | None) -> dict[str, Any] | None:
    return None if seam is None else {"old": _source(seam.old), "new": _source(seam.new), "since": seam.since}


def _parse_seam(data: Mapping[str, Any] | None) -> SeamPoint | None:
    return None if data is None else SeamPoint(_parse_source(data["old"]), _parse_source(data["new"]), int(data["since"]))


def _stamp(nanoseconds: int) -> dict[str, int]:
    """Two numbers, as in ROS: one would not fit into the float64 that readers of JSON make of it."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return {"sec": seconds, "nsec": rest}


def _nanoseconds(stamp: Mapping[str, int]) -> int:
    return int(stamp["sec"]) * 10**9 + int(stamp["nsec"])


def _plain(array: Array) -> Any:
    return array.tolist() if np.isfinite(array).all() else _spelt(array.tolist())


def _spelt(value: Any) -> Any:
    if isinstance(value, list):
        return [_spelt(item) for item in value]
    return value if np.isfinite(value) else None if np.isnan(value) else str(value)


def _array(data: Any) -> Array:
    """Numbers back from JSON; numpy itself reads null as NaN and the texts of infinities."""
    return np.array(data, dtype=np.float64)

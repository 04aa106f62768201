# SPDX-License-Identifier: Apache-2.0
"""The flight recorder without ROS: what it keeps, that a file gives it back bit for bit, and that a replay misses nothing."""

import argparse
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_policy

from otpr_policy import artifact, flight_writer
from otpr_policy.chunk import episode_rng
from otpr_policy.chunk_executor import ChunkExecutor
from otpr_policy.command import CartesianTarget
from otpr_policy.commands.replay import COMMAND
from otpr_policy.errors import OtprError, RecordingError
from otpr_policy.flight import Flight, FlightLog, FlightRecorder, RequestRecord, ResultRecord
from otpr_policy.flight_file import read_flight, write_flight
from otpr_policy.flight_writer import FlightWriter
from otpr_policy.inference import OnnxPolicy
from otpr_policy.lanes import SimulatedLanes
from otpr_policy.observation import Observation
from otpr_policy.replay import ReplayReport, Verdict, replay
from otpr_policy.spec import PolicySpec
from otpr_policy.timeline import ChunkRequest, ChunkResult, Committed, Gap, SeamPoint, Source, TimedAction

PERIOD_S = tiny_policy.SPEC.period_s
SECONDS = 30.0
PREVIOUS = replace(tiny_policy.SPEC, reads_previous=True, executed_length=2)
COMMITTED = replace(tiny_policy.SPEC, reads_committed=True, chunk_length=8, executed_length=4)
LONG = replace(tiny_policy.SPEC, observation_horizon=2, chunk_length=8, executed_length=4)


def fly(policy: OnnxPolicy, ticks: int, delay_ticks: int = 0, sha256: str = "tiny", forget_at: int = -1) -> FlightLog:
    """Flies along a random walk, and returns what the recorder has kept."""
    spec = policy.spec
    recorder = FlightRecorder(SECONDS, spec)
    executor = ChunkExecutor(SimulatedLanes(policy, delay_ticks), observer=lambda event: recorder.observe(event, sha256))
    executor.reset(episode_rng(3, 0))
    rng = np.random.default_rng(1)
    observation = (spec.observation.low + spec.observation.high) / 2
    for number in range(ticks):
        recorder.begin(number * PERIOD_S)
        observation = observation + 1e-3 * rng.standard_normal(observation.shape)
        if number == forget_at:
            executor.forget()
        executor.act(number, observation, number * 50_000_000)
        seen = Observation(number * 50_000_000, dict(spec.observation.split(observation)))
        recorder.end(number, 0.001, number * 50_000_000, "ENGAGED", "", seen, None)
    return recorder.snapshot()


@pytest.fixture(params=["plain", "long", "previous", "committed"])
def spec(request: pytest.FixtureRequest) -> PolicySpec:
    return {"plain": tiny_policy.SPEC, "long": LONG, "previous": PREVIOUS, "committed": COMMITTED}[request.param]


def open_tiny(spec: PolicySpec = tiny_policy.SPEC) -> OnnxPolicy:
    return OnnxPolicy.from_artifact(artifact.parse(tiny_policy.content(spec)))


def saved(log: FlightLog, path: Path, **facts: str) -> Flight:
    write_flight(path, Flight(log, facts), 1_700_000_000 * 10**9, 0.0)
    return read_flight(path)


def assert_same(ours: Any, theirs: Any) -> None:
    """Bit for bit, through every record; errors by their text."""
    if isinstance(ours, np.ndarray):
        assert ours.tobytes() == theirs.tobytes()
    elif isinstance(ours, tuple):
        assert len(ours) == len(theirs)
        for mine, yours in zip(ours, theirs, strict=True):
            assert_same(mine, yours)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        assert_same(tuple(ours.values()), tuple(theirs.values()))
    elif hasattr(ours, "__dataclass_fields__"):
        for name in ours.__dataclass_fields__:
            assert_same(getattr(ours, name), getattr(theirs, name))
    elif isinstance(ours, Exception):
        assert repr(ours) in str(theirs)
    else:
        assert ours == theirs


def test_the_last_seconds_are_kept_and_the_chunks_that_their_first_action_is_from() -> None:
    log = fly(open_tiny(), 1000)
    assert log.ticks[-1].number == 999
    assert len(log.ticks) == pytest.approx(SECONDS / PERIOD_S, abs=1)
    first = log.ticks[0].action
    assert isinstance(first, TimedAction)
    assert first.source.request in {record.request.number for record in log.requests}
    assert first.source.request in {record.result.request.number for record in log.results}


def test_memory_is_bounded_however_fast_or_slow_time_runs() -> None:
    """A clock that stands still would keep everything by time; the count holds."""
    recorder = FlightRecorder(1.0, tiny_policy.SPEC)
    request = ChunkRequest(0, 0, 0, 0, 0, np.zeros((1, 12)), np.zeros(tiny_policy.NOISE_SHAPE), None, None, True)
    for number in range(10_000):
        recorder.begin(5.0)
        recorder.observe(request, "x")
        recorder.observe(ChunkResult(request, None, None, 0.0), "x")
        recorder.end(number, 0.0, 0, "READY", "", None, None)
    log = recorder.snapshot()
    assert len(log.ticks) <= 1.5 / PERIOD_S + 2
    assert len(log.requests) == len(log.results) <= 200
    assert log.ticks[-1].number == 9999


def test_a_file_gives_back_every_record_bit_for_bit(tmp_path: Path, spec: PolicySpec) -> None:
    log = fly(open_tiny(spec), 60, delay_ticks=1)
    assert_same(log, saved(log, tmp_path / "x.mcap").log)


def test_numbers_that_json_has_no_word_for_and_every_kind_of_record_survive(tmp_path: Path) -> None:
    odd = np.array([-0.0, 5e-324, 1.7976931348623157e308, 0.1 + 0.2, np.nan, np.inf, -np.inf])
    committed = Committed(np.full((4, 7), 0.1), np.array([1.0, 0.5, 0.0, 0.0]))
    request = ChunkRequest(2**40, 3, 1, 7, 2**62 + 1, odd[None], np.ones((1, 4, 7)), np.zeros((4, 7)), committed, False)
    recorder = FlightRecorder(1.0, tiny_policy.SPEC)
    target = CartesianTarget(np.array([0.1, 0.2, 0.3]), np.array([1.0, 0.0, 0.0, 0.0]), 0.04)
    seen = Observation(2**62 + 3, {"ee_position": odd})
    events = [
        TimedAction(0, odd, Source(2**40, 3), SeamPoint(Source(5, 1), Source(2**40, 1), 2)),
        Gap(1, True),
        Gap(2, False),
        None,
    ]
    for number, event in enumerate(events):
        recorder.begin(0.1 * number)
        if number == 0:
            recorder.observe(request, "abc")
            recorder.observe(ChunkResult(request, odd[None], None, 1 / 7), "abc")
            recorder.observe(ChunkResult(request, None, ValueError("it\nfailed"), 0.0), "abc")
        if event is not None:
            recorder.observe(event, "abc")
        recorder.end(number, 1 / 3, 2**62, "HOLD", 'why "x" \\ ü', seen if event else None, target if event else None)
    log = recorder.snapshot()
    flight = saved(log, tmp_path / "x.mcap", reason="a\nb")
    assert_same(log, flight.log)
    assert flight.facts["reason"] == "a\nb"


@pytest.mark.parametrize("delay_ticks", [0, 1, 2])
def test_a_flight_replays_exactly(tmp_path: Path, spec: PolicySpec, delay_ticks: int) -> None:
    """With and without seams, with a start in the middle, through a file."""
    policy = open_tiny(spec)
    log = fly(policy, 80, delay_ticks, forget_at=33)
    report = replay(saved(log, tmp_path / "x.mcap").log, {"tiny": open_tiny(spec)})
    assert report.exact
    assert report.actions == sum(isinstance(tick.action, TimedAction) for tick in log.ticks) > 30
    assert report.chunks == len(log.results) > 10
    assert (report.uncovered_actions, report.missing_chunks) == (0, len(log.requests) - len(log.results))
    if delay_ticks and spec.executed_length + delay_ticks < spec.chunk_length:
        assert any(isinstance(tick.action, TimedAction) and tick.action.seam is not None for tick in log.ticks), "no seam was tested"


@pytest.mark.parametrize("delay_ticks", [0, 2])
def test_a_flight_with_another_policy_half_way_replays_exactly_with_both_files(tmp_path: Path, delay_ticks: int) -> None:
    first, second = open_tiny(LONG), open_tiny(replace(LONG, chunk_length=6, executed_length=3))
    lanes = {"first": SimulatedLanes(first, delay_ticks), "second": SimulatedLanes(second, delay_ticks)}
    names = {id(lane): name for name, lane in lanes.items()}
    recorder = FlightRecorder(SECONDS, LONG)
    executor = ChunkExecutor(lanes["first"])
    executor.observer = lambda event: recorder.observe(event, names[id(executor.asked)])
    executor.reset(episode_rng(3, 0))
    middle = (LONG.observation.low + LONG.observation.high) / 2
    changed: list[str | None] = []
    for number in range(60):
        recorder.begin(number * PERIOD_S)
        if number == 30:
            executor.change(lanes["second"], changed.append)
        executor.act(number, middle + 1e-3 * np.sin(number), number)
        recorder.end(number, 0.0, number, "ENGAGED", "", None, None)
    assert changed == [None]
    log = saved(recorder.snapshot(), tmp_path / "x.mcap").log
    assert {record.policy for record in log.requests} == {"first", "second"}
    report = replay(log, {"first": first, "second": second})
    assert report.exact
    assert report.actions == 60
    with pytest.raises(RecordingError, match=r"noise of \(2, 14\) and \(1, 8, 7\), the flight has \(2, 14\) and \(1, 6, 7\)"):
        replay(log, {"first": first, "second": first})
    assert replay(log, {"second": second}).uncovered_actions >= 30


def spoil(log: FlightLog, number: int, change: Callable[[ChunkRequest], ChunkRequest]) -> FlightLog:
    requests = list(log.requests)
    record = requests[number]
    requests[number] = RequestRecord(record.time_s, record.policy, change(record.request))
    return FlightLog(log.ticks, tuple(requests), log.results)


def flipped(array: np.ndarray[Any, Any], index: int, bit: int) -> np.ndarray[Any, Any]:
    copy = array.copy()
    copy.reshape(-1).view(np.uint64)[index] ^= np.uint64(1 << bit)
    return copy


@pytest.mark.parametrize("bit", [40, 51, 52, 63])
@pytest.mark.parametrize("what", ["noise", "observation"])
def test_one_flipped_bit_of_an_input_is_seen_and_where(what: str, bit: int) -> None:
    """Any bit that a float32 has: the policy computes in float32."""
    log = fly(open_tiny(), 60)
    spoilt = spoil(log, 5, lambda request: replace(request, **{what: flipped(getattr(request, what), 3, bit)}))
    report = replay(spoilt, {"tiny": open_tiny()})
    assert not report.exact
    assert report.different_chunks == 1
    assert 1 <= report.different_actions <= 4
    assert report.first_different_tick is not None
    assert 20 <= report.first_different_tick < 24
    assert report.largest_chunk_difference > 0


def test_one_flipped_bit_of_an_action_is_seen() -> None:
    log = fly(open_tiny(), 60)
    ticks = list(log.ticks)
    action = ticks[17].action
    assert isinstance(action, TimedAction)
    ticks[17] = replace(ticks[17], action=replace(action, vector=flipped(action.vector, 0, 0)))
    report = replay(FlightLog(tuple(ticks), log.requests, log.results), {"tiny": open_tiny()})
    assert (report.different_chunks, report.different_actions, report.first_different_tick) == (0, 1, 17)
    assert 0 < report.largest_action_difference < 1e-15


def test_a_zero_of_the_other_sign_is_a_difference() -> None:
    log = fly(open_tiny(), 4)

    class Zero:
        spec = tiny_policy.SPEC
        noise_shape = tiny_policy.NOISE_SHAPE

        def infer(self, observation: Any, noise: Any) -> Any:
            return np.zeros((4, 7))

    results = tuple(ResultRecord(r.time_s, replace(r.result, chunk=-np.zeros((4, 7)))) for r in log.results)
    assert replay(FlightLog((), log.requests, results), {"tiny": Zero()}).different_chunks == 1


def test_a_chunk_of_not_a_number_equals_one_and_differs_from_a_number() -> None:
    class Sick:
        spec = tiny_policy.SPEC
        noise_shape = tiny_policy.NOISE_SHAPE

        def infer(self, observation: Any, noise: Any) -> Any:
            return np.full((4, 7), -np.nan)

    log = fly(open_tiny(), 8)
    results = tuple(ResultRecord(r.time_s, replace(r.result, chunk=np.full((4, 7), np.nan))) for r in log.results)
    sick = FlightLog((), log.requests, results)
    assert replay(sick, {"tiny": Sick()}).exact
    assert replay(log, {"tiny": Sick()}).largest_chunk_difference == np.inf


def test_an_empty_flight_is_not_an_exact_one() -> None:
    assert not replay(FlightLog((), (), ()), {}).exact


# The command


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A flight and its policy file."""
    policy = tiny_policy.write(tmp_path / "tiny.onnx")
    sha256 = artifact.load(policy).sha256
    log = fly(open_tiny(), 40, sha256=sha256)
    saved(log, tmp_path / "flight.mcap", policy_paths=json.dumps({sha256: str(policy)}), reason="STOPPED: x", seam_ticks="4")
    return tmp_path / "flight.mcap", policy


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    COMMAND.add_arguments(parser)
    return COMMAND.run(parser.parse_args([str(word) for word in words]))


def test_replay_finds_its_policy_and_says_exact(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    flight, policy = files
    assert run(flight) == 0
    assert "all equal bit for bit" in capsys.readouterr().out
    assert run(flight, "--policy", policy, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["exact"], told["actions"], told["largest_action_difference"]) == (True, 40, 0.0)


def test_replay_opens_only_the_policies_that_flew_and_asks_for_one_whose_file_is_not_known(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flight = read_flight(files[0])
    facts = {key: value for key, value in flight.facts.items() if key != "layout"}
    paths = {"0" * 64: str(tmp_path / "gone.onnx")}  # flew before the flight begins
    saved(flight.log, tmp_path / "swapped.mcap", **facts | {"policy_paths": json.dumps(paths | json.loads(facts["policy_paths"]))})
    assert run(tmp_path / "swapped.mcap") == 0
    capsys.readouterr()
    saved(flight.log, tmp_path / "unknown.mcap", **facts | {"policy_paths": json.dumps(paths)})
    with pytest.raises(RecordingError, match="give it with --policy"):
        run(tmp_path / "unknown.mcap")


def test_replay_fails_on_a_difference(files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flight = read_flight(files[0])
    log = spoil(flight.log, 2, lambda request: replace(request, noise=flipped(request.noise, 0, 51)))
    saved(log, tmp_path / "spoilt.mcap", **{key: value for key, value in flight.facts.items() if key != "layout"})
    assert run(tmp_path / "spoilt.mcap") == 1
    assert "DIFFERENT" in capsys.readouterr().out


def test_replay_refuses_another_policy_unless_asked_to_compare(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_policy.write(tmp_path / "other.onnx", replace(tiny_policy.SPEC, executed_length=3))
    with pytest.raises(RecordingError, match="--compare") as error:
        run(files[0], "--policy", other)
    assert "\n" not in str(error.value)
    assert run(files[0], "--policy", other, "--compare") == 0
    capsys.readouterr()


def test_every_flipped_byte_of_a_flight_is_refused_in_one_line(files: tuple[Path, Path], tmp_path: Path) -> None:
    data = files[0].read_bytes()
    rng = np.random.default_rng(4)
    for position in [*rng.integers(0, len(data), 200), *range(60), *range(len(data) - 60, len(data))]:
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(8))
        (tmp_path / "damaged.mcap").write_bytes(damaged)
        with pytest.raises(OtprError) as error:
            run(tmp_path / "damaged.mcap")
        assert "\n" not in str(error.value)
    (tmp_path / "short.mcap").write_bytes(data[: len(data) // 2])
    with pytest.raises(RecordingError, match="no end"):
        run(tmp_path / "short.mcap")


# The writer


class Desk:
    """A writer with the notes that it makes."""

    def __init__(self, directory: Path, keep: int = 3) -> None:
        self.saved: list[Path] = []
        self.failed: list[str] = []
        recorder = FlightRecorder(1.0, tiny_policy.SPEC)
        recorder.begin(0.0)
        recorder.end(0, 0.0, 0, "READY", "", None, None)
        self.writer = FlightWriter(recorder, directory, keep, lambda: {"robot": "x"}, self.saved.append, self.failed.append)


def test_the_newest_flights_are_kept_and_nothing_else_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.mcap").write_text("not a flight")
    now = [1_700_000_000 * 10**9]
    monkeypatch.setattr(flight_writer.time, "time_ns", lambda: now[0])
    desk = Desk(tmp_path)
    asked = []
    for number in range(5):
        now[0] += 10**9
        asked.append(desk.writer.request(f"number {number}"))
        while len(desk.saved) + len(desk.failed) <= number:
            threading.Event().wait(0.005)
    assert desk.writer.close(10.0)
    assert desk.failed == []
    assert desk.saved == asked
    assert sorted(tmp_path.glob("flight_*.mcap")) == asked[-3:]
    assert [read_flight(path).facts["reason"] for path in asked[-3:]] == ["number 2", "number 3", "number 4"]  # type: ignore[arg-type]
    assert (tmp_path / "mine.mcap").exists()


def test_a_flight_that_was_just_saved_is_kept_though_the_clock_went_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A robot's computer may begin each day in 1970, until it has the time."""
    later = [tmp_path / f"flight_20300101_00000{number}_000.mcap" for number in range(3)]
    for path in later:
        path.write_text("of a later time")
    monkeypatch.setattr(flight_writer.time, "time_ns", lambda: 10**9)
    desk = Desk(tmp_path)
    asked = desk.writer.request("STOPPED: the watchdog")
    assert desk.writer.close(10.0)
    assert desk.saved == [asked]
    assert sorted(tmp_path.glob("flight_*.mcap")) == [asked, *later[1:]]


def test_a_disk_that_hangs_delays_nobody_and_too_many_requests_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(flight_writer, "write_flight", lambda *_args, **_named: go_on.wait(20))
    desk = Desk(tmp_path)
    asked = [desk.writer.request("x") for _ in range(8)]
    assert 4 <= sum(path is not None for path in asked) <= 5
    assert any("others are being written" in text for text in desk.failed)
    assert not desk.writer.close(0.05)
    go_on.set()
    assert desk.writer.close(10.0)


def test_a_folder_that_cannot_be_written_is_told_in_one_line_and_the_next_flight_is_saved(tmp_path: Path) -> None:
    (tmp_path / "flights").write_text("in the way")
    desk = Desk(tmp_path / "flights")
    desk.writer.request("x")
    while not desk.failed:
        threading.Event().wait(0.005)
    assert "\n" not in desk.failed[0]
    (tmp_path / "flights").unlink()
    desk.writer.request("x")
    assert desk.writer.close(10.0)
    assert len(desk.saved) == 1


def test_a_report_is_exact_only_if_nothing_differs() -> None:
    exact = ReplayReport(3, 0, 0.0, 9, 0, 0.0, None, 0, 0)
    assert exact.exact
    assert not replace(exact, different_chunks=1).exact
    assert not replace(exact, different_actions=1).exact
    assert not replace(exact, chunks=0).exact
    assert not replace(exact, uncovered_actions=1).exact


def test_a_flight_that_lacks_a_request_is_incomplete_and_never_said_to_be_exact(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By hand: a chunk of 4 actions is missing, all others are equal; with another difference that is what counts."""
    flight = read_flight(files[0])
    facts = {key: value for key, value in flight.facts.items() if key != "layout"}
    saved(FlightLog(flight.log.ticks, flight.log.requests[1:], flight.log.results), tmp_path / "cut.mcap", **facts)
    assert run(tmp_path / "cut.mcap") == 1
    told = capsys.readouterr().out
    assert "INCOMPLETE" in told and "4 action(s)" in told
    assert run(tmp_path / "cut.mcap", "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["exact"], report["verdict"], report["uncovered_actions"], report["actions"]) == (False, "incomplete", 4, 36)
    assert run(tmp_path / "cut.mcap", "--compare", "--policy", files[1]) == 0
    spoilt = spoil(flight.log, 2, lambda request: replace(request, noise=flipped(request.noise, 0, 51)))
    assert replay(FlightLog(spoilt.ticks, spoilt.requests[1:], spoilt.results), {artifact.load(files[1]).sha256: open_tiny()}).verdict is (
        Verdict.DIFFERENT
    )

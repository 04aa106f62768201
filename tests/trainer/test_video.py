# SPDX-License-Identifier: Apache-2.0
"""Videos: every state is one frame, frames are what was drawn, files appear whole or not at all, and it shows evaluated episodes."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import point_task
import pytest
import safetensors.torch

from otpr_policy.errors import EnvironmentSetupError, OutputError, TaskError
from otpr_sim import registry
from otpr_sim.video import captioned, check_writable, writing
from otpr_trainer.algorithms.bc import Config, Learner
from otpr_trainer.commands import eval as evaluation
from otpr_trainer.record import HEIGHT, WIDTH, record
from otpr_trainer.rollout import Episodes, run_episodes
from otpr_trainer.sources import WeightsSource

av = pytest.importorskip("av")


class PaintedPoint(point_task.PointEnv):
    """The point as a red bar on green whose length is its distance from the origin."""

    steps = 0

    def __init__(self) -> None:
        self.drawn: list[np.ndarray] = []

    def reset(self, seed: int):
        self.steps = 0
        return super().reset(seed)

    def step(self, action):
        self.steps += 1
        return super().step(action)

    def renderer(self) -> str:
        return "a brush"

    def render(self, width: int, height: int) -> np.ndarray:
        picture = np.full((height, width, 3), (0, 120, 0), dtype=np.uint8)
        picture[:, : int(abs(self._position) * width)] = (200, 0, 0)
        return picture

    def __enter__(self):
        return self

    def __exit__(self, *exception: object) -> None:
        pass


@pytest.fixture(scope="module")
def source() -> WeightsSource:
    config = Config(chunk_length=2, executed_length=2, train_steps=6, width=32, depth=2, time_size=8, iterations=150, batch_size=64)
    learner = Learner(config, point_task.setup(20))
    for _ in range(150):
        learner.update()
    return WeightsSource(learner.policy_config, safetensors.torch.save(learner.ema.state_dict()), "ddim", 3)


@pytest.fixture(autouse=True)
def point_is_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry._TASKS, "point", (point_task.SPEC, lambda _stepping: PaintedPoint()))


def decode(path: Path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def rate(path: Path) -> float:
    with av.open(str(path)) as container:
        return float(container.streams.video[0].average_rate)


def test_a_video_shows_each_state_of_the_evaluated_episodes_once_in_real_time(source, tmp_path):
    recording = record(source, "point", seed=4, episodes=3, path=tmp_path / "point.mp4")
    assert list(recording.episodes) == list(run_episodes(Episodes(source, "point", 4), 3, workers=1))
    frames = decode(tmp_path / "point.mp4")
    assert len(frames) == recording.frames == sum(episode.steps + 1 for episode in recording.episodes)
    assert rate(tmp_path / "point.mp4") == point_task.SPEC.control_rate_hz
    assert frames[0].shape[1] == WIDTH and frames[0].shape[0] > HEIGHT
    first, last = frames[0], frames[recording.episodes[0].steps]
    red = [(frame[:HEIGHT, :, 0] > 100).mean() for frame in (first, last)]
    start = abs(np.random.default_rng(point_seed(4, 0)).uniform(-1.0, 1.0))
    assert red[0] == pytest.approx(start, abs=0.01)  # where the episode starts
    assert (red[1] < 0.06) == recording.episodes[0].success
    assert first[HEIGHT:].max() > 150  # the caption is written
    assert [path.name for path in tmp_path.iterdir()] == ["point.mp4"]


def point_seed(seed: int, episode: int) -> int:
    from otpr_sim.env import episode_seed

    return episode_seed(seed, episode)


def test_frames_keep_their_order_and_their_colours(tmp_path):
    shades = [0, 60, 120, 180, 240]
    with writing(tmp_path / "shades.mp4", 12.5) as video:
        for shade in shades:
            video.add(np.full((64, 96, 3), (shade, 100, 255 - shade), dtype=np.uint8))
    frames = decode(tmp_path / "shades.mp4")
    means = np.array([frame.mean(axis=(0, 1)) for frame in frames])
    np.testing.assert_allclose(means, [(shade, 100, 255 - shade) for shade in shades], atol=6.0)
    assert rate(tmp_path / "shades.mp4") == 12.5


def test_a_failure_leaves_the_older_video_and_nothing_else(tmp_path):
    target = tmp_path / "old.mp4"
    target.write_bytes(b"older")

    def half_a_video() -> Iterator[None]:
        with writing(target, 10) as video:
            video.add(np.zeros((64, 96, 3), dtype=np.uint8))
            yield
            video.add(np.zeros((64, 98, 3), dtype=np.uint8))

    with pytest.raises(ValueError, match="a frame of 98 x 64 in a video of 96 x 64"):
        list(half_a_video())
    assert target.read_bytes() == b"older" and [path.name for path in tmp_path.iterdir()] == ["old.mp4"]


def test_a_place_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError), writing(tmp_path / "file" / "x.mp4", 10) as video:
        video.add(np.zeros((64, 96, 3), dtype=np.uint8))


def test_what_would_prevent_a_video_is_found_beforehand(tmp_path, monkeypatch):
    (tmp_path / "there.mp4").write_bytes(b"older")
    with pytest.raises(OutputError, match="exists; choose another path or pass --overwrite"):
        check_writable(tmp_path / "there.mp4", overwrite=False)
    check_writable(tmp_path / "there.mp4", overwrite=True)
    with pytest.raises(OutputError, match=r"choose a name that ends in \.mp4"):
        check_writable(tmp_path / "film.avi", overwrite=False)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(EnvironmentSetupError, match=r"pip install -c requirements/constraints\.txt av"):
        check_writable(tmp_path / "new.mp4", overwrite=False)


def test_a_caption_leaves_the_picture_as_it_is_and_says_something_below():
    picture = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    whole = captioned(picture, "episode 3")
    np.testing.assert_array_equal(whole[:480], picture)
    assert whole.shape[0] % 2 == 0 and whole[480:].max() > 200
    assert (captioned(picture, "episode 4") != whole).any()


def command(source, monkeypatch, *words) -> int:
    import argparse

    monkeypatch.setattr(evaluation, "_open", lambda arguments: evaluation.Judged(source, "point", None, 1, "ddim", 2, 0.0))
    parser = argparse.ArgumentParser()
    evaluation.COMMAND.add_arguments(parser)
    return evaluation.COMMAND.run(parser.parse_args(["run", "--workers", "1", "--json", *map(str, words)]))


def test_the_command_says_which_renderer_drew_and_refuses_before_it_works(source, tmp_path, monkeypatch, capsys):
    video = tmp_path / "point.mp4"
    assert command(source, monkeypatch, "--episodes", 5, "--seed", 4, "--video", video) == 0
    summary = json.loads(capsys.readouterr().out)
    frames = len(decode(video))
    assert summary["video"] == {"path": str(video), "frames": frames, "renderer": "a brush"} and frames > 3
    assert summary["episodes"] == 5
    assert command(source, monkeypatch, "--episodes", 5, "--seed", 4) == 0
    assert json.loads(capsys.readouterr().out) == {**summary, "video": None}

    monkeypatch.setattr(evaluation, "evaluate", lambda *arguments, **options: pytest.fail("worked before it refused"))
    with pytest.raises(OutputError, match="--overwrite"):
        command(source, monkeypatch, "--episodes", 5, "--video", video)
    with pytest.raises(TaskError, match=r"--video-episodes 6 is not in 1\.\.5"):
        command(source, monkeypatch, "--episodes", 5, "--video", video, "--overwrite", "--video-episodes", 6)
    with pytest.raises(OutputError, match="are about --video FILE"):
        command(source, monkeypatch, "--episodes", 5, "--video-episodes", 2)
    assert len(decode(video)) == frames


def test_an_environment_that_does_not_repeat_itself_is_told(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(PaintedPoint, "_resets", 0, raising=False)

    def reset(self, seed):
        PaintedPoint._resets += 1
        self.steps = 0
        return point_task.PointEnv.reset(self, seed + PaintedPoint._resets)

    monkeypatch.setattr(PaintedPoint, "reset", reset)
    assert command(source, monkeypatch, "--episodes", 5, "--seed", 4, "--video", tmp_path / "point.mp4") == 0
    assert "does not repeat itself" in capsys.readouterr().err

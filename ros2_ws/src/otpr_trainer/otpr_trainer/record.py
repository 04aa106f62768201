# SPDX-License-Identifier: Apache-2.0
"""A video of a policy's first episodes: played once more, and drawn."""

from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from otpr_sim import registry
from otpr_sim.env import StepResult, TaskEnv
from otpr_sim.rollout import EpisodeResult, check_fit, run_episode
from otpr_sim.shift import preset as shift_preset
from otpr_sim.video import VideoWriter, captioned, writing
from otpr_trainer.sources import PolicySource

WIDTH, HEIGHT = 640, 480


@dataclass(frozen=True)
class Recording:
    """What was recorded. ``renderer``: what drew the pictures."""

    path: Path
    episodes: tuple[EpisodeResult, ...]
    frames: int
    renderer: str


def record(source: PolicySource, task: str, *, seed: int, episodes: int, path: Path, preset: str = "nominal") -> Recording:
    """Plays episodes 0..episodes-1 of a run with ``seed`` and writes them to ``path``, one frame per state, in real time.

    Raises:
        TaskError: there is no such task or preset, or it does not fit the policy.
        EnvironmentSetupError: this machine cannot draw the task or encode videos.
        OutputError: ``path`` cannot be written.
    """
    check_fit(source.spec, registry.spec(task))
    policy = source.open()
    with registry.make(task, shift=shift_preset(preset)) as env:
        renderer = env.renderer()
        frames_per_s = env.spec.control_rate_hz
        with (
            writing(path, frames_per_s) as video,
            tqdm(total=episodes, desc=f"video ({renderer})", unit="episode") as progress,
        ):
            results = []
            for episode in range(episodes):
                results.append(run_episode(env, policy, seed, episode, _Camera(env, video, episode)))
                progress.set_postfix(frames=video.frames, refresh=False)
                progress.update()
        return Recording(path, tuple(results), video.frames, renderer)


@dataclass(frozen=True)
class _Camera:
    """Watches one episode: draws every state."""

    env: TaskEnv
    video: VideoWriter
    episode: int

    def __call__(self, result: StepResult | None) -> None:
        seconds = self.env.steps / self.env.spec.control_rate_hz
        outcome = "success" if result is not None and result.success else ""
        text = f"episode {self.episode}    {seconds:5.2f} s    {outcome}"
        self.video.add(captioned(self.env.render(WIDTH, HEIGHT), text))

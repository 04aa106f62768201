# SPDX-License-Identifier: Apache-2.0
"""Draws the pictures of docs/otpr.md: ``python docs/figures/make.py plans``, ``critic RUN`` and ``compatibility RUN``.

``plans`` needs nothing. The others read the replay and the critic in the newest checkpoint of a run of ``otpr train otpr``.
``--out DIR`` is where the picture goes, this folder unless given.
"""

import argparse
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import matplotlib
import torch
from torch import Tensor
from tqdm import trange

from otpr_trainer import run as runs
from otpr_trainer import start, transport
from otpr_trainer.algorithms import otpr
from otpr_trainer.config import from_json
from otpr_trainer.coupling import Coupling, Weights
from otpr_trainer.critic import INITIAL_LOGIT, ChunkCritic
from otpr_trainer.data import demonstrations
from otpr_trainer.data.replay import Origin
from otpr_trainer.learner import Setup
from otpr_trainer.selection import CriticConfig

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).parent
COLOURS = {Origin.DEMONSTRATION: "tab:blue", Origin.SUCCESS: "tab:green", Origin.FAILURE: "tab:red"}


def plans(out: Path) -> Path:
    """Plans of a toy problem: what epsilon, mask and a relaxed column side do."""
    generator = torch.Generator().manual_seed(0)
    s, a = (torch.sort(torch.randn(10, generator=generator, dtype=torch.float64)).values for _ in range(2))
    cost = (s[:, None] - a[None]) ** 2
    keypoints = [(2, 7), (7, 2)]
    mask = transport.keypoint_mask(10, 10, keypoints)
    bad = cost.clone()
    bad[:, ::2] += 10.0
    panels = [
        *((f"balanced, $\\epsilon$ = {epsilon:g}", transport.balanced(cost, epsilon)) for epsilon in (0.01, 0.1, 1.0)),
        ("masked: (2, 7) and (7, 2)", transport.balanced(cost, 0.1, mask=mask)),
        ("every other chunk bad: balanced", transport.balanced(bad, 0.1)),
        ("every other chunk bad: semi-relaxed", transport.semi_relaxed(bad, 0.1)),
    ]
    figure, axes = plt.subplots(1, len(panels), figsize=(18, 3.4), layout="constrained")
    for axis, (title, plan) in zip(axes, panels, strict=True):
        image = axis.imshow(plan.compatibility, cmap="viridis", vmin=0, vmax=10)
        axis.set(title=title, xlabel="chunk", ylabel="state")
        axis.title.set_fontsize(10)
    figure.colorbar(image, ax=axes, label="H")
    return _save(figure, out / "plans.png")


def critic(directory: Path, out: Path, updates: int = 2500, held_out: int = 15) -> Path:
    """Values along episodes that no critic has seen: the usual critic, a pessimistic start, and observed returns."""
    learner = _learner(directory)
    rows = learner.replay.transitions
    starts = [0, *(torch.nonzero(rows.state.diff() != 1)[:, 0] + 1).tolist(), len(rows)]
    episodes = [torch.arange(first, last) for first, last in pairwise(starts)]
    demonstrations = [episode for episode in episodes if rows.origin[episode[0]] == Origin.DEMONSTRATION]
    played = [episode for episode in episodes if rows.origin[episode[0]] != Origin.DEMONSTRATION]
    known, unseen = torch.cat([*demonstrations, *played[:-held_out]]), played[-held_out:]
    variants = {"as usual": (0.0, False), "pessimistic start": (INITIAL_LOGIT, False), "and observed returns": (INITIAL_LOGIT, True)}
    figure, axes = plt.subplots(1, len(variants), figsize=(15, 4), sharey=True, layout="constrained")
    for axis, (title, (logit, bounded)) in zip(axes, variants.items(), strict=True):
        values = _train(learner, known, logit, bounded, updates)
        for episode in [*unseen, *demonstrations]:
            state = rows.state[episode]
            chunks = learner.replay.candidates[state][:, :, : learner.executed_length]
            value = values.lower_bound(values.values(learner.replay.condition[state], chunks)).mean(1)
            axis.plot(value, color=COLOURS[Origin(int(rows.origin[episode[0]]))], alpha=0.6)
        axis.set(title=title, xlabel="step", ylim=(0, 1))
    axes[0].set_ylabel("value")
    return _save(figure, out / "critic.png")


def compatibility(directory: Path, out: Path) -> Path:
    """H against Q on one block of the run's replay, for each way of weighting."""
    learner = _learner(directory)
    rows = learner.replay.transitions.rows(torch.randperm(len(learner.replay), generator=learner.generator)[:48])
    condition = learner.replay.condition[rows.state]
    chunks = learner.replay.candidates[rows.state][:, :2].flatten(0, 1)
    q = learner.critic.lower_bound(learner.critic.cross_values(condition, chunks[:, : learner.executed_length]))
    figure, axes = plt.subplots(1, 4, figsize=(16, 3.6), layout="constrained")
    for axis, weights in zip(axes, (Weights.BALANCED, Weights.SEMI_RELAXED, Weights.SOFTMAX, Weights.ARGMAX), strict=True):
        coupling = Coupling(weights, learner.config.support, 1, 1)
        for _ in range(40):  # epsilon settles
            h = coupling.compatibility(-q)
        axis.scatter((q - q.mean(1, keepdim=True)).flatten(), h.flatten(), s=3, alpha=0.4)
        axis.set(title=weights.value, xlabel="Q - mean of the state's row", yscale="symlog")
    axes[0].set_ylabel("H")
    return _save(figure, out / "compatibility.png")


def _learner(directory: Path) -> otpr.Learner:
    """The learner of a run at its newest checkpoint."""
    run = runs.load(directory)
    demos = demonstrations.load(Path(run.config.demos), run.config.task)
    setup = Setup(run.config.task, demos, run.config.seed, start=start.kept(run))
    learner = otpr.Learner(from_json(otpr.Config, run.config.settings), setup)
    learner.restore(run.newest_checkpoint())
    return learner


def _train(learner: otpr.Learner, known: Tensor, logit: float, bounded: bool, updates: int) -> ChunkCritic:
    """A new critic of the same size, trained on the rows ``known`` of the learner's replay; it becomes the learner's own."""
    config = learner.config = replace(learner.config, observed_returns=bounded)
    sizes = CriticConfig(config.critic_width, config.critic_depth, config.critic_heads, config.pessimism)
    torch.manual_seed(0)
    learner.critic = ChunkCritic(
        sizes.network(learner.policy_config),
        learning_rate=config.critic_learning_rate,
        target_rate=config.target_rate,
        pessimism=config.pessimism,
        initial_logit=logit,
    )
    own = known[known >= learner.demonstrations]
    for _ in trange(updates, desc="critic"):
        expert_rows = torch.randint(learner.demonstrations, (config.batch_size // 2,), generator=learner.generator)
        own_rows = own[torch.randint(len(own), (config.batch_size // 2,), generator=learner.generator)]
        learner.critic.step(learner.critic_loss(learner.replay.transitions.rows(torch.cat([expert_rows, own_rows]))))
    return learner.critic


def _save(figure: "plt.Figure", path: Path) -> Path:
    figure.savefig(path, dpi=80)
    plt.close(figure)
    return path


def main(words: list[str] | None = None) -> None:
    """Draws one picture and says where it is. ``words``: of the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", choices=("plans", "critic", "compatibility"))
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--out", type=Path, default=HERE, metavar="DIR")
    arguments = parser.parse_args(words)
    if arguments.picture == "plans":
        print(plans(arguments.out))
    else:
        print({"critic": critic, "compatibility": compatibility}[arguments.picture](arguments.run, arguments.out))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

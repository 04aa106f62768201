# SPDX-License-Identifier: Apache-2.0
"""An algorithm outside the package, as small as one can be: plays episodes with the policy and clones its own successes."""

import copy
from dataclasses import dataclass

import torch

from otpr_policy.chunk import episode_rng
from otpr_policy.receding_horizon import RecedingHorizon
from otpr_sim import registry
from otpr_sim.env import episode_seed
from otpr_trainer import learner
from otpr_trainer.checkpoint import Checkpoint, optimizer_state, restore_optimizer
from otpr_trainer.commands.train import command
from otpr_trainer.config import setting
from otpr_trainer.learner import Setup, retry_seed
from otpr_trainer.policy import TorchPolicy

NAME = "toy"
NEEDS_INIT = True


@dataclass(frozen=True)
class Config:
    steps: int = setting(150, "environment steps")
    learning_rate: float = setting(1e-2, "Adam's")


class Learner(learner.Learner):
    unit, log_every, checkpoint_every = "step", 30, 40

    def __init__(self, config: Config, setup: Setup) -> None:
        self.total, self.step, self._seed = config.steps, 0, setup.seed
        self.policy = copy.deepcopy(setup.start)
        self.policy_config = self.policy.config
        self._optimizer = torch.optim.Adam(self.policy.parameters(), config.learning_rate)
        self._generator = torch.Generator().manual_seed(setup.seed)
        self._env = registry.make(setup.task)
        self._replay = torch.zeros(0, 5)  # rows of observation (3,) and action (2,)
        self._successes: list[bool] = []
        self._evaluated: list[dict[str, float]] = [{"success_rate": 0.0, "episodes": 0}]

    def update(self):
        rows, success = self._play(len(self._successes))
        self.step += len(rows)
        self._successes.append(success)
        self._replay = torch.cat([self._replay, rows]) if success else self._replay
        if len(self._successes) % 5 == 0:
            self._evaluated.append({"success_rate": sum(self._successes[-5:]) / 5, "episodes": len(self._successes)})
        if len(self._replay) == 0:
            return {"toy/loss": 1.0, "toy/episode_steps": len(rows)}
        batch = self._replay[torch.randint(len(self._replay), (16,), generator=self._generator)]
        k = torch.randint(self.policy_config.train_steps, (16,), generator=self._generator)
        eps = torch.randn(16, 1, 2, generator=self._generator)
        x_k = self.policy.schedule.add_noise(self.policy.action.normalize(batch[:, None, 3:]), k, eps)
        loss = ((eps - self.policy.network(x_k, k, self.policy.condition(batch[:, None, :3]))) ** 2).mean()
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        return {"toy/loss": loss.detach(), "toy/episode_steps": len(rows)}

    def _play(self, episode):
        controller = RecedingHorizon(TorchPolicy.with_sampler(self.policy, "ddim", 2))
        controller.reset(episode_rng(self._seed, episode))
        observation, rows = self._env.spec.observation.flatten(self._env.reset(episode_seed(self._seed, episode))), []
        while True:
            action = controller.act(observation)
            rows.append(torch.tensor([*observation, *action], dtype=torch.float32))
            result = self._env.step(action)
            observation = self._env.spec.observation.flatten(result.observation)
            if result.terminated or result.truncated:
                return torch.stack(rows), result.success

    def checkpoint(self):
        tensors = {f"policy.{name}": tensor for name, tensor in self.policy.state_dict().items()}
        tensors |= optimizer_state(self._optimizer, "optimizer.")
        tensors |= {"replay": self._replay, "generator": self._generator.get_state()}
        return Checkpoint(self.step, tensors, {"successes": self._successes, "evaluated": self._evaluated})

    def restore(self, checkpoint):
        self.policy.load_state_dict(checkpoint.policy_tensors())
        restore_optimizer(self._optimizer, checkpoint.tensors, "optimizer.")
        self._replay = checkpoint.tensors["replay"]
        self._generator.set_state(checkpoint.tensors["generator"])
        self._successes, self._evaluated = checkpoint.values["successes"], checkpoint.values["evaluated"]
        self.step = checkpoint.step

    def diverted(self, attempt):
        self._generator.manual_seed(retry_seed(self._seed, self.step, attempt))

    def progress(self):
        return {"success": f"{sum(self._successes[-20:])}/{len(self._successes[-20:])}"}

    def evaluations(self):
        new, self._evaluated = self._evaluated, []
        return new

    def close(self):
        self._env.close()


COMMAND = command(__name__, "Clone the policy's own successes.")

# SPDX-License-Identifier: Apache-2.0
"""The critic of action chunks while it learns: an ensemble of Q(s, a) with slow targets.

What is particular, and why, is measured in docs/otpr.md: it starts pessimistic, and a return that was seen bounds a value from below.
"""

import copy

import torch
from torch import Tensor
from torch.nn import functional

from otpr_trainer.checkpoint import optimizer_state, restore_optimizer, select
from otpr_trainer.networks.critic import ALL, EnsembleCritic, Heads
from otpr_trainer.selection import pessimistic_value

INITIAL_LOGIT = -4.0
"""Values start at 0.02. From the usual 0.5 they take thousands of steps to sink in states that lead nowhere, because these bootstrap from
one another at gamma^k a step; until then failures look better than progress, and whoever acts by the critic walks into them."""

ASCENT_EPSILON = 1e-5  # Adam's, of chunks that climb, as in the code of DIPO and DDiffPG; a gradient far below it moves nothing


class ChunkCritic:
    """E critics of the executed part of a chunk, their targets, and one optimiser.

    Attributes:
        ensemble: the critics that learn; they are what selection at run time uses.
        pessimism: standard deviations of the ensemble that :meth:`lower_bound` lies below its mean.
    """

    def __init__(
        self,
        ensemble: EnsembleCritic,
        *,
        learning_rate: float,
        target_rate: float | None,
        pessimism: float,
        initial_logit: float = INITIAL_LOGIT,
    ) -> None:
        """``target_rate``: share by which targets follow per gradient step; None for a critic without targets."""
        self.ensemble = ensemble
        with torch.no_grad():
            ensemble.head_bias.fill_(initial_logit)
        self.pessimism = pessimism
        self._target = None if target_rate is None else copy.deepcopy(ensemble).requires_grad_(False)
        self._target_rate = target_rate
        self._optimizer = torch.optim.AdamW(ensemble.parameters(), learning_rate, weight_decay=1e-4, fused=True)

    @torch.no_grad()
    def values(self, condition: Tensor, chunks: Tensor) -> Tensor:
        """Q of several chunks in each state, (E, B, S). condition: (B, To * Do); chunks: executed parts, (B, S, L, Da)."""
        return torch.sigmoid(_logits(self.ensemble, condition, chunks))

    @torch.no_grad()
    def cross_values(self, condition: Tensor, chunks: Tensor) -> Tensor:
        """Q of every chunk in every state, (E, n, m). condition: (n, To * Do); chunks: executed parts, (m, L, Da)."""
        return torch.sigmoid(self.ensemble.cross(condition, chunks))

    def chunk_values(self, condition: Tensor, chunk: Tensor) -> Tensor:
        """Q of one chunk in each state, (E, B), whose gradient passes to the chunk alone and never to the critics.

        condition: (B, To * Do); chunk: executed parts, (B, L, Da).
        """
        frozen = {name: parameter.detach() for name, parameter in self.ensemble.named_parameters()}
        return torch.sigmoid(torch.func.functional_call(self.ensemble, frozen, (condition, chunk)))

    def action_gradient(self, condition: Tensor, chunk: Tensor, pessimism: float = 0.0) -> Tensor:
        """dQ/da at some chunks, (B, L, Da), Q read off the ensemble with ``pessimism``. Shapes as in :meth:`chunk_values`."""
        chunk = chunk.detach().requires_grad_()
        value = pessimistic_value(self.chunk_values(condition, chunk), pessimism)
        return torch.autograd.grad(value.sum(), chunk)[0]

    def ascended(self, condition: Tensor, chunk: Tensor, steps: int, learning_rate: float) -> Tensor:
        """Chunks (B, L, Da) some steps of Adam up the pessimistic Q, within [-1, 1] (DIPO, DDiffPG). Shapes as in :meth:`chunk_values`."""
        action = chunk.clone()
        optimizer = torch.optim.Adam([action], learning_rate, eps=ASCENT_EPSILON)
        for _ in range(steps):
            action.grad = -self.action_gradient(condition, action, self.pessimism)
            optimizer.step()
            action.clamp_(-1.0, 1.0)
        return action

    def lower_bound(self, values: Tensor) -> Tensor:
        """What selection at run time reads off an ensemble: (E, ...) to (...)."""
        return pessimistic_value(values, self.pessimism)

    @torch.no_grad()
    def target_values(self, condition: Tensor, chunks: Tensor, generator: torch.Generator) -> Tensor:
        """The smaller of two target critics drawn at random, (B, S) (REDQ, Chen et al. 2021, arXiv 2101.05982)."""
        assert self._target is not None
        pair = torch.randperm(self.ensemble.heads, generator=generator)[:2]
        return torch.sigmoid(_logits(self._target, condition, chunks, pair)).min(0).values

    def loss(self, condition: Tensor, chunk: Tensor, target: Tensor) -> Tensor:
        """Cross entropy of Q(s, a) with ``target`` (B,) in [0, 1], mean over pairs and heads."""
        logits = self.ensemble(condition, chunk)
        return functional.binary_cross_entropy_with_logits(logits, target.expand_as(logits))

    def step(self, loss: Tensor) -> Tensor:
        """One gradient step on ``loss``, and the targets follow; returns the gradient's norm."""
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.ensemble.parameters() if p.grad is not None])
        self._optimizer.step()
        if self._target is not None and self._target_rate is not None:
            with torch.no_grad():  # or autograd would remember every step
                torch._foreach_lerp_(list(self._target.parameters()), list(self.ensemble.parameters()), self._target_rate)
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """State by name; the ensemble as ``critic.*``, which is what selection reads."""
        tensors = {f"critic.{name}": tensor for name, tensor in self.ensemble.state_dict().items()}
        if self._target is not None:
            tensors |= {f"target_critic.{name}": tensor for name, tensor in self._target.state_dict().items()}
        return tensors | optimizer_state(self._optimizer, "critic_optimizer.")

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of :meth:`tensors`. Raises RuntimeError on another network's."""
        self.ensemble.load_state_dict(select(tensors, "critic."))
        if self._target is not None:
            self._target.load_state_dict(select(tensors, "target_critic."))
        restore_optimizer(self._optimizer, tensors, "critic_optimizer.")


def _logits(ensemble: EnsembleCritic, condition: Tensor, chunks: Tensor, heads: Heads = ALL) -> Tensor:
    """Logits (E, B, S); the state's term is computed once for all its chunks."""
    chunk_term = ensemble.chunk_term(chunks.flatten(0, 1), heads).unflatten(1, chunks.shape[:2])
    return ensemble.from_terms(ensemble.condition_term(condition, heads)[:, :, None] + chunk_term, heads)

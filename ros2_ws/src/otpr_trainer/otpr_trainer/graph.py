# SPDX-License-Identifier: Apache-2.0
"""The policy as one static ONNX graph: the chain unrolled, what does not depend on inputs folded into constants, its source inside.

Written apart from the policy that trains, so that the proof of :mod:`otpr_trainer.export` compares two computations, not one with itself.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional

from otpr_trainer.bridge import BridgePolicy
from otpr_trainer.bridge_sources import ArtifactSource
from otpr_trainer.diffusion import NOISE_CLIP, ReverseChain
from otpr_trainer.folded import FoldedChain, constant, half_mish
from otpr_trainer.graft import SOURCE_CHUNK, graft
from otpr_trainer.networks.critic import EnsembleCritic
from otpr_trainer.networks.mlp import ChunkNetwork, DiffusionMLP
from otpr_trainer.policy import TorchPolicy
from otpr_trainer.selection import SelectingPolicy, pessimistic_value

OPSET = 18  # the oldest with Mish as one operator, so that old runtimes read the file


class PolicyGraph(nn.Module):
    """The whole policy as one static computation: observation (1, To, Do) and noise (1, S * n, Ta, Da) to action (1, Ta, Da).

    A policy that reads its previous chunk has that as a third input, (1, Ta, Da); one that starts from another policy's graph has that
    policy's action; one that reads what is committed has the actions (1, Ta, Da) and their weights (1, Ta).

    With S > 1 candidates the S chains are rows of one batch, which share the condition's term, and a critic picks one of them.
    """

    time_terms: Tensor

    def __init__(self, policy: TorchPolicy, with_chain: bool) -> None:
        """``with_chain``: also output the normalised chains, (S, K + 1, Ta, Da), and for S > 1 the candidates' values, (S,)."""
        super().__init__()
        self.policy = policy.policy
        source = self.policy.source if isinstance(self.policy, BridgePolicy) else None
        self.source_file = source.file if isinstance(source, ArtifactSource) else None
        self.reverse = policy.reverse
        self.candidates = policy.candidates
        self.executed_length = policy.spec.executed_length
        self.reads_committed = policy.spec.reads_committed
        self.with_chain = with_chain
        self.critic: CriticGraph | None = None
        if isinstance(policy, SelectingPolicy) and policy.candidates > 1:
            self.critic = CriticGraph(policy.critic, policy.pessimism)
        self.networks = [self.policy.network_at(k) for k in self.reverse.timesteps]
        self.folded: FoldedChain | None = None
        if isinstance(self.reverse, ReverseChain):
            self.folded = FoldedChain([network for network in self.networks if isinstance(network, DiffusionMLP)], self.reverse)
            return
        with torch.no_grad():
            terms = [network.time_term(torch.tensor([k])) for network, k in zip(self.networks, self.reverse.timesteps, strict=True)]
            self.register_buffer("time_terms", torch.cat(terms))

    @property
    def input_names(self) -> list[str]:
        """Of :meth:`forward`, in order."""
        third = [SOURCE_CHUNK] if self.source_file is not None else ["previous"] if self.policy.config.spec.reads_previous else []
        return ["observation", "noise", *third, *(["committed", "committed_weight"] if self.reads_committed else [])]

    def forward(self, observation: Tensor, noise: Tensor, *others: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Runs all denoising steps, then chooses."""
        third, committed = (others[:-2], others[-2:]) if self.reads_committed else (others, ())
        condition = self.policy.condition(observation)
        draws = noise if self.candidates == 1 else noise.reshape(self.candidates, -1, *noise.shape[2:])
        chain = self._chains(condition, self._start(observation, condition, draws, *third), draws, *committed)
        chunk, outputs = chain[-1], [torch.stack(chain, dim=1)] if self.with_chain else []
        if self.critic is not None:
            values = self.critic(condition, chunk[:, : self.executed_length])
            chunk = chunk.index_select(0, values.argmax(dim=0, keepdim=True))  # ONNX takes the first of equals, as torch does
            outputs += [values] if self.with_chain else []
        action = self.policy.physical_action(chunk)
        return (action, *outputs) if outputs else action

    def _start(self, observation: Tensor, condition: Tensor, draws: Tensor, third: Tensor | None = None) -> Tensor:
        """Where the chains start, (S, Ta, Da), normalised."""
        if self.source_file is not None:
            assert third is not None
            return self.policy.action.normalize(third)
        return self.policy.start(observation, condition, draws[:, : self.policy.start_draws], third)

    def _chains(
        self, condition: Tensor, start: Tensor, draws: Tensor, committed: Tensor | None = None, weight: Tensor | None = None
    ) -> list[Tensor]:
        """Normalised chunks of each denoising step, start first, K + 1 tensors (S, Ta, Da)."""
        chain = self._steps(condition, start, draws[:, self.policy.start_draws :], committed, weight)
        chain[-1] = self.policy.finish(condition, chain[-1])
        return chain

    def _steps(self, condition: Tensor, start: Tensor, draws: Tensor, committed: Tensor | None, weight: Tensor | None) -> list[Tensor]:
        if self.folded is not None:
            painted = None if committed is None or weight is None else self._painted(committed, weight)
            return [x.reshape(start.shape) for x in self.folded(start.flatten(1), condition, draws.flatten(2), painted)]
        assert committed is None  # only a diffusion is painted over
        reverse = self.reverse
        condition_terms = {network: network.condition_term(condition) for network in dict.fromkeys(self.networks)}
        chain, used = [start], 0
        for step, network in enumerate(self.networks):
            eps = self._denoise(network, chain[-1], condition_terms[network] + self.time_terms[step])
            x = reverse.mean(step, chain[-1], eps)
            if reverse.std[step] > 0.0:
                x = x + float(reverse.std[step]) * draws[:, used].clamp(-NOISE_CLIP, NOISE_CLIP)
                used += 1
            chain.append(x)
        return chain

    def _painted(self, committed: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """What the predicted clean chunk is drawn to, times its weight, and what is left of the prediction, both (1, Ta * Da)."""
        weights = weight.unsqueeze(-1).expand(committed.shape)
        return (self.policy.action.normalize(committed) * weights).flatten(1), (1.0 - weights).flatten(1)

    def _denoise(self, network: ChunkNetwork, x_k: Tensor, context: Tensor) -> Tensor:
        if not isinstance(network, DiffusionMLP):
            return network.denoise(x_k, context)
        x = network.from_chunk(x_k.flatten(1)) + context
        for layer in network.trunk:
            x = 2.0 * half_mish(-x) if isinstance(layer, nn.Mish) else layer(x)
        return x.reshape(-1, *network.output_shape)


class CriticGraph(nn.Module):
    """An ensemble critic's values of S chunks for one condition.

    What all heads read is multiplied once for all of them, and their LayerNorms are one operator. Hidden layers stay one product for each
    head: ONNX Runtime packs the weights of a two-dimensional product when it loads the file, but not those of a batched one, and 4 heads of
    2 x 256 then take 30 % longer.
    """

    def __init__(self, critic: EnsembleCritic, pessimism: float) -> None:
        super().__init__()
        self.heads, self.width = critic.heads, critic.width
        self.from_condition = constant(_side_by_side(critic.from_condition))
        self.from_chunk = constant(_side_by_side(critic.from_chunk))
        self.first_bias = constant(_side_by_side(critic.first_bias))
        self.hidden = nn.ParameterList(constant(weight) for weight in critic.hidden)
        self.hidden_bias = nn.ParameterList(constant(bias) for bias in critic.hidden_bias)
        self.logit = constant(critic.head[..., 0])
        self.logit_bias = constant(critic.head_bias[:, 0, 0])
        self.pessimism = pessimism

    def forward(self, condition: Tensor, chunks: Tensor) -> Tensor:
        """Values (S,). condition: (1, To * Do); chunks: executed parts (S, L, Da), both normalised."""
        x = torch.addmm(torch.addmm(self.first_bias, condition, self.from_condition), chunks.flatten(1), self.from_chunk)
        for weight, bias in zip(self.hidden, self.hidden_bias, strict=True):
            heads = self._activate(x).flatten(1).split(self.width, dim=1)
            x = torch.cat([torch.addmm(bias[i], head, weight[i]) for i, head in enumerate(heads)], dim=1)
        logits = (self._activate(x) * self.logit).sum(-1) + self.logit_bias
        # Not Sigmoid: ONNX Runtime's is exact to 6e-8 only, so that far from success rounding would choose.
        return pessimistic_value(1.0 / (1.0 + (-logits.T).exp()), self.pessimism)

    def _activate(self, x: Tensor) -> Tensor:
        """x: all heads side by side (S, heads * width). Returns (S, heads, width)."""
        return functional.relu(functional.layer_norm(x.reshape(-1, self.heads, self.width), (self.width,)))


def _side_by_side(heads: Tensor) -> Tensor:
    """(heads, inputs, width) to (inputs, heads * width)."""
    return heads.transpose(0, 1).flatten(1)


def to_onnx(policy: TorchPolicy, with_chain: bool = False) -> onnx.ModelProto:
    """The policy's graph, weights inside, float32, static shapes. ``with_chain``: see :class:`PolicyGraph`."""
    spec = policy.spec
    graph = PolicyGraph(policy, with_chain).eval()
    example = [torch.zeros(1, spec.observation_horizon, spec.observation.size), torch.zeros(1, *policy.noise_shape)]
    chunk_inputs = [name for name in graph.input_names[2:] if name != "committed_weight"]
    example += [torch.zeros(1, spec.chunk_length, spec.action.size)] * len(chunk_inputs)
    example += [torch.zeros(1, spec.chunk_length)] * spec.reads_committed
    extra = ["chain", "values"] if graph.critic is not None else ["chain"]
    with _quiet():
        program = torch.onnx.export(
            graph,
            tuple(example),
            input_names=graph.input_names,
            output_names=["action", *extra] if with_chain else ["action"],
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # the exporter's stack traces: large, and full of this machine's paths
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    return model if graph.source_file is None else graft(graph.source_file, model)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's remarks on libraries that we do not use."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

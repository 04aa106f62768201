# SPDX-License-Identifier: Apache-2.0
"""A diffusion's reverse chain as an exported graph computes it: with whatever is constant folded into weights.

On one row of 256 numbers ONNX Runtime takes 0.4 us for any operator, a third of a whole inference in all, so fewer of them is faster.
The chain x_{k+1} = a_k x0_k + b_k x_k + sigma_k z_k of :mod:`otpr_trainer.diffusion` is run on

    y_k = s_k (x_k - m_k),   s_0 = 1,  s_{k+1} = s_k / b_k,   m_k = sqrt(1 - alpha_bar_k) bias of the last layer

in which a step is one product for the clean chunk, a clip, and sums:

    c = s_{k+1} a_k,   c x0_k = clip(c (y_k / s_k - sqrt(1 - alpha_bar_k) W h) / sqrt(alpha_bar_k), -c, c)
    y_{k+1} = y_k + c x0_k + s_{k+1} (sigma_k z_k - m_{k+1}) + s_k m_k
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from otpr_policy.spec import Array
from otpr_trainer.diffusion import NOISE_CLIP, ReverseChain
from otpr_trainer.networks.mlp import DiffusionMLP


class FoldedMLP(nn.Module):
    """A :class:`DiffusionMLP` whose hidden layers yield -x, which is what :func:`half_mish` reads."""

    def __init__(self, network: DiffusionMLP) -> None:
        super().__init__()
        linear = [layer for layer in network.trunk if isinstance(layer, nn.Linear)]
        first = network.from_chunk
        self.from_chunk = constant(-first.weight.T)
        self.bias = constant(-first.bias)
        self.from_condition = constant(-network.from_condition.weight.T)
        self.weights = nn.ParameterList(constant(-2.0 * layer.weight.T) for layer in linear[:-1])
        self.biases = nn.ParameterList(constant(-layer.bias[None]) for layer in linear[:-1])
        self.output = constant(2.0 * linear[-1].weight.T)
        self.output_bias: Array = linear[-1].bias.detach().double().numpy()

    def last_hidden(self, y: Tensor, scale: float, context: Tensor) -> Tensor:
        """Input of the last layer, halved, (S, width). y: (S, Ta * Da), of which ``scale`` times it is shown; context: (1, width)."""
        x = torch.addmm(context, y, self.from_chunk, alpha=scale)
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = torch.addmm(bias, half_mish(x), weight)
        return half_mish(x)


class FoldedChain(nn.Module):
    """The reverse chain of one or two networks; see the module."""

    def __init__(self, networks: Sequence[DiffusionMLP], reverse: ReverseChain) -> None:
        """``networks``: the one that is asked at each step."""
        super().__init__()
        self.reverse = reverse
        unique = list(dict.fromkeys(networks))
        self.networks = nn.ModuleList(FoldedMLP(network) for network in unique)
        self.of_step = [unique.index(network) for network in networks]
        times = [network.time_term(torch.tensor([k])) for network, k in zip(networks, reverse.timesteps, strict=True)]
        biases = np.stack([self._network(step).output_bias for step in range(reverse.steps)])
        self.shift: Array = np.sqrt(1.0 - reverse.alpha_bar)[:, None] * biases  # m, (n, Ta * Da)
        self.scale: Array = np.cumprod([1.0, *(1.0 / reverse.x_k_weight[:-1])])  # s, (n,)
        shown = [-torch.as_tensor(m).float() @ network.from_chunk.weight.T for m, network in zip(self.shift, networks, strict=True)]
        terms = [self._network(i).bias - time + minus for i, (time, minus) in enumerate(zip(times, shown, strict=True))]
        self.context_terms = constant(torch.cat(terms))

    def forward(self, start: Tensor, condition: Tensor, noise: Tensor, painted: tuple[Tensor, Tensor] | None = None) -> list[Tensor]:
        """The normalised chunks of all steps, start first, n + 1 tensors (S, Ta * Da).

        start: (S, Ta * Da); condition: (1, condition_size); noise: (S, step_draws, Ta * Da); painted: what is added to each clean chunk
        and what is left of it before, both (1, Ta * Da).
        """
        reverse, scale, shift = self.reverse, self.scale, self.shift
        contexts = self._contexts(condition)
        offsets = self._offsets(noise)
        y, chain = start - _row(shift[0]), [start]
        for step in range(reverse.steps):
            last = step + 1 == reverse.steps
            reach = 1.0 if last else float(scale[step + 1] * reverse.x_0_weight[step])
            signal, deviation = float(np.sqrt(reverse.alpha_bar[step])), float(np.sqrt(1.0 - reverse.alpha_bar[step]))
            hidden = self._network(step).last_hidden(y, float(1.0 / scale[step]), contexts[step])
            weight = self._network(step).output
            x_0 = torch.addmm(y, hidden, weight, beta=reach / (float(scale[step]) * signal), alpha=-reach * deviation / signal)
            x_0 = x_0.clamp(-reach, reach)
            if painted is not None:
                x_0 = x_0 * painted[1] + reach * painted[0]
            if last:
                chain.append(x_0)
                break
            y = _sum(y, x_0, offsets[step])
            chain.append(y / float(scale[step + 1]) + _row(shift[step + 1]))
        return chain

    def _network(self, step: int) -> FoldedMLP:
        network = self.networks[self.of_step[step]]
        assert isinstance(network, FoldedMLP)
        return network

    def _contexts(self, condition: Tensor) -> list[Tensor]:
        """What the first layer adds at each step, n tensors (1, width)."""
        terms = [condition @ network.from_condition for network in self.networks]  # type: ignore[operator]
        if len(terms) == 1:
            return list((terms[0] + self.context_terms).split(1))
        return [terms[i] + self.context_terms[step : step + 1] for step, i in enumerate(self.of_step)]

    def _offsets(self, noise: Tensor) -> list[Tensor]:
        """What each step but the last adds, n - 1 tensors (S, Ta * Da) or, without noise, (1, Ta * Da)."""
        reverse, scale, shift = self.reverse, self.scale, self.shift
        shifts = scale[:-1, None] * shift[:-1] - scale[1:, None] * shift[1:]
        offsets = [_row(row) for row in shifts]
        noisy = [step for step in range(reverse.steps - 1) if reverse.std[step] > 0.0]
        if not noisy:
            return offsets
        rows = len(noise)
        draws = (noise if rows == 1 else noise.transpose(0, 1)).reshape(len(noisy) * rows, -1).clamp(-NOISE_CLIP, NOISE_CLIP)
        std = np.repeat(scale[1:][noisy] * reverse.std[noisy], rows)
        scaled = draws * constant(torch.as_tensor(std[:, None])) + constant(torch.as_tensor(np.repeat(shifts[noisy], rows, axis=0)))
        for step, offset in zip(noisy, scaled.split(rows), strict=True):
            offsets[step] = offset
        return offsets


def half_mish(minus_x: Tensor) -> Tensor:
    """mish(x) / 2 of -x. With q = sigmoid(-x): mish(x) = x tanh(log(1 + e^x)) = x (1 - q^2) / (1 + q^2) = -2 x (softsign(q^2) - 1/2).

    ONNX Runtime computes Mish as Softplus, Tanh and Mul, and its Softplus is not vectorised: 3.7 us on 256 numbers against 1.9 us.
    """
    q = minus_x.sigmoid()
    return minus_x * (_softsign(q * q) - 0.5)


def _softsign(x: Tensor) -> Tensor:
    """The function x / (1 + |x|), which the exporter would write as three operators."""
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic("Softsign", (x,), dtype=x.dtype, shape=x.shape)
    return nn.functional.softsign(x)


def _sum(first: Tensor, *others: Tensor) -> Tensor:
    """The sum, as one operator."""
    if torch.onnx.is_in_onnx_export():
        return torch.onnx.ops.symbolic("Sum", (first, *others), dtype=first.dtype, shape=first.shape)
    return first + sum(others)


def constant(values: Tensor) -> nn.Parameter:
    """The values as a weight of the graph, not trained."""
    return nn.Parameter(values.detach().float().contiguous(), requires_grad=False)


def _row(values: Array) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32)[None]

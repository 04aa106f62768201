# SPDX-License-Identifier: Apache-2.0
"""From a training run to one policy file that proves that it computes what was trained.

The exported graph is written apart from the policy that trains (the network's first layer is split, the time embedding folded
into constants, the chain unrolled), so the proof compares two computations, not one with itself:

1. per denoising step, on a graph that also outputs the chain;
2. end to end, on the very graph that is written;
3. in the task, both policies on the same episodes with the same noise.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from otpr_policy import __version__
from otpr_policy.artifact import Denoising, Evaluation, Manifest, Parity, PolicyArtifact, Provenance, embed, parse
from otpr_policy.errors import ArtifactError
from otpr_policy.files import check_writable, refuse_existing, write_bytes
from otpr_policy.spec import Array
from otpr_trainer.diffusion import NOISE_CLIP, ReverseChain
from otpr_trainer.evaluate import EvaluationResult, evaluate
from otpr_trainer.policy import DiffusionPolicy, TorchPolicy
from otpr_trainer.run import Run, utc_now
from otpr_trainer.sources import GraphSource, WeightsSource

TOLERANCE = 1e-4  # of the range, for each denoising step and end to end
PROOF_INPUTS = 256
OPSET = 18  # the oldest with Mish as one operator, so that old runtimes read the file


class PolicyGraph(nn.Module):
    """The whole policy as one static computation: observation (1, To, Do) and noise (1, n, Ta, Da) to action (1, Ta, Da)."""

    time_terms: Tensor

    def __init__(self, policy: DiffusionPolicy, reverse: ReverseChain, with_chain: bool) -> None:
        """``with_chain``: also output the normalised chain, (1, K + 1, Ta, Da)."""
        super().__init__()
        self.policy = policy
        self.reverse = reverse
        self.with_chain = with_chain
        with torch.no_grad():
            self.register_buffer("time_terms", policy.network.time_term(torch.tensor(reverse.timesteps)))

    def forward(self, observation: Tensor, noise: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Runs all denoising steps."""
        network, reverse = self.policy.network, self.reverse
        condition_term = network.condition_term(self.policy.condition(observation))
        chain, used = [noise[:, 0]], 1
        for step in range(reverse.steps):
            eps = network.denoise(chain[-1], condition_term + self.time_terms[step])
            x = reverse.mean(step, chain[-1], eps)
            if reverse.std[step] > 0.0:
                x = x + float(reverse.std[step]) * noise[:, used].clamp(-NOISE_CLIP, NOISE_CLIP)
                used += 1
            chain.append(x)
        action = self.policy.physical_action(chain[-1])
        return (action, torch.stack(chain, dim=1)) if self.with_chain else action


def export(
    run: Run,
    output: Path,
    *,
    sampler: str,
    steps: int | None,
    eta: float,
    episodes: int,
    seed: int,
    workers: int,
    overwrite: bool = False,
) -> PolicyArtifact:
    """Exports a run's newest checkpoint to ``output`` and proves it; the file is written only when the proof holds.

    Args:
        run: training run.
        output: path of the policy file.
        sampler: ``ddim`` or ``ddpm``.
        steps: denoising steps in the graph; None for all training steps.
        eta: DDIM's share of noise, 0 to 1.
        episodes: paired episodes of torch and artifact.
        seed: of these episodes.
        workers: processes.
        overwrite: replace an existing file.

    Raises:
        OutputError: ``output`` exists or cannot be written.
        RunError: no checkpoint, unknown sampler or steps out of range.
        ArtifactError: the graph does not compute what torch computes.
    """
    output = Path(output)
    refuse_existing(output, overwrite)
    check_writable(output)  # before minutes of proof, not after
    weights = WeightsSource.of_run(run, sampler, steps, eta)
    reference = weights.open()
    assert isinstance(reference, TorchPolicy)
    model = to_onnx(reference)
    parity = prove(reference, model, to_onnx(reference, with_chain=True))
    graph = GraphSource(model.SerializeToString(), reference.spec, reference.noise_shape)
    pair = [
        evaluate(source, run.config.task, episodes=episodes, seed=seed, workers=workers, label=label)
        for source, label in ((weights, "torch"), (graph, "artifact"))
    ]
    content = embed(model, _manifest(run, reference, parity, *pair))
    proved = parse(content)
    write_bytes(output, content)
    return proved


def to_onnx(policy: TorchPolicy, with_chain: bool = False) -> onnx.ModelProto:
    """The policy's graph, weights inside, float32, static shapes."""
    spec = policy.spec
    graph = PolicyGraph(policy.policy, policy.reverse, with_chain).eval()
    example = (torch.zeros(1, spec.observation_horizon, spec.observation.size), torch.zeros(1, *policy.noise_shape))
    with _quiet():
        program = torch.onnx.export(
            graph,
            example,
            input_names=["observation", "noise"],
            output_names=["action", "chain"] if with_chain else ["action"],
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
    return model


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


def prove(policy: TorchPolicy, model: onnx.ModelProto, model_with_chain: onnx.ModelProto) -> Parity:
    """Compares the graphs with torch on random inputs. Raises ArtifactError when they differ by more than TOLERANCE."""
    inputs = proof_inputs(policy, PROOF_INPUTS)
    step_errors = _step_errors(policy, model_with_chain, inputs)
    end_to_end_error = _end_to_end_error(policy, model, inputs)
    worst = np.max([*step_errors, end_to_end_error])  # unlike max(), not deaf to NaN
    if not worst <= TOLERANCE:
        steps = ", ".join(f"{error:.1e}" for error in step_errors)
        raise ArtifactError(
            f"the graph differs from torch by {worst:.1e} of the range, more than {TOLERANCE:.0e} "
            f"(per denoising step: {steps}; end to end: {end_to_end_error:.1e}); nothing was written"
        )
    return Parity(PROOF_INPUTS, TOLERANCE, step_errors, end_to_end_error)


@dataclass(frozen=True, eq=False)
class ProofInputs:
    """``observation`` (N, To, Do) over and at the ends of the training range, ``noise`` (N, *noise_shape)."""

    observation: Array
    noise: Array


def proof_inputs(policy: TorchPolicy, count: int) -> ProofInputs:
    """Random inputs, never zero: half inside the training range, half with every component at one of its ends."""
    rng = np.random.default_rng(0)
    spec = policy.spec
    share = rng.uniform(size=(count, spec.observation_horizon, spec.observation.size))
    share[count // 2 :] = share[count // 2 :].round()
    low, high = spec.observation.low, spec.observation.high
    return ProofInputs(low + share * (high - low), rng.standard_normal((count, *policy.noise_shape)))


def _step_errors(policy: TorchPolicy, model: onnx.ModelProto, inputs: ProofInputs) -> tuple[float, ...]:
    """Largest difference after each denoising step, as a fraction of the normalised range [-1, 1]."""
    ours = []
    for observation, noise in zip(inputs.observation, inputs.noise, strict=True):
        with torch.no_grad():
            chain = policy.policy.chain(_float32(observation), _float32(noise), policy.reverse)
        ours.append(torch.cat(chain).numpy())
    theirs = _run(model, "chain", inputs)
    return tuple(float(error) for error in np.abs(np.stack(ours) - theirs).max(axis=(0, 2, 3))[1:] / 2.0)


def _end_to_end_error(policy: TorchPolicy, model: onnx.ModelProto, inputs: ProofInputs) -> float:
    """Largest difference of an action, as a fraction of its range."""
    ours = np.stack([policy.infer(observation, noise) for observation, noise in zip(inputs.observation, inputs.noise, strict=True)])
    action = policy.spec.action
    return float((np.abs(ours - _run(model, "action", inputs)) / (action.high - action.low)).max())


def _run(model: onnx.ModelProto, output: str, inputs: ProofInputs) -> Array:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rows = zip(inputs.observation.astype(np.float32), inputs.noise.astype(np.float32), strict=True)
    outputs = [session.run([output], {"observation": observation[None], "noise": noise[None]})[0] for observation, noise in rows]
    values: Array = np.concatenate(outputs).astype(np.float64)
    return values


def _float32(values: Array) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32)[None]


def _manifest(run: Run, policy: TorchPolicy, parity: Parity, trained: EvaluationResult, exported: EvaluationResult) -> Manifest:
    reverse, config = policy.reverse, run.config
    return Manifest(
        policy=policy.spec,
        noise_shape=policy.noise_shape,
        denoising=Denoising(reverse.sampler, reverse.steps, reverse.train_steps, reverse.eta),
        provenance=Provenance(
            algorithm=config.algorithm,
            task=config.task,
            seed=config.seed,
            demos_sha256=config.demos_sha256,
            git_commit=config.git_commit,
            created=utc_now(),
            otpr_version=__version__,
        ),
        parity=parity,
        evaluation=Evaluation(
            episodes=len(trained.episodes),
            seed=trained.seed,
            horizon=trained.task.horizon,
            success_rule=trained.task.success_rule,
            torch_successes=trained.success.successes,
            artifact_successes=exported.success.successes,
            disagreements=trained.disagreements(exported),
        ),
    )

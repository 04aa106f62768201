# SPDX-License-Identifier: Apache-2.0
"""From a training run to one policy file that proves that it computes what was trained.

The exported graph is written apart from the policy that trains (:mod:`otpr_trainer.graph`), so the proof compares two computations,
not one with itself:

1. per denoising step and, for a policy that chooses among candidates, in their values, on a graph that also outputs these;
2. end to end, on the very graph that is written;
3. in the task, both policies on the same episodes with the same noise.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from otpr_policy import __version__
from otpr_policy.artifact import Denoising, Evaluation, Manifest, Parity, PolicyArtifact, Provenance, Selection, embed, parse
from otpr_policy.errors import ArtifactError, RunError
from otpr_policy.files import check_writable, refuse_existing, write_bytes
from otpr_policy.spec import Array
from otpr_policy.timeline import Committed
from otpr_trainer import int8_proof
from otpr_trainer.evaluate import EvaluationResult, evaluate
from otpr_trainer.graph import to_onnx
from otpr_trainer.policy import TorchPolicy
from otpr_trainer.run import Run, utc_now
from otpr_trainer.selection import SelectingPolicy
from otpr_trainer.sources import GraphSource, WeightsSource
from otpr_trainer.weights import Weights, with_weights

TOLERANCE = 1e-4  # of the range, for each denoising step and end to end
PROOF_INPUTS = 256
DECISIVE_INPUTS = 16  # least number on which the best candidate is beyond doubt: to choose wrongly and yet agree on these is 1 in 2^16


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
    candidates: int = 1,
    committed_prefix: bool = False,
    weights: Weights = Weights.FP32,
    overwrite: bool = False,
) -> PolicyArtifact:
    """Exports a run's newest checkpoint to ``output`` and proves it; the file is written only when the proof holds.

    Args:
        run: training run.
        output: path of the policy file.
        sampler: ``ddim`` or ``ddpm`` of a diffusion, ``bridge`` of an interpolant.
        steps: denoising steps in the graph; None for all training steps.
        eta: DDIM's share of noise, 0 to 1.
        episodes: paired episodes of torch and artifact.
        seed: of these episodes.
        workers: processes.
        candidates: S chains in the graph, of which the run's critic chooses one; 1 is one chain without a critic.
        committed_prefix: the graph also reads the actions that will have been carried out before its chunk comes, and continues them.
        weights: how the graph's matrices are stored; int8 is proved by success, see :mod:`otpr_trainer.int8_proof`.
        overwrite: replace an existing file.

    Raises:
        OutputError: ``output`` exists or cannot be written.
        RunError: no checkpoint, unknown sampler, steps out of range or none, or several candidates of a run that has no critic.
        ArtifactError: the graph does not compute what torch computes, or its choice cannot be told from another.
    """
    output = Path(output)
    refuse_existing(output, overwrite)
    check_writable(output)  # before minutes of proof, not after
    trained = WeightsSource.of_run(run, sampler, steps, eta, candidates, committed_prefix)
    reference = trained.open()
    assert isinstance(reference, TorchPolicy)
    if reference.reverse.steps == 0:
        raise RunError("a policy file takes at least 1 step; with none there is the source alone, which 'otpr eval --steps 0' judges")
    if weights is Weights.INT8:
        int8_proof.check_request(reference, episodes)
    model = to_onnx(reference)
    parity = prove(reference, model, to_onnx(reference, with_chain=True))
    if weights is Weights.INT8:
        plain, model = model, with_weights(model, weights)
        parity = int8_proof.prove_int8(reference, plain, model, PROOF_INPUTS, parity)
    graph = GraphSource(model.SerializeToString(), reference.spec, reference.noise_shape)
    pair = [
        evaluate(source, run.config.task, episodes=episodes, seed=seed, workers=workers, label=label)
        for source, label in ((trained, "torch"), (graph, "artifact"))
    ]
    if weights is Weights.INT8:
        int8_proof.check_success(*pair)
    content = embed(model, _manifest(run, reference, parity, *pair))
    proved = parse(content)
    write_bytes(output, content)
    return proved


def prove(policy: TorchPolicy, model: onnx.ModelProto, model_with_chain: onnx.ModelProto) -> Parity:
    """Compares the graphs with torch on random inputs.

    Among several candidates the graph must act with the one that torch chooses, except where another is valued alike to within rounding
    (see :func:`_rivals`): there either will do. Such inputs are counted, unless both lead to the same action anyway.

    Raises:
        ArtifactError: they differ by more than TOLERANCE, or fewer than DECISIVE_INPUTS say which candidate is the best.
    """
    inputs = proof_inputs(policy, PROOF_INPUTS)
    ours = _torch_outcomes(policy, inputs)
    theirs = _run(model_with_chain, inputs)
    step_errors = tuple(float(error) for error in np.abs(ours.chain - theirs["chain"]).max(axis=(0, 1, 3, 4))[1:] / 2.0)
    value_errors = np.abs(ours.values - theirs["values"]) if policy.candidates > 1 else np.zeros_like(ours.values)
    span = policy.spec.action.high - policy.spec.action.low
    others = _rivals(ours.values, value_errors) & (_distance(ours.candidates, ours.action[:, None], span) > TOLERANCE)
    near_ties = int(np.count_nonzero(others.any(axis=1)))
    action = _run(model, inputs)["action"]
    from_others = np.where(others, _distance(ours.candidates, action[:, None], span), np.inf).min(axis=1)
    end_to_end_error = float(np.minimum(_distance(ours.action, action, span), from_others).max())
    worst = np.max([*step_errors, value_errors.max(), end_to_end_error])  # unlike max(), not deaf to NaN
    if not worst <= TOLERANCE:
        steps = ", ".join(f"{error:.1e}" for error in step_errors)
        raise ArtifactError(
            f"the graph differs from torch by {worst:.1e} of the range, more than {TOLERANCE:.0e} (per denoising step: {steps}; "
            f"values of candidates: {value_errors.max():.1e}; end to end: {end_to_end_error:.1e}); nothing was written"
        )
    if PROOF_INPUTS - near_ties < DECISIVE_INPUTS:
        raise ArtifactError(
            f"the critic tells candidates apart on {PROOF_INPUTS - near_ties} of {PROOF_INPUTS} random inputs, the proof of what the graph "
            f"chooses needs {DECISIVE_INPUTS}; export 1 candidate; nothing was written"
        )
    return Parity(PROOF_INPUTS, TOLERANCE, step_errors, end_to_end_error, float(value_errors.max()), near_ties)


@dataclass(frozen=True, eq=False)
class ProofInputs:
    """``observation`` (N, To, Do) over and at the ends of the training range, ``noise`` (N, *noise_shape).

    ``previous`` (N, Ta, Da) for a policy that reads its previous chunk: anything within the bounds, and NaN in every other row.
    ``committed`` (N, Ta, Da) and ``committed_weight`` (N, Ta) for one that reads these: anything within the bounds, and weights over and
    at the ends of 0 to 1.
    """

    observation: Array
    noise: Array
    previous: Array | None = None
    committed: Array | None = None
    committed_weight: Array | None = None

    def rows(self) -> Iterator[dict[str, NDArray[np.float32]]]:
        """One input at a time, by name."""
        named = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        known = {name: values.astype(np.float32) for name, values in named.items() if values is not None}
        return (dict(zip(known, row, strict=True)) for row in zip(*known.values(), strict=True))


def proof_inputs(policy: TorchPolicy, count: int) -> ProofInputs:
    """Random inputs, never zero: half inside the training range, half with every component at one of its ends."""
    rng = np.random.default_rng(0)
    spec = policy.spec
    share = rng.uniform(size=(count, spec.observation_horizon, spec.observation.size))
    share[count // 2 :] = share[count // 2 :].round()
    low, high = spec.observation.low, spec.observation.high
    inputs = ProofInputs(low + share * (high - low), rng.standard_normal((count, *policy.noise_shape)))
    chunks = (count, spec.chunk_length, spec.action.size)
    if spec.reads_previous:
        previous = rng.uniform(spec.action.low, spec.action.high, chunks)
        previous[::2] = np.nan
        inputs = replace(inputs, previous=previous)
    if spec.reads_committed:
        weight = np.clip(rng.uniform(-0.25, 1.25, chunks[:2]), 0.0, 1.0)
        inputs = replace(inputs, committed=rng.uniform(spec.action.low, spec.action.high, chunks), committed_weight=weight)
    return inputs


@dataclass(frozen=True, eq=False)
class _Outcomes:
    """What torch makes of N inputs."""

    chain: Array  # normalised, (N, S, K + 1, Ta, Da)
    values: Array  # (N, S)
    candidates: Array  # actions, (N, S, Ta, Da)
    action: Array  # (N, Ta, Da)


@torch.no_grad()
def _torch_outcomes(policy: TorchPolicy, inputs: ProofInputs) -> _Outcomes:
    """One input at a time, as on the robot."""
    chains, values, candidates, actions = [], [], [], []
    for row in inputs.rows():
        tensors = {name: torch.as_tensor(value)[None] for name, value in row.items()}
        batch = tensors.pop("observation")
        chain = policy.chains(batch, **tensors)
        chains.append(torch.stack(chain, dim=1).numpy())
        values.append(policy.values(batch, chain[-1])[0].numpy() if isinstance(policy, SelectingPolicy) else np.zeros(1))
        candidates.append(policy.policy.physical_action(chain[-1]).numpy())
        actions.append(policy.infer(row["observation"], row["noise"], row.get("previous"), _committed(row)))
    return _Outcomes(np.stack(chains), np.stack(values), np.stack(candidates), np.stack(actions))


def _committed(row: dict[str, NDArray[np.float32]]) -> Committed | None:
    if "committed" not in row:
        return None
    return Committed(row["committed"].astype(np.float64), row["committed_weight"].astype(np.float64))


def _rivals(values: Array, errors: Array) -> NDArray[np.bool_]:
    """The candidates that a faithful graph may take for the best, the best among them, (N, S). values, errors: (N, S).

    If no value is off by more than e, the graph's best is at most 2 e below ours. The e of an input is measured on its candidates;
    twice that again, because the written graph, which has no output for values, may be compiled to round in its own way, and four
    units in the last place for inputs where both agreed by luck.
    """
    rounding = 4.0 * np.spacing(np.abs(values).max(axis=1, keepdims=True).astype(np.float32))
    rivals: NDArray[np.bool_] = values >= values.max(axis=1, keepdims=True) - 4.0 * errors.max(axis=1, keepdims=True) - rounding
    return rivals


def _distance(ours: Array, theirs: Array, span: Array) -> Array:
    """Largest difference of actions (..., Ta, Da) as a fraction of their range ``span`` (Da,), (...)."""
    distance: Array = (np.abs(ours - theirs) / span).max(axis=(-2, -1))
    return distance


def _run(model: onnx.ModelProto, inputs: ProofInputs) -> dict[str, Array]:
    """Each output of the graph over all inputs, (N, ...); ``action`` and what has a row per candidate."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    outputs = [session.run(names, {name: value[None] for name, value in row.items()}) for row in inputs.rows()]
    stacked = {name: np.stack(values).astype(np.float64) for name, values in zip(names, zip(*outputs, strict=True), strict=True)}
    return {**stacked, "action": stacked["action"][:, 0]}


def _manifest(run: Run, policy: TorchPolicy, parity: Parity, trained: EvaluationResult, exported: EvaluationResult) -> Manifest:
    reverse, config = policy.reverse, run.config
    return Manifest(
        policy=policy.spec,
        noise_shape=policy.noise_shape,
        denoising=Denoising(reverse.sampler, reverse.steps, reverse.train_steps, reverse.eta, policy.policy.source_label),
        selection=_selection(policy),
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


def _selection(policy: TorchPolicy) -> Selection:
    if isinstance(policy, SelectingPolicy) and policy.candidates > 1:
        return Selection(policy.candidates, policy.critic.heads, policy.pessimism)
    return Selection()

# SPDX-License-Identifier: Apache-2.0
"""``otpr train ALGORITHM``: starts or resumes a training run. One command serves every algorithm."""

import copy
import importlib
import json
import sys
from argparse import SUPPRESS, ArgumentParser, Namespace
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from otpr_policy import __version__
from otpr_policy.cli import Command
from otpr_policy.errors import DemonstrationError, RunError
from otpr_sim.workers import default_workers

if TYPE_CHECKING:
    from otpr_trainer.data.demonstrations import Demonstrations
    from otpr_trainer.learner import Algorithm, Learner, Setup
    from otpr_trainer.run import Run, RunConfig

_PARTS = ("NAME", "NEEDS_INIT", "Config", "Learner")  # what the module of every algorithm has
_UNITS = {"it": "iterations", "step": "environment steps"}


@dataclass(frozen=True)
class TrainCommand(Command):
    """``otpr train ALGORITHM``. ``module``: name of the algorithm's module."""

    module: str

    def algorithm(self) -> "Algorithm":
        """The module itself; imports it."""
        return _algorithm(self.module)


def command(module: str, description: str) -> TrainCommand:
    """The command of an algorithm, for an entry point ``train.NAME``; see docs/adding-a-method.md.

    Args:
        module: name of the algorithm's module. It is imported when the command is used, so that ``otpr --help`` stays fast.
        description: one line for people.
    """
    return TrainCommand(
        description, lambda parser: _add_arguments(parser, _algorithm(module)), lambda words: _run(words, _algorithm(module)), module
    )


def _algorithm(module: str) -> "Algorithm":
    found = importlib.import_module(module)
    if lacking := [name for name in _PARTS if not hasattr(found, name)]:
        raise RunError(f"{module} has no {' and no '.join(lacking)}; the module of a method has {', '.join(_PARTS)}")
    return cast("Algorithm", found)


def _add_arguments(parser: ArgumentParser, algorithm: "Algorithm") -> None:
    from otpr_trainer.config import add_flags, variants

    parser.add_argument("--out", type=Path, required=True, metavar="RUN", help="directory of the run")
    parser.add_argument("--task", default=SUPPRESS, help="task name, such as lift or gym:<id> (with --resume: as the run says)")
    parser.add_argument("--demos", type=Path, default=SUPPRESS, metavar="DIR", help="demonstrations (with --resume: as the run says)")
    corrections = "episodes in which an operator took over, as further expert keypoints (with --resume: as the run says)"
    parser.add_argument("--corrections", type=Path, default=SUPPRESS, metavar="DIR", help=corrections)
    start = "run whose policy to start from (with --resume: the copy that the run keeps)" if algorithm.NEEDS_INIT else SUPPRESS
    parser.add_argument("--init", type=Path, default=SUPPRESS, metavar="RUN", help=start)
    parser.add_argument("--seed", type=int, default=SUPPRESS, help="seed of all that training draws (default: 0)")
    parser.add_argument("--workers", type=int, default=default_workers(), help="simulator processes, if the algorithm plays episodes")
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace a run that is there")
    existing.add_argument("--resume", action="store_true", help="go on from the newest checkpoint of the run")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    if names := ", ".join(variants(algorithm)):
        parser.add_argument("--variant", default=SUPPRESS, metavar="NAME", help=f"settings to start from instead of the defaults: {names}")
    add_flags(parser, algorithm.Config)


def _run(arguments: Namespace, algorithm: "Algorithm") -> int:
    import torch

    from otpr_trainer.train import refuse_no_budget, train

    torch.set_num_threads(1)  # the same sums in the same order on every machine, and a core left for others
    _check_flags(arguments, algorithm)
    plan = _resumed(arguments, algorithm) if arguments.resume else _new(arguments, algorithm)
    own = replace(plan.setup, start=copy.deepcopy(plan.setup.start))  # the learner may train it in place, the run keeps it as it was
    with closing(algorithm.Learner(plan.config, own)) as learner:
        refuse_no_budget(learner)
        run = plan.run or _create(arguments, algorithm, plan, learner)
        outcome = train(run, learner)
    resume = f"otpr train {algorithm.NAME} --resume --out {run.directory}"
    if not outcome.finished:
        print(f"otpr: interrupted; step {outcome.step} of {learner.total} is saved, go on with: {resume}", file=sys.stderr)
        return 130
    summary = {"run": str(run.directory), "task": run.config.task, "step": outcome.step, "seconds": round(outcome.seconds, 1)}
    if arguments.json:
        print(json.dumps({**summary, "unit": learner.unit, "rollbacks": outcome.rollbacks}))
    else:
        done = f"{outcome.step} {_UNITS.get(learner.unit, learner.unit)} in {outcome.seconds:.0f} s"
        print(f"{run.directory}: {done}; next: otpr export {run.directory} --out policy.onnx")
    return 0


def _check_flags(arguments: Namespace, algorithm: "Algorithm") -> None:
    """Raises RunError for flags that are out of range or do not go together."""
    from otpr_trainer.rollout import SEED_LIMIT

    if arguments.workers < 1:
        raise RunError(f"--workers must be at least 1, got {arguments.workers}")
    if not 0 <= getattr(arguments, "seed", 0) < SEED_LIMIT:
        raise RunError(f"--seed must be in 0..{SEED_LIMIT - 1}, got {arguments.seed}")
    if "init" in arguments and not algorithm.NEEDS_INIT:
        raise RunError(f"{algorithm.NAME} starts from nothing; --init is for algorithms that fine-tune a policy")
    if "corrections" in arguments and not getattr(algorithm, "CORRECTIONS", False):
        raise RunError(f"{algorithm.NAME} does not learn from corrections; otpr does")
    needed = ("task", "demos", "init") if algorithm.NEEDS_INIT else ("task", "demos")
    missing = [f"--{name}" for name in needed if name not in arguments]
    if missing and not arguments.resume:
        raise RunError(f"a new run needs {' and '.join(missing)}")


def _asked(arguments: Namespace, algorithm: "Algorithm") -> dict[str, Any]:
    """The settings that the command line asks for: a variant's, and over them those of single flags."""
    from otpr_trainer.config import given, of_variant

    variant = of_variant(algorithm, arguments.variant) if "variant" in arguments else {}
    return {**variant, **given(arguments, algorithm.Config)}


@dataclass(frozen=True, eq=False)
class _Plan:
    """All that a learner is made from, and the run if there is one already."""

    config: Any
    setup: "Setup"
    run: "Run | None"


def _new(arguments: Namespace, algorithm: "Algorithm") -> _Plan:
    from otpr_sim import registry
    from otpr_trainer import start
    from otpr_trainer.data import demonstrations
    from otpr_trainer.learner import Setup

    registry.spec(arguments.task)  # refuses an unknown task before the demonstrations can be of another
    config = algorithm.Config(**_asked(arguments, algorithm))
    demos = demonstrations.load(arguments.demos, arguments.task)
    corrections = demonstrations.load(arguments.corrections, arguments.task) if "corrections" in arguments else None
    policy = None
    if algorithm.NEEDS_INIT:
        start.refuse_overwriting(arguments.init, arguments.out)
        policy = start.open_start(arguments.init, arguments.task, demos.header, config)
    return _Plan(config, Setup(arguments.task, demos, getattr(arguments, "seed", 0), arguments.workers, policy, corrections), None)


def _create(arguments: Namespace, algorithm: "Algorithm", plan: _Plan, learner: "Learner") -> "Run":
    """The new run's directory; last, so that a mistake leaves none behind and replaces none."""
    from otpr_trainer import run as runs
    from otpr_trainer import start

    policy, corrections, chain = plan.setup.start, plan.setup.corrections, learner.chain
    config = runs.RunConfig(
        algorithm=algorithm.NAME,
        task=plan.setup.task,
        seed=plan.setup.seed,
        settings=asdict(plan.config),
        demos=str(arguments.demos),
        demos_sha256=plan.setup.demos.sha256,
        policy=learner.policy_config.to_json(),
        git_commit=runs.git_commit(),
        otpr_version=__version__,
        created=runs.utc_now(),
        critic=learner.critic_config,
        init=None if policy is None else str(arguments.init),
        init_sha256=None if policy is None else start.weights_sha256(policy),
        corrections=None if corrections is None else str(arguments.corrections),
        corrections_sha256=None if corrections is None else corrections.sha256,
        acting=None if chain is None else {"sampler": chain.sampler, "steps": chain.steps, "eta": chain.eta},
    )
    run = runs.create(arguments.out, config, arguments.overwrite)
    if policy is not None:
        start.keep(run, policy)
    return run


def _resumed(arguments: Namespace, algorithm: "Algorithm") -> _Plan:
    """The run as its config.json defines it; flags may repeat that but not change it."""
    from otpr_trainer import run as runs
    from otpr_trainer import start
    from otpr_trainer.config import from_json
    from otpr_trainer.data import demonstrations
    from otpr_trainer.learner import Setup

    run = runs.load(arguments.out)
    if run.config.algorithm != algorithm.NAME:
        raise RunError(f"{run.directory} is a run of {run.config.algorithm!r}, not {algorithm.NAME!r}")
    _refuse_changes(arguments, algorithm, run.config)
    config = from_json(algorithm.Config, run.config.settings)
    demos = demonstrations.load(getattr(arguments, "demos", Path(run.config.demos)), run.config.task)
    if demos.sha256 != run.config.demos_sha256:
        raise DemonstrationError(f"the demonstrations are not those that {run.directory} was started with (sha256 differs)")
    corrections = _kept_corrections(arguments, run)
    if "init" in arguments:
        other = start.open_start(arguments.init, run.config.task, demos.header, config)
        if start.weights_sha256(other) != run.config.init_sha256:
            raise RunError(f"--init {arguments.init} is not the policy that {run.directory} started from; leave --init out to go on")
    return _Plan(config, Setup(run.config.task, demos, run.config.seed, arguments.workers, start.kept(run), corrections), run)


def _kept_corrections(arguments: Namespace, run: "Run") -> "Demonstrations | None":
    """The run's corrections, found again. Raises DemonstrationError when they are not those that it was started with."""
    from otpr_trainer.data import demonstrations

    given = getattr(arguments, "corrections", None if run.config.corrections is None else Path(run.config.corrections))
    found = None if given is None else demonstrations.load(given, run.config.task)
    if (None if found is None else found.sha256) != run.config.corrections_sha256:
        raise DemonstrationError(f"the corrections are not those that {run.directory} was started with (sha256 differs)")
    return found


def _refuse_changes(arguments: Namespace, algorithm: "Algorithm", config: "RunConfig") -> None:
    """Raises RunError when a flag asks for another value than the run's."""
    settled: dict[str, Any] = {**config.settings, "task": config.task, "seed": config.seed}
    asked = {**_asked(arguments, algorithm), **{name: getattr(arguments, name) for name in ("task", "seed") if name in arguments}}
    changed = [f"{name} {settled.get(name)} -> {value}" for name, value in asked.items() if settled.get(name) != value]
    if changed:
        raise RunError(f"a resumed run keeps its settings; not changed: {', '.join(changed)}. Start another run for these")


BC = command("otpr_trainer.algorithms.bc", "Behaviour-clone a diffusion policy from demonstrations.")
BRIDGER = command("otpr_trainer.algorithms.bridger", "Clone by a stochastic interpolant from a source policy (BRIDGER).")
OTPR = command("otpr_trainer.algorithms.otpr", "Fine-tune a diffusion policy in simulation by optimal transport (OTPR).")
FILTERED_BC = command("otpr_trainer.algorithms.filtered_bc", "Fine-tune by cloning demonstrations and own successes (the control).")
IDQL = command("otpr_trainer.algorithms.idql", "Fine-tune by implicit Q-learning and choice among samples (IDQL).")
DRWR = command("otpr_trainer.algorithms.drwr", "Fine-tune by cloning weighted by returns (DRWR).")
DAWR = command("otpr_trainer.algorithms.dawr", "Fine-tune by cloning weighted by advantages (DAWR).")
DQL = command("otpr_trainer.algorithms.dql", "Fine-tune by cloning and the gradient of Q through the chain (Diffusion-QL).")
QSM = command("otpr_trainer.algorithms.qsm", "Fine-tune by matching the policy's score to the gradient of Q (QSM).")
DIPO = command("otpr_trainer.algorithms.dipo", "Fine-tune by cloning chunks that climb Q in replay (DIPO).")
DDIFFPG = command("otpr_trainer.algorithms.ddiffpg", "Fine-tune by cloning chunks that climb the Q of their mode (DDiffPG).")
QVPO = command("otpr_trainer.algorithms.qvpo", "Fine-tune by cloning the policy's best samples, weighted by Q (QVPO).")
DPPO = command("otpr_trainer.algorithms.dppo", "Fine-tune by policy gradients through the denoising chain (DPPO).")
ARS = command("otpr_trainer.algorithms.ars", "Fine-tune by random search on the policy's parameters (ARS).")
DSRL = command("otpr_trainer.algorithms.dsrl", "Steer a frozen diffusion policy by learning to choose its noise (DSRL).")
RESIDUAL = command("otpr_trainer.algorithms.residual", "Learn a bounded correction of a frozen diffusion policy (residual RL).")
RLPD = command("otpr_trainer.algorithms.rlpd", "Learn a Gaussian policy from play and demonstrations, without diffusion (RLPD).")

# SPDX-License-Identifier: Apache-2.0
"""The plan of a comparison: which methods, on which tasks, over which seeds, with what budget. YAML, read strictly."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from pathlib import Path
from typing import Any

from otpr_policy.cli import installed_commands
from otpr_policy.errors import ContractError, PlanError, RunError, TaskError, unknown
from otpr_policy.strict_yaml import build, read_yaml
from otpr_sim import registry
from otpr_sim.shift import preset as shift_preset
from otpr_trainer.commands.export import DEFAULT_SAMPLER, DEFAULT_STEPS
from otpr_trainer.commands.train import TrainCommand
from otpr_trainer.config import must_be, of_variant
from otpr_trainer.evaluate import DEFAULT_SEED
from otpr_trainer.learner import Algorithm
from otpr_trainer.rollout import SEED_LIMIT

SHIPPED = Path(__file__).parent.parent / "plans"
BUDGET_SETTING = "steps"
TRAIN_STEPS = "train_steps"  # of the start policy's settings: the denoising steps of its schedule
VARIANT = "variant"  # among a method's settings: as `otpr train ALGORITHM --variant`
DEMONSTRATIONS = "demos"  # the folder beside those of the methods
RECORDS = "jobs"  # the folder beside those of the tasks
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # becomes a folder's name


@dataclass(frozen=True)
class TaskPlan:
    """One task. ``demos``: successful demonstrations per seed. ``label``: what it is called, by default the task's name.

    ``budget``: where the plan's is not meant; 0 where it is.
    """

    task: str
    demos: int
    label: str = ""
    expert: str = ""  # MODULE:NAME, as in `otpr demos collect --expert`; by default the scripted one
    budget: int = 0

    @property
    def name(self) -> str:
        """The label, or the task's name."""
        return self.label or self.task


@dataclass(frozen=True)
class EvaluationPlan:
    """How every policy is judged: the same scenes for all. ``steps``: of the sampler with eta 1, as the exported policy acts."""

    episodes: int = 100
    seed: int = DEFAULT_SEED
    presets: tuple[str, ...] = ("nominal",)
    steps: int = DEFAULT_STEPS


@dataclass(frozen=True)
class StartPlan:
    """The policy that each method starts from, trained on the demonstrations; it is a row of the report too."""

    algorithm: str = "bc"
    settings: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class MethodPlan:
    """One way to learn. ``candidates``: ways of acting to judge; 1 is a plain sample, S the critic's choice among S.

    ``budget``: where the plan's and the task's are not meant, for a method that lives on another scale; 0 where they are.
    One that starts from nothing but the demonstrations, such as ``bridger``, has no part in the budget.
    """

    name: str
    algorithm: str
    settings: Mapping[str, object] = field(default_factory=dict)
    candidates: tuple[int, ...] = (1,)
    budget: int = 0

    def steps(self, plan: "Plan", task: TaskPlan) -> int:
        """Environment steps of a training on this task."""
        return self.budget or task.budget or plan.budget


@dataclass(frozen=True)
class Plan:
    """A comparison. ``budget``: environment steps of each method that fine-tunes. ``control``: the method that others are compared with."""

    name: str
    tasks: tuple[TaskPlan, ...]
    seeds: tuple[int, ...]
    budget: int
    methods: tuple[MethodPlan, ...]
    evaluation: EvaluationPlan = field(default_factory=EvaluationPlan)
    start: StartPlan = field(default_factory=StartPlan)
    control: str = ""


def shipped() -> tuple[str, ...]:
    """Names of the plans that come with the package."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.yaml")))


def load(plan: str) -> Plan:
    """Reads and checks a plan. ``plan``: a file, or the name of one that is shipped.

    Raises:
        PlanError: there is no such plan, or something in it is wrong; says what would be valid.
    """
    path = SHIPPED / f"{plan}.yaml" if plan in shipped() else Path(plan)
    if not path.is_file():
        raise PlanError(f"there is no plan {plan!r}; give a YAML file, or one of the shipped: {', '.join(shipped())}")
    try:
        found = build(Plan, read_yaml(path, "plan"), path.stem)
    except ContractError as error:
        raise PlanError(str(error)) from error
    _check(found, path.stem)
    return found


def resolved_settings(plan: Plan) -> dict[str, dict[str, Any]]:
    """All settings of the start policy and of each method, defaults included, by algorithm or method name. Raises PlanError."""
    start = {plan.start.algorithm: asdict(_config(_start(plan.start.algorithm), plan.start.settings, "start"))}
    return start | {method.name: asdict(_method_config(plan, method)) for method in plan.methods}


def modules(plan: Plan) -> dict[str, str]:
    """Names of the modules of the start policy's algorithm and of each method's, by algorithm or method name. Raises PlanError."""
    start = {plan.start.algorithm: _command(plan.start.algorithm, "start").module}
    return start | {method.name: _command(method.algorithm, f"method {method.name}").module for method in plan.methods}


def fine_tunes(algorithm: str) -> bool:
    """Whether it starts from the start policy and has a budget; else it has nothing but the demonstrations."""
    return _installed(algorithm, "method").NEEDS_INIT


def sampler(plan: Plan, method: MethodPlan) -> str:
    """What a policy is evaluated with: methods that fine-tune keep the chain of the start policy."""
    return _sampler(plan.start.algorithm if fine_tunes(method.algorithm) else method.algorithm)


def chooses(algorithm: str) -> bool:
    """Whether an algorithm trains a critic that can choose among several chunks of its policies."""
    return bool(getattr(_installed(algorithm, "method"), "CHOOSES", False))


def own_chain(algorithm: str) -> bool:
    """Whether an algorithm's policies act with a chain of their own, so that there is none to choose for them."""
    return bool(getattr(_installed(algorithm, "method"), "OWN_CHAIN", False))


def _check(plan: Plan, where: str) -> None:
    for what, values in (("tasks", plan.tasks), ("seeds", plan.seeds), ("evaluation.presets", plan.evaluation.presets)):
        if not values:
            raise PlanError(f"{where}.{what} must not be empty")
    _different(f"{where}.tasks", [task.name for task in plan.tasks], taken=(RECORDS,))
    _different(f"{where}.methods", [method.name for method in plan.methods], taken=(DEMONSTRATIONS, plan.start.algorithm))
    for what, values in (("seeds", plan.seeds), ("evaluation.presets", plan.evaluation.presets)):
        if len(set(values)) < len(values):
            raise PlanError(f"{where}.{what} has a value twice")
    _at_least(1, f"{where}.budget", plan.budget)
    _at_least(1, f"{where}.evaluation.episodes", plan.evaluation.episodes)
    _at_least(1, f"{where}.evaluation.steps", plan.evaluation.steps)
    for seed in (*plan.seeds, plan.evaluation.seed):
        if not 0 <= seed < SEED_LIMIT:
            raise PlanError(f"{where}: seed {seed} is not in 0..{SEED_LIMIT - 1}")
    for method in plan.methods:
        if not method.candidates or len(set(method.candidates)) < len(method.candidates) or min(method.candidates) < 1:
            raise PlanError(f"{where}: candidates of {method.name} must be different whole numbers from 1, got {list(method.candidates)}")
        _at_least(0, f"{where}: budget of {method.name}", method.budget)
        if method.budget and not fine_tunes(method.algorithm):
            raise PlanError(f"{where}: {method.name} has a budget, but {method.algorithm} learns from the demonstrations alone")
        if max(method.candidates) > 1 and not chooses(method.algorithm):
            raise PlanError(
                f"{where}: {method.name} has candidates {list(method.candidates)}, but {method.algorithm} trains no critic to choose"
            )
    names = [method.name for method in plan.methods]
    if plan.control and plan.control not in names:
        raise PlanError(f"{where}.control: {unknown('method', plan.control, names)}")
    try:
        for task in plan.tasks:
            _at_least(1, f"{where}: demos of {task.name}", task.demos)
            _at_least(0, f"{where}: budget of {task.name}", task.budget)
            registry.spec(task.task)
        for preset in plan.evaluation.presets:
            shift_preset(preset)
    except TaskError as error:
        raise PlanError(f"{where}: {error}") from error
    _check_start(plan, where)
    _check_steps(plan, where)


def _check_start(plan: Plan, where: str) -> None:
    """Raises PlanError when methods are to fine-tune what is no diffusion: their trainings would refuse it, after the start's."""
    start, tuned = plan.start.algorithm, [method.name for method in plan.methods if fine_tunes(method.algorithm)]
    if tuned and _sampler(start) != DEFAULT_SAMPLER:
        raise PlanError(f"{where}: {', '.join(tuned)} fine-tune a diffusion, and {start} trains none; name it among the methods")


def _check_steps(plan: Plan, where: str) -> None:
    """Raises PlanError when a diffusion is to be judged with more steps than it is trained with: evaluations would fail, at the end."""
    settings = resolved_settings(plan)
    judged = {plan.start.algorithm: plan.start.algorithm}
    judged |= {method.name: method.algorithm for method in plan.methods if not fine_tunes(method.algorithm)}
    for name, algorithm in judged.items():
        most = settings[name].get(TRAIN_STEPS)
        if most is not None and plan.evaluation.steps > most and _sampler(algorithm) == DEFAULT_SAMPLER:
            steps = plan.evaluation.steps
            raise PlanError(f"{where}.evaluation.steps must be at most {most}, the {TRAIN_STEPS} that {name} is trained with, got {steps}")


def _sampler(algorithm: str) -> str:
    """What policies that an algorithm trains from nothing are judged with."""
    return str(getattr(_installed(algorithm, "method"), "SAMPLER", DEFAULT_SAMPLER))


def _different(where: str, names: list[str], taken: Iterable[str]) -> None:
    for name in names:
        if not _NAME.fullmatch(name.replace(":", "-")) or name in taken or names.count(name) > 1:
            raise PlanError(
                f"{where}: {name!r} cannot be a name; each must be different, of letters, digits and ._-, and not {' or '.join(taken)}"
            )


def _at_least(low: int, where: str, value: int) -> None:
    if value < low:
        raise PlanError(f"{where} must be at least {low}, got {value}")


def _start(name: str) -> Algorithm:
    """Raises PlanError when the algorithm cannot be a start."""
    algorithm = _installed(name, "start")
    if algorithm.NEEDS_INIT:
        raise PlanError(f"start: {name} fine-tunes a policy; a start starts from nothing")
    return algorithm


def _method_config(plan: Plan, method: MethodPlan) -> Any:
    """A method's configuration. Raises PlanError."""
    where = f"method {method.name}"
    algorithm = _installed(method.algorithm, where)
    if not algorithm.NEEDS_INIT:
        return _config(algorithm, method.settings, where)
    if BUDGET_SETTING not in {one.name for one in fields(algorithm.Config)}:
        raise PlanError(f"{where}: {method.algorithm} has no setting {BUDGET_SETTING!r} to give the budget to")
    return _config(algorithm, method.settings, where, fixed={BUDGET_SETTING: method.budget or plan.budget})


def _config(algorithm: Algorithm, settings: Mapping[str, object], where: str, *, fixed: Mapping[str, Any] | None = None) -> Any:
    """An algorithm's configuration with these settings."""
    kind = algorithm.Config
    defaults = {one.name: one.default for one in fields(kind)}
    values: dict[str, Any] = {}
    for key, value in settings.items():
        if key == VARIANT:
            continue
        if key in (fixed or {}):
            raise PlanError(f"{where}: {key} is the budget, which the plan, a task or a method has under that name")
        if key not in defaults:
            raise PlanError(f"{where}: {unknown('setting', key, defaults)}")
        wanted = type(defaults[key])
        if wanted is float and type(value) is int:
            value = float(value)
        if type(value) is not wanted:
            raise PlanError(f"{where}: {must_be(key, wanted, value)}")
        if isinstance(value, float) and not isfinite(value):  # and NaN, equal to nothing, would make the plan another at the next call
            raise PlanError(f"{where}: setting {key} must be finite, got {value!r}")
        values[key] = value
    try:
        variant = of_variant(algorithm, str(settings[VARIANT])) if VARIANT in settings else {}
        return kind(**{**variant, **values, **(fixed or {})})
    except RunError as error:
        raise PlanError(f"{where}: {error}") from error


def _installed(name: str, where: str) -> Algorithm:
    """The algorithm of ``otpr train NAME``. Raises PlanError when there is none."""
    return _command(name, where).algorithm()


def _command(name: str, where: str) -> TrainCommand:
    """``otpr train NAME``. Raises PlanError when there is none."""
    commands = {words[1]: entry for words, entry in installed_commands().items() if words[0] == "train" and len(words) == 2}
    if name not in commands:
        raise PlanError(f"{where}: {unknown('algorithm', name, commands)}")
    command = commands[name].load()
    if not isinstance(command, TrainCommand):
        raise PlanError(f"{where}: algorithm {name} is not made by otpr_trainer.commands.train.command, so its settings are not known")
    return command

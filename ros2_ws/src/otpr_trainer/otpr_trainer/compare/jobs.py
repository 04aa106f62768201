# SPDX-License-Identifier: Apache-2.0
"""A plan as jobs: one ``otpr`` command each, what it waits for and what it leaves behind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path

from otpr_policy.errors import PlanError
from otpr_trainer.commands.export import DEFAULT_ETA
from otpr_trainer.compare.plan import BUDGET_SETTING, DEMONSTRATIONS, MethodPlan, Plan, TaskPlan, fine_tunes, own_chain, sampler

PLACE = "DIR"  # stands for the comparison's directory in a job's words, so that a record holds wherever that is moved to
_PARTS = 3  # of a run's path: task, method, seed


class Kind(Enum):
    """What a job does."""

    COLLECT = "collect"
    TRAIN = "train"
    EVALUATE = "evaluate"
    EXPORT = "export"  # of no plan yet, but of benchmarks/bridger.py


@dataclass(frozen=True)
class Job:
    """One ``otpr`` command.

    Args:
        kind: what it does.
        task: the task's name in the plan.
        method: whose run it is about; the start policy's is its algorithm's name.
        seed: of demonstrations and training.
        words: the command's words without ``otpr``; ``DIR/`` stands for the comparison's directory.
        needs: jobs that must be done before.
        output: a file below the directory that exists once the job has begun; empty when it leaves none but its record.
        guess_s: how long it may take, until that is known better.
        preset, candidates: of an evaluation.
        budget: steps of a training whose progress can be read from its metrics; 0 for others.
    """

    kind: Kind
    task: str
    method: str
    seed: int
    words: tuple[str, ...]
    needs: tuple[str, ...]
    output: str
    guess_s: float
    preset: str = ""
    candidates: int = 0
    budget: int = 0

    @property
    def name(self) -> str:
        """Identity within a plan, and path of its record."""
        way = f"-{self.preset}-{self.candidates}" if self.kind is Kind.EVALUATE else ""
        return f"{self.task}/{self.method}/{self.seed}/{self.kind.value}{way}"

    @property
    def run(self) -> str:
        """The run's or the demonstrations' folder below the directory."""
        return f"{self.task}/{self.method}/{self.seed}"

    def command(self, directory: Path, begun: bool) -> list[str]:
        """The words for this directory. ``begun``: the output is there, go on with it."""
        words = [f"{directory}/{word.removeprefix(f'{PLACE}/')}" if word.startswith(f"{PLACE}/") else word for word in self.words]
        if begun:
            if "--init" in words:  # a run keeps a copy of the policy that it started from
                at = words.index("--init")
                del words[at : at + 2]
            words.append("--resume")
        return words


def jobs(plan: Plan) -> tuple[Job, ...]:
    """All jobs, each after those that it needs. Seeds come one after the other, so that early ones can be compared early."""
    start = MethodPlan(plan.start.algorithm, plan.start.algorithm, plan.start.settings)
    acting = {method.name: _chain_flags(plan, method) for method in (start, *plan.methods)}
    tuned = {method.name for method in plan.methods if fine_tunes(method.algorithm)}

    def of(task: TaskPlan, seed: int) -> list[Job]:
        collect = _collect(task, seed)
        cloned = _train(task, start, seed, init="", budget=0, needs=(collect.name,))
        found = [collect]
        for method in (start, *plan.methods):
            if method is start:
                trained = cloned
            elif method.name in tuned:
                trained = _train(task, method, seed, init=cloned.run, budget=method.steps(plan, task), needs=(collect.name, cloned.name))
            else:
                trained = _train(task, method, seed, init="", budget=0, needs=(collect.name,))
            found += [trained, *_evaluations(plan, task, method, seed, trained, acting[method.name])]
        return found

    return tuple(job for seed in plan.seeds for task in plan.tasks for job in of(task, seed))


def selected(jobs: Sequence[Job], patterns: Sequence[str]) -> tuple[Job, ...]:
    """The jobs of the runs that any of the patterns names, and those that they need, in the order given.

    Args:
        jobs: of a plan.
        patterns: of ``TASK``, ``TASK/METHOD`` or ``TASK/METHOD/SEED``, each part as of a shell (``*/otpr``).

    Raises:
        PlanError: a pattern names no run.
    """
    by_name = {job.name: job for job in jobs}
    wanted: set[str] = set()
    for pattern in patterns:
        parts = pattern.split("/")
        found = [job for job in jobs if all(map(fnmatchcase, job.run.split("/"), parts)) and len(parts) <= _PARTS]
        if not found:
            tasks, methods, seeds = ([*dict.fromkeys(column)] for column in zip(*(job.run.split("/") for job in jobs), strict=True))
            raise PlanError(f"no run is {pattern!r}; tasks: {', '.join(tasks)}; methods: {', '.join(methods)}; seeds: {', '.join(seeds)}")
        waiting = [job.name for job in found]
        while waiting:
            name = waiting.pop()
            if name not in wanted:
                wanted.add(name)
                waiting += by_name[name].needs
    return tuple(job for job in jobs if job.name in wanted)


def _collect(task: TaskPlan, seed: int) -> Job:
    folder = f"{task.name}/{DEMONSTRATIONS}/{seed}"
    words = ["demos", "collect", "--task", task.task, "--episodes", str(task.demos), "--seed", str(seed), "--out", f"{PLACE}/{folder}"]
    if task.expert:
        words += ["--expert", task.expert]
    words += ["--workers", "1", "--json"]
    return Job(Kind.COLLECT, task.name, DEMONSTRATIONS, seed, tuple(words), (), f"{folder}/demos.json", 5 + 0.3 * task.demos)


def _train(task: TaskPlan, method: MethodPlan, seed: int, *, init: str, budget: int, needs: tuple[str, ...]) -> Job:
    run = f"{task.name}/{method.name}/{seed}"
    words = ["train", method.algorithm, "--task", task.task, "--demos", f"{PLACE}/{task.name}/{DEMONSTRATIONS}/{seed}"]
    settings = dict(method.settings)
    if init:
        words += ["--init", f"{PLACE}/{init}"]
        settings[BUDGET_SETTING] = budget
    words += ["--out", f"{PLACE}/{run}", "--seed", str(seed), *_flags(settings), "--workers", "1", "--json"]
    guess_s = 10 + budget / 40 if budget else 60.0
    return Job(Kind.TRAIN, task.name, method.name, seed, tuple(words), needs, f"{run}/config.json", guess_s, budget=budget)


def _evaluations(plan: Plan, task: TaskPlan, method: MethodPlan, seed: int, trained: Job, acting: tuple[str, ...]) -> list[Job]:
    judged = plan.evaluation
    return [
        Job(
            Kind.EVALUATE,
            task.name,
            method.name,
            seed,
            (
                *("eval", f"{PLACE}/{trained.run}", "--task", task.task, "--episodes", str(judged.episodes), "--seed", str(judged.seed)),
                *("--preset", preset, "--candidates", str(candidates)),
                *acting,
                *("--workers", "1", "--json"),
            ),
            (trained.name,),
            "",
            10 + 0.15 * judged.episodes,
            preset,
            candidates,
        )
        for preset in judged.presets
        for candidates in method.candidates
    ]


def _chain_flags(plan: Plan, method: MethodPlan) -> tuple[str, ...]:
    """How to make chunks: the same for all policies but those that have a chain of their own, or no diffusion's."""
    if own_chain(method.algorithm):
        return ()
    return ("--sampler", sampler(plan, method), "--steps", str(plan.evaluation.steps), "--eta", f"{DEFAULT_ETA:g}")


def _flags(settings: Mapping[str, object]) -> list[str]:
    words = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        words += [f"--{flag}" if value else f"--no-{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return words

# SPDX-License-Identifier: Apache-2.0
"""The plan of trials: which conditions, how often, on which cards. YAML, read strictly, and pinned to the files that it names."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from otpr_policy import artifact
from otpr_policy.contract import load_contract
from otpr_policy.errors import ContractError, OutputError, PlanError, unknown
from otpr_policy.files import write_text
from otpr_policy.strict_yaml import build, read_yaml

KIND = "otpr trials"
SCHEMA_VERSION = 1
PLAN_FILE = "plan.json"
MAY_GROW = ("blocks", "cards")  # a plan that was begun may ask for more trials, and for nothing else
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_SEED_LIMIT = 2**31


class Judge(Enum):
    """Whose verdict counts. There is one: two that disagree are no verdict."""

    OPERATOR = "operator"
    TWIN = "twin"  # the simulation's own rule of success


class Pacing(Enum):
    """What makes a twin's time pass."""

    REAL_TIME = "real_time"
    LOCKSTEP = "lockstep"


@dataclass(frozen=True)
class Condition:
    """One of the things that are compared.

    Args:
        name: how the report calls it.
        artifact: policy file, relative to the plan.
        robot: contract's name or path; by default the plan's.
        preset: distribution shift of the twin.
    """

    name: str
    artifact: str
    robot: str = ""
    preset: str = "nominal"


@dataclass(frozen=True)
class Plan:
    """A plan as it is written.

    Args:
        name: title of the report.
        conditions: two or more.
        blocks: trials of each condition; a block is one trial of each, in an order drawn for it, on one card.
        seed: of the order.
        robot: contract's name or path.
        world: ``twin``, ``robot``, or ``auto``: the twin where the contract has one.
        judge: by default the twin where one plays, else the operator.
        pacing: of the twin.
        time_limit_s: when a trial is over; 0 takes the longest horizon that the artifacts were evaluated with.
        scene_seed: card number n of a twin is the scene of seed ``scene_seed + n``.
        cards: how to set the scene up, one text per block, over again when there are fewer; for a robot.
    """

    name: str
    conditions: tuple[Condition, ...]
    blocks: int
    seed: int = 0
    robot: str = "panda_twin"
    world: str = "auto"
    judge: str = "auto"
    pacing: Pacing = Pacing.REAL_TIME
    time_limit_s: float = 0.0
    scene_seed: int = 30_000
    cards: tuple[str, ...] = ()


@dataclass(frozen=True)
class Arm:
    """A condition with everything that it stands for pinned: the report is about these files and no others."""

    name: str
    artifact: str  # path
    artifact_sha256: str
    algorithm: str
    robot: str
    robot_sha256: str
    preset: str


@dataclass(frozen=True)
class Study:
    """A plan that is ready to be carried out: see :class:`Plan` for what is not explained here.

    Args:
        task: that the artifacts were trained for.
        sim: whether a twin plays.
        time_limit_s: above 0.
    """

    name: str
    arms: tuple[Arm, ...]
    blocks: int
    seed: int
    task: str
    sim: bool
    judge: Judge
    pacing: Pacing
    time_limit_s: float
    scene_seed: int
    cards: tuple[str, ...] = field(default_factory=tuple)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "judge": self.judge.value, "pacing": self.pacing.value}


def load(path: Path) -> Study:
    """Reads a plan and everything that it names.

    Raises:
        PlanError: something in the plan is wrong; says what would be valid.
        ArtifactError, ContractError: a policy file or contract that must not be used, or that do not fit each other.
    """
    try:
        plan = build(Plan, read_yaml(path, "plan"), path.stem)
    except ContractError as error:
        raise PlanError(str(error)) from error
    _check(plan, path.stem)
    return resolve(plan, path.parent)


def resolve(plan: Plan, folder: Path) -> Study:
    """Pins a checked plan; paths in it are relative to ``folder``. Raises as :func:`load` does."""
    arms, tasks, horizons, twins = [], set(), [], []
    for condition in plan.conditions:
        policy = artifact.load(folder / condition.artifact)
        robot = condition.robot or plan.robot
        if Path(robot).suffix:
            robot = str(folder / robot)
        contract = load_contract(robot)
        contract.check_serves(policy.manifest.policy)
        manifest = policy.manifest
        tasks.add(manifest.provenance.task)
        horizons.append(manifest.evaluation.horizon / manifest.policy.control_rate_hz)
        twins.append(contract.twin)
        arms.append(
            Arm(
                condition.name,
                str(folder / condition.artifact),
                policy.sha256,
                manifest.provenance.algorithm,
                robot,
                hashlib.sha256(repr(contract).encode()).hexdigest(),
                condition.preset,
            )
        )
    if len(tasks) > 1:
        raise PlanError(f"{plan.name}: the artifacts are for different tasks, {' and '.join(sorted(tasks))}; a trial is about one")
    (task,) = tasks
    sim = _sim(plan, [twin is not None for twin in twins])
    for twin in twins:
        if sim and twin is not None and twin.task != task:
            raise PlanError(f"{plan.name}: the twin plays {twin.task!r}, the artifacts are for {task!r}")
    judge = _judge(plan, sim)
    if not sim and any(arm.preset != "nominal" for arm in arms):
        raise PlanError(f"{plan.name}: presets are a twin's; on a robot every condition's preset is nominal")
    limit = plan.time_limit_s or max(horizons)
    return Study(plan.name, tuple(arms), plan.blocks, plan.seed, task, sim, judge, plan.pacing, limit, plan.scene_seed, plan.cards)


def card_of(cards: Sequence[str], block: int) -> str:
    """The card of a block: the next one, over again when they are used up; empty when there are none."""
    return cards[block % len(cards)] if cards else ""


def settle(study: Study, directory: Path) -> None:
    """Takes the study as this directory's, or checks that it is, or that it asks for more trials of the same.

    Raises:
        PlanError: the directory is of another study; says what differs.
        OutputError: it is not a directory of trials, or cannot be written.
    """
    path = directory / PLAN_FILE
    ours = json.loads(json.dumps({"kind": KIND, "schema_version": SCHEMA_VERSION, "study": study.to_json()}))
    text = json.dumps(ours, indent=2) + "\n"
    if not path.exists():
        if directory.exists() and (not directory.is_dir() or any(one.name != ".lock" for one in directory.iterdir())):
            raise OutputError(f"{directory} exists and holds no trials; choose another --out")
        write_text(path, text)
        return
    theirs = _settled(path)
    before, now = theirs["study"], ours["study"]
    changed = [key for key in now if key not in MAY_GROW and _pinned(before.get(key)) != _pinned(now[key])]
    if before["blocks"] > now["blocks"]:
        changed.append("blocks")
    if any(card_of(before["cards"], block) != card_of(now["cards"], block) for block in range(before["blocks"])):
        changed.append("cards")
    if changed:
        what = ", ".join(f"{key}{_difference(before.get(key), now[key])}" for key in changed)
        raise PlanError(f"{directory} was begun with another plan: {what}; only trials may be added, choose another --out for the rest")
    if now != before:
        write_text(path, text)


def _pinned(value: Any) -> Any:
    """A setting without the paths of conditions: what lies there is pinned by its hash, and a path depends on where one stands."""
    if not isinstance(value, list):
        return value
    return [{k: v for k, v in one.items() if k not in ("artifact", "robot")} if isinstance(one, dict) else one for one in value]


def _settled(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["kind"] == KIND and data["schema_version"] == SCHEMA_VERSION and {"blocks", "cards"} <= set(data["study"]):
            return dict(data)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise OutputError(f"{path} is not a plan of trials of version {SCHEMA_VERSION}; choose another --out")


def _difference(before: Any, now: Any) -> str:
    """What changed, where that is short; conditions are not shown, for the operator must not learn them."""
    if isinstance(before, list) or isinstance(now, list):
        return ""
    return f" {before} -> {now}"


def _sim(plan: Plan, has_twin: list[bool]) -> bool:
    if plan.world == "auto":
        if len(set(has_twin)) > 1:
            raise PlanError(f"{plan.name}: some of the robots have a twin and some have not; say world: twin or robot")
        return has_twin[0]
    if plan.world == "twin" and not all(has_twin):
        raise PlanError(f"{plan.name}: world is twin, but a robot has none")
    return plan.world == "twin"


def _judge(plan: Plan, sim: bool) -> Judge:
    if plan.judge == "auto":
        return Judge.TWIN if sim else Judge.OPERATOR
    judge = Judge(plan.judge)
    if judge is Judge.TWIN and not sim:
        raise PlanError(f"{plan.name}: judge is twin, but no twin plays; a robot's trials are judged by the operator")
    return judge


def _check(plan: Plan, where: str) -> None:
    names = [condition.name for condition in plan.conditions]
    if len(names) < 2:
        raise PlanError(f"{where}.conditions: at least two are needed, got {len(names)}")
    for name in names:
        if not _NAME.fullmatch(name) or names.count(name) > 1:
            raise PlanError(f"{where}.conditions: {name!r} cannot be a name; each must be different, of letters, digits and ._-")
    if plan.blocks < 1:
        raise PlanError(f"{where}.blocks must be at least 1, got {plan.blocks}")
    for what, value in (("seed", plan.seed), ("scene_seed", plan.scene_seed)):
        if not 0 <= value < _SEED_LIMIT:
            raise PlanError(f"{where}.{what} {value} is not in 0..{_SEED_LIMIT - 1}")
    if not 0 <= plan.time_limit_s < float("inf"):
        raise PlanError(f"{where}.time_limit_s must be a finite number of at least 0, got {plan.time_limit_s}")
    worlds, judges = ("auto", "twin", "robot"), ("auto", *(judge.value for judge in Judge))
    for what, text, known in (("world", plan.world, worlds), ("judge", plan.judge, judges)):
        if text not in known:
            raise PlanError(f"{where}.{what}: {unknown('value', text, known)}")
    if any(not card.strip() for card in plan.cards):
        raise PlanError(f"{where}.cards: a card is empty")

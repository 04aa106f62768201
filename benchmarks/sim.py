# SPDX-License-Identifier: Apache-2.0
"""How many environment steps per second: robosuite as it is, our compiled stepping, and MuJoCo without any controller.

The three take turns, a few control steps each, so that whatever else the machine does meets all of them. A control step
is 25 physics steps. Stock steps include robosuite's observation; ours, from the same kind of actions, the observation
and the success test of a task. The floor is `mj_step` alone, 25 times from each state that our own run went through,
under the last torques. Times are of the CPU, which leaves out that of other programs; only the workers are timed by the
clock on the wall.

Run `make bench-sim`. It writes out/bench/sim.json and the table out/bench/sim.md.
"""

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from tqdm import tqdm

from otpr_policy.files import write_text
from otpr_policy.machine import machine
from otpr_policy.rotation import matrix_to_columns, rotation_vector_to_matrix
from otpr_policy.spec import Array, Field, VectorSpec
from otpr_sim import registry
from otpr_sim.env import Stepping, TaskSpec
from otpr_sim.robosuite_env import FINGER_SIGNS, RobosuiteEnv, robosuite
from otpr_sim.scene import Scene
from otpr_sim.stepping import PHYSICS, TESTED_VERSIONS, make_stepper
from otpr_sim.tasks import lift
from otpr_sim.tasks.panda import FINGER_RANGE

SCENES: dict[str, dict[str, str]] = {  # robosuite's name, and the body of each object
    "Lift": {"cube": "cube_main"},
    "PickPlaceCan": {"can": "Can_main"},
    "NutAssemblySquare": {"nut": "SquareNut_main"},
    "Door": {"door": "Door_door", "latch": "Door_latch"},
    "Stack": {"cube_a": "cubeA_main", "cube_b": "cubeB_main"},
    "ToolHang": {"stand": "stand_root", "frame": "frame_root", "tool": "tool_root"},
    "TwoArmLift": {"pot": "pot_root"},
}
TWO_ARMS = ("TwoArmLift",)
AMPLITUDE = 0.3  # of the action range
SUBSTEPS = 25
WARM_UP = 3  # steps
RESETS = 3
WORKER_SECONDS = 1.0  # of each turn
WORKER_TURNS = 5


@dataclass(frozen=True)
class Row:
    """Rates in environment steps per second, medians over the rounds; ratios are medians of each round's ratio."""

    task: str
    stock: float
    ours: float
    floor: float
    ratio: float
    of_floor: float
    reset_ms: float
    stock_reset_ms: float


class TwoArmScene:
    """Two arms on our stepper, with the observation that a task of theirs would have."""

    def __init__(self, scene: str, objects: Mapping[str, str]) -> None:
        self._env = _robosuite(scene, hard_reset=False)
        self._model, self._data = self._env.sim.model._model, self._env.sim.data._data
        self._stepper = make_stepper(self._env, Stepping.COMPILED)
        self.stepping = self._stepper.stepping
        self._bodies = [self._model.body(body).id for body in objects.values()]

    def reset(self, seed: int) -> None:
        """As robosuite does it; the seed is not needed here."""
        self._env.reset()
        self._stepper.start_episode()

    def step(self, action: Array) -> tuple[list[Array], bool]:
        """For one arm after the other: way (3,), turn (3,), fingers (1,)."""
        for arm, part in zip(self._stepper.arms, action.reshape(-1, 7), strict=True):
            position, rotation = self._stepper.hand_pose(arm)
            arm.command.goal_position[:] = position + part[:3]
            arm.command.goal_rotation[:] = rotation_vector_to_matrix(part[3:6]) @ rotation
            arm.command.finger_ctrl[:] = FINGER_SIGNS * part[6]
        self._stepper.advance(SUBSTEPS)
        observation = [self._data.xpos[body].copy() for body in self._bodies]
        for arm in self._stepper.arms:
            position, rotation = self._stepper.hand_pose(arm)
            observation += [position, matrix_to_columns(rotation), self._data.qpos[arm.finger_joints]]
        return observation, bool(self._env._check_success())

    def close(self) -> None:
        """Frees the simulation."""
        self._env.close()


def _robosuite(scene: str, hard_reset: bool = True) -> Any:
    return robosuite.make(
        scene,
        robots=["Panda", "Panda"] if scene in TWO_ARMS else "Panda",
        hard_reset=hard_reset,
        ignore_done=True,
        use_camera_obs=False,
        has_renderer=False,
        has_offscreen_renderer=False,
        renderer="mujoco",
        seed=0,
    )


def _spec(scene: str, objects: Mapping[str, str]) -> TaskSpec:
    hand = tuple(field for field in lift.SPEC.observation.fields if field.name != "cube_position")
    places = tuple(Field(f"{name}_position", "m", low=(-2.0,) * 3, high=(2.0,) * 3) for name in objects)
    return replace(lift.SPEC, name=scene, description=scene, observation=VectorSpec(hand + places))


def measure(scene: str, rounds: int, steps: int, progress: Any) -> Row:
    """One row. Every round starts from a reset and plays new random actions."""
    stock = _robosuite(scene)
    objects = SCENES[scene]
    ours = TwoArmScene(scene, objects) if scene in TWO_ARMS else RobosuiteEnv(_spec(scene, objects), Scene(scene, objects))
    assert ours.stepping is Stepping.COMPILED
    rng = np.random.default_rng(0)
    bounds = np.tile(lift.SPEC.action.high[:6], (len(stock.robots), 1))
    seconds = []
    for index in range(rounds):
        normalised = AMPLITUDE * rng.uniform(-1.0, 1.0, (WARM_UP + steps, len(stock.robots), 7))
        fingers = FINGER_RANGE / 2 * (1.0 - np.sign(normalised[:, :, 6:]))
        physical = np.concatenate([normalised[:, :, :6] * bounds, fingers], axis=2)
        stock.reset()
        ours.reset(index)
        of_stock = _play(stock.step, normalised.reshape(WARM_UP + steps, -1))
        of_ours = _play(ours.step, physical.reshape(WARM_UP + steps, -1))
        ours.reset(index)
        of_floor = _play_floor(ours, _record(ours, physical.reshape(WARM_UP + steps, -1)))
        seconds.append([of_stock / steps, of_ours / steps, of_floor / steps])
        progress.update()
    resets = [_cpu_seconds(partial(ours.reset, seed)) for seed in range(4 * RESETS)]
    stock_resets = [_cpu_seconds(stock.reset) for _ in range(RESETS)]
    stock.close()
    ours.close()
    of_stock, of_ours, of_floor = np.array(seconds).T
    return Row(
        task=scene,
        stock=float(1 / np.median(of_stock)),
        ours=float(1 / np.median(of_ours)),
        floor=float(1 / np.median(of_floor)),
        ratio=float(np.median(of_stock / of_ours)),
        of_floor=float(np.median(of_floor / of_ours)),
        reset_ms=float(1e3 * np.median(resets)),
        stock_reset_ms=float(1e3 * np.median(stock_resets)),
    )


def _play(step: Callable[[Array], Any], actions: Array) -> float:
    """CPU seconds of all steps but the first few."""
    for action in actions[:WARM_UP]:
        step(action)
    start = time.process_time()
    for action in actions[WARM_UP:]:
        step(action)
    return time.process_time() - start


def _record(ours: Any, actions: Array) -> list[Array]:
    """The physics state before each step but the first few; goes back to where it began."""
    model, data = ours._model, ours._data
    states = []
    for action in actions:
        states.append(np.empty(mujoco.mj_stateSize(model, PHYSICS)))
        mujoco.mj_getState(model, data, states[-1], PHYSICS)
        ours.step(action)
    return states[WARM_UP:]


def _play_floor(ours: Any, states: list[Array]) -> float:
    """CPU seconds of MuJoCo alone, a step's worth of physics from each state."""
    seconds = 0.0
    for state in states:
        mujoco.mj_setState(ours._model, ours._data, state, PHYSICS)
        seconds += _cpu_seconds(lambda: mujoco.mj_step(ours._model, ours._data, nstep=SUBSTEPS))
    return seconds


def _cpu_seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def measure_workers() -> dict[str, float]:
    """Environment steps per second of one process and of two at once, on Lift, by the clock on the wall: the best of several turns."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(2)]
    workers = [context.Process(target=_work, args=(theirs,), daemon=True) for _, theirs in pipes]
    for worker in workers:
        worker.start()
    ours = [mine for mine, _ in pipes]
    for pipe in ours:
        pipe.recv()  # it is ready
    turns = np.array([(_steps_per_second(ours[:1]), _steps_per_second(ours)) for _ in range(WORKER_TURNS)])
    for pipe, worker in zip(ours, workers, strict=True):
        pipe.send(None)
        worker.join()
    one, two = turns.max(axis=0).tolist()
    return {"one": one, "two": two, "ratio": two / one}


def _steps_per_second(pipes: list[Connection]) -> float:
    for pipe in pipes:
        pipe.send(WORKER_SECONDS)
    return float(sum(pipe.recv() for pipe in pipes))


def _work(pipe: Connection) -> None:
    """Plays Lift for as many seconds as it is told, and tells the rate, until it is told None."""
    with registry.make("lift") as env:
        actions = AMPLITUDE * np.random.default_rng(0).uniform(env.spec.action.low, env.spec.action.high, (50, env.spec.action.size))
        pipe.send("ready")
        while (seconds := pipe.recv()) is not None:
            env.reset(0)
            steps, start = 0, time.perf_counter()
            while time.perf_counter() - start < seconds:
                env.step(actions[steps % len(actions)])
                steps += 1
            pipe.send(steps / (time.perf_counter() - start))


def table(rows: list[Row], workers: dict[str, float]) -> str:
    """Markdown for docs/results.md."""
    lines = ["| scene | stock | ours | floor | ours / stock | ours / floor | reset | stock reset |", "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        rates = f"{row.stock:.0f} | {row.ours:.0f} | {row.floor:.0f} | {row.ratio:.1f} | {row.of_floor:.2f}"
        lines.append(f"| {row.task} | {rates} | {row.reset_ms:.1f} ms | {row.stock_reset_ms:.0f} ms |")
    one, two, ratio = workers["one"], workers["two"], workers["ratio"]
    lines += ["", f"Two worker processes on Lift: {two:.0f} steps/s against {one:.0f} of one, {ratio:.2f} times."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints the table, writes both files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scenes", nargs="+", choices=list(SCENES), default=list(SCENES))
    parser.add_argument("--rounds", type=int, default=15, help="turns of each of the three (default 15)")
    parser.add_argument("--steps", type=int, default=20, help="control steps per turn (default 20)")
    parser.add_argument("--out", type=Path, default=Path("out/bench"), help="folder of sim.json and sim.md (default out/bench)")
    options = parser.parse_args()
    with tqdm(total=options.rounds * len(options.scenes), unit="round") as progress:
        rows = [measure(scene, options.rounds, options.steps, progress) for scene in options.scenes]
    workers = measure_workers()
    here = {**machine(), **TESTED_VERSIONS}
    text = table(rows, workers)
    options.out.mkdir(parents=True, exist_ok=True)
    report = {"rows": [asdict(row) for row in rows], "workers": workers, "machine": here, "unit": "environment steps per second"}
    write_text(options.out / "sim.json", json.dumps(report, indent=2) + "\n")
    write_text(options.out / "sim.md", text)
    print(text, end="")


if __name__ == "__main__":
    main()

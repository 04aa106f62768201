# SPDX-License-Identifier: Apache-2.0
"""``otpr demo``: a policy file drives the simulated robot over real ROS 2 topics, and the outcome is counted."""

import argparse
import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from otpr_policy import artifact, bringup
from otpr_policy.bringup import POLICY_STATUS, TWIN_STATUS
from otpr_policy.cli import Command
from otpr_policy.contract import load_contract
from otpr_policy.errors import ContractError, TaskError
from otpr_policy.files import make_directory, refuse_existing, write_text
from otpr_policy.process_logs import ProcessLogs
from otpr_policy.success import SuccessRate
from otpr_policy.supervisor import Supervisor
from otpr_policy.table import format_table
from otpr_sim import registry
from otpr_sim.env import TaskSpec
from otpr_sim.filmstrip import filmstrip_of_trace

if TYPE_CHECKING:  # needs rclpy, which reads the ROS domain when it is first used: not before the demo has chosen one
    from otpr_policy.ros.episode_runner import Outcome

_START_TIMEOUT_S = 60.0  # the first start after an installation compiles bytecode and reads meshes from disk
SUMMARY = "summary.json"
_DEFAULT_SEED = 20_000  # apart from the seeds that demonstrations, training and `otpr eval` use by default
_PERCENTILES = ("p50", "p99", "p999", "max")
_COUNTERS = ("ticks", "commands", "inferences", "deadline_misses", "clamps", "rejects", "holds", "refused_messages")


@dataclass(frozen=True)
class Demo:
    """What to run and where to write. ``required`` is the least success rate that counts as working."""

    policy: Path
    robot: str
    episodes: int
    seed: int
    out: Path
    lockstep: bool
    required: float


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", type=Path, help="policy file (.onnx)")
    parser.add_argument("--robot", default="panda_twin", help="name of a robot contract with a twin, or path of one (.yaml)")
    parser.add_argument("--episodes", type=int, default=20, help="number of episodes")
    parser.add_argument("--seed", type=int, default=_DEFAULT_SEED, help="seed of initial states and denoising noise")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="directory for summary.json, the filmstrip and the logs")
    parser.add_argument("--lockstep", action="store_true", help="simulate step by step with the policy instead of in real time")
    parser.add_argument("--require", type=float, default=0.8, help="exit with status 1 when the success rate is below this")
    parser.add_argument("--overwrite", action="store_true", help="replace the results of an earlier demo in --out")
    parser.add_argument("--json", action="store_true", help="print the summary as one JSON object")


def _run(arguments: argparse.Namespace) -> int:
    if arguments.episodes < 1:
        raise TaskError(f"--episodes {arguments.episodes}: at least one is needed")
    if arguments.seed < 0:
        raise TaskError(f"--seed {arguments.seed} must be 0 or more")
    if not 0 <= arguments.require <= 1:
        raise TaskError(f"--require {arguments.require} is not a success rate, 0 to 1")
    if (arguments.out / SUMMARY).exists():
        refuse_existing(arguments.out, arguments.overwrite)
    demo = Demo(
        arguments.artifact, arguments.robot, arguments.episodes, arguments.seed, arguments.out, arguments.lockstep, arguments.require
    )
    summary = run_demo(demo)
    write_text(demo.out / SUMMARY, json.dumps(summary, indent=2) + "\n")
    needed = math.ceil(demo.required * demo.episodes)
    if arguments.json:
        print(json.dumps(summary))
    else:
        print(describe(summary))
        print(f"\nwritten: {demo.out / SUMMARY}, {summary['filmstrip'] or 'no filmstrip'}, logs in {demo.out}")
    if summary["successes"] < needed:
        raise TaskError(f"{summary['successes']}/{demo.episodes} episodes succeeded, {needed} are required; see {demo.out}")
    return 0


def run_demo(demo: Demo) -> dict[str, Any]:
    """Starts policy node and twin, runs the episodes, stops both, and draws one episode. Returns the summary."""
    policy, task = _check(demo)
    make_directory(demo.out)
    trace = demo.out / "trace"
    for stale in trace.glob("episode_*.npz"):
        stale.unlink()
    outcomes, diagnostics = _run_processes(demo, task, trace)
    rate = SuccessRate(sum(outcome.success for outcome in outcomes), len(outcomes))
    return {
        "task": task.name,
        **rate.to_json(),
        "seed": demo.seed,
        "artifact_sha256": policy.sha256,
        "pacing": "lockstep" if demo.lockstep else "real_time",
        "horizon": task.horizon,
        "success_rule": task.success_rule,
        "observation_to_command_ms": _latency(diagnostics[TWIN_STATUS], "observation_to_command"),
        "inference_ms": _latency(diagnostics[POLICY_STATUS], "inference"),
        "providers": diagnostics[POLICY_STATUS]["providers"],
        "late_simulation_cycles": int(diagnostics[TWIN_STATUS]["late_cycles"]),
        **{name: int(diagnostics[POLICY_STATUS][name]) for name in _COUNTERS},
        "outcomes": [{"episode": o.episode, "success": o.success, "seconds": round(o.seconds, 3), "ended": o.ended} for o in outcomes],
        "filmstrip": _draw(demo, task, trace, [outcome.episode for outcome in outcomes if outcome.success]),
    }


def _check(demo: Demo) -> tuple[artifact.PolicyArtifact, TaskSpec]:
    """Finds the user's mistakes before any process starts."""
    policy = artifact.load(demo.policy)
    contract = load_contract(demo.robot)
    contract.check_serves(policy.manifest.policy)
    if contract.twin is None:
        raise ContractError(f"robot {contract.robot} has no twin to run the demo on")
    task = registry.spec(contract.twin.task)
    if policy.manifest.provenance.task != contract.twin.task:
        raise TaskError(f"{demo.policy} is for task {policy.manifest.provenance.task!r}, the twin plays {contract.twin.task!r}")
    return policy, task


def _run_processes(demo: Demo, task: TaskSpec, trace: Path) -> "tuple[list[Outcome], dict[str, dict[str, str]]]":
    arguments = {"policy": str(demo.policy.resolve()), "robot": demo.robot, "log_level": "warn"}
    overrides: dict[str, dict[str, bringup.ParameterValue]] = {
        "policy_node": {
            "noise_seed": demo.seed,
            "pacing": "observation" if demo.lockstep else "clock",
            "flight_directory": str((demo.out / "flights").resolve()),
        },
        "twin": {"seed": demo.seed, "pacing": "lockstep" if demo.lockstep else "real_time", "trace": str(trace.resolve())},
    }
    environment = bringup.isolated(bringup.environment(arguments, os.environ))
    with ProcessLogs(demo.out) as logs, Supervisor(logs.write) as supervisor:
        for process in bringup.processes(arguments, overrides):
            supervisor.start(process, environment)
        return _run_episodes(demo, task, supervisor, logs, environment)


def _run_episodes(
    demo: Demo, task: TaskSpec, supervisor: Supervisor, logs: ProcessLogs, environment: Mapping[str, str]
) -> "tuple[list[Outcome], dict[str, dict[str, str]]]":
    os.environ.update({name: environment[name] for name in ("ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE")})
    from otpr_policy.ros.episode_runner import running  # rclpy reads the domain when it is first used

    def alive() -> str | None:
        ended = supervisor.poll()
        return None if ended is None else f"{ended}: {logs.last_line(ended.name)}"

    with running(horizon_s=task.horizon / task.control_rate_hz, lockstep=demo.lockstep, alive=alive) as runner:
        runner.wait_until_ready(_START_TIMEOUT_S)
        outcomes = []
        with tqdm(total=demo.episodes, desc=f"{task.name} over ROS 2", unit="episode", file=sys.stderr) as bar:
            for index in range(demo.episodes):
                if index > 0:
                    runner.next_episode()
                outcomes.append(runner.run_episode())
                bar.set_postfix_str(f"{sum(o.success for o in outcomes)}/{len(outcomes)} succeeded")
                bar.update()
        runner.next_episode()  # ends the last episode, so that its trace is written
        return outcomes, runner.wait_for_diagnostics()


def _latency(values: Mapping[str, str], prefix: str) -> dict[str, float] | None:
    keys = {name: f"{prefix}_{name}_ms" for name in _PERCENTILES}
    return {name: float(values[key]) for name, key in keys.items()} if keys["p50"] in values else None


def _draw(demo: Demo, task: TaskSpec, trace: Path, successes: list[int]) -> str | None:
    """Draws the first successful episode, or the first one, and returns the picture's path."""
    episode = successes[0] if successes else 0
    source = trace / f"episode_{episode:04d}.npz"
    if not source.exists():
        return None
    target = demo.out / f"{task.name}.png"
    print("drawing the filmstrip", file=sys.stderr)
    filmstrip_of_trace(task, source, target)
    return str(target)


def describe(summary: Mapping[str, Any]) -> str:
    """The summary as a table for a person."""
    rate = SuccessRate(summary["successes"], summary["episodes"])
    rows: list[tuple[str, str]] = [("success", f"{rate}  (95 % Wilson interval)")]
    for key, label in (("observation_to_command_ms", "observation to command"), ("inference_ms", "inference")):
        latency = summary[key]
        rows.append((label, "none" if latency is None else f"p50 {latency['p50']:.2f} ms, p99 {latency['p99']:.2f} ms"))
    rows += [
        ("deadline misses", f"{summary['deadline_misses']} of {summary['ticks']} ticks"),
        ("simulation too late", f"{summary['late_simulation_cycles']} cycles of 10 ms"),
        ("clamps", str(summary["clamps"])),
        ("rejects", str(summary["rejects"])),
        ("holds", str(summary["holds"])),
        ("provider", summary["providers"]),
        ("artifact", summary["artifact_sha256"]),
    ]
    title = f"{summary['task']}, {summary['pacing'].replace('_', ' ')}, seed {summary['seed']}"
    return format_table((title, ""), rows)


COMMAND = Command("run a policy file on the simulated robot over ROS 2 and report success and latencies", _add_arguments, _run)

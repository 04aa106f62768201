# SPDX-License-Identifier: Apache-2.0
"""Runs a trial on a robot or its twin: starts the condition's processes, engages, waits, disengages, stops them.

Every trial has processes of its own, so that no trial can depend on the one before it.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from otpr_operator.trials.journal import Ended, Run
from otpr_operator.trials.plan import Arm, Pacing, Study
from otpr_operator.trials.schedule import Trial
from otpr_policy import bringup
from otpr_policy.errors import EnvironmentSetupError
from otpr_policy.files import make_directory
from otpr_policy.process_logs import ProcessLogs
from otpr_policy.ros.episode_runner import HORIZON, OPERATOR, SUCCESS, EpisodeRunner, Outcome, running
from otpr_policy.supervisor import Supervisor

_START_TIMEOUT_S = 120.0  # the first start after an installation compiles
_NOT_MEASURED = ("sha256", "episode")


class ProcessRobot:
    """A robot or twin behind its topics; see :class:`otpr_operator.trials.session.Robot`."""

    def __init__(self, study: Study, directory: Path, environment: Mapping[str, str]) -> None:
        """Args:
        study: what is run.
        directory: the processes' messages go to ``logs/<trial>`` below it. They name the condition; nothing else that is shown does.
        environment: for the processes, apart from what a bring-up sets by itself.
        """
        self._study = study
        self._logs = directory / "logs"
        self._environment = dict(environment)

    def run(self, trial: Trial, arm: Arm, wants_end: Callable[[], bool]) -> Run:
        """See :class:`otpr_operator.trials.session.Robot`."""
        logs_at = self._logs / f"{trial.number:04d}"
        make_directory(logs_at)
        lockstep = self._study.sim and self._study.pacing is Pacing.LOCKSTEP
        arguments, overrides = self._bringup(trial, arm, lockstep)
        environment = bringup.environment(arguments, self._environment)
        with ProcessLogs(logs_at) as logs, Supervisor(logs.write) as supervisor:
            for process in bringup.processes(arguments, overrides):
                supervisor.start(process, environment)

            def alive() -> str | None:
                ended = supervisor.poll()
                return None if ended is None else f"{ended}: {logs.last_line(ended.name)}"

            with running(horizon_s=self._study.time_limit_s, lockstep=lockstep, alive=alive, twin=self._study.sim) as runner:
                runner.wait_until_ready(_START_TIMEOUT_S)
                _check_identity(runner, arm)
                try:
                    outcome = runner.run_episode(wants_end)
                    return _as_run(outcome, measured(runner.wait_for_diagnostics()))
                except EnvironmentSetupError as error:
                    if not runner.engaged:
                        raise
                    return Run(Ended.FAULT, str(error))

    def _bringup(self, trial: Trial, arm: Arm, lockstep: bool) -> tuple[dict[str, str], dict[str, dict[str, bringup.ParameterValue]]]:
        arguments = {
            "policy": os.path.abspath(arm.artifact),
            "robot": arm.robot,
            "sim": "true" if self._study.sim else "false",
            "log_level": "warn",
        }
        policy: dict[str, bringup.ParameterValue] = {"noise_seed": trial.scene_seed, "pacing": "observation" if lockstep else "clock"}
        twin: dict[str, bringup.ParameterValue] = {"seed": trial.scene_seed, "preset": arm.preset, "pacing": self._study.pacing.value}
        return arguments, {"policy_node": policy, "twin": twin}


def measured(diagnostics: Mapping[str, Mapping[str, str]]) -> dict[str, float]:
    """The numbers in the nodes' statuses, by name."""
    found: dict[str, float] = {}
    for values in diagnostics.values():
        for name, text in values.items():
            try:
                found |= {} if name in _NOT_MEASURED else {name: float(text)}
            except ValueError:
                continue  # a fact in words
    return found


def _check_identity(runner: EpisodeRunner, arm: Arm) -> None:
    runs = runner.artifact.get("sha256", "")
    if runs != arm.artifact_sha256:
        raise EnvironmentSetupError(f"the policy node runs artifact {runs[:12]}, the plan says {arm.artifact_sha256[:12]}")


def _as_run(outcome: Outcome, numbers: dict[str, float]) -> Run:
    ways = {SUCCESS: Ended.SUCCESS_SEEN, HORIZON: Ended.TIME_OUT, OPERATOR: Ended.OPERATOR}
    ended = ways.get(outcome.ended, Ended.STOPPED)
    detail = outcome.ended if ended is Ended.STOPPED else ""
    return Run(ended, detail, round(outcome.seconds, 3), numbers)

# SPDX-License-Identifier: Apache-2.0
"""``otpr compare``: order, parallel jobs, failures, interruption, going on, and the report. A stand-in plays the commands."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from html import unescape
from pathlib import Path

import fake_otpr
import pytest
from toy_runs import run_command

from otpr_policy.errors import OutputError, PlanError
from otpr_policy.machine import machine
from otpr_trainer.commands.compare import COMMAND
from otpr_trainer.compare import children, code
from otpr_trainer.compare import runner as runners
from otpr_trainer.compare.plan import load
from otpr_trainer.compare.progress import Durations
from otpr_trainer.compare.records import locked

PLAN = """
name: small
tasks: [{task: lift, demos: 2}]
seeds: [0, 1]
budget: 100
evaluation: {episodes: 4, presets: [nominal]}
methods:
  - {name: filtered_bc, algorithm: filtered_bc}
  - {name: otpr, algorithm: otpr, candidates: [1, 8]}
control: filtered_bc
"""
JOBS = 2 * (1 + 2 + 2 + 3)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("OTPR_FAKE", str(tmp_path))
    program = (sys.executable, "-S", fake_otpr.__file__)
    monkeypatch.setattr(runners.Runner.__init__, "__defaults__", (program,))
    monkeypatch.setattr(runners, "POLL_S", 0.01)
    (tmp_path / "plan.yaml").write_text(PLAN)
    return tmp_path


def compare(folder, *words):
    return run_command(COMMAND, folder / "plan.yaml", "--out", folder / "out", *words)


def calls(folder):
    path = folder / "calls"
    found = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def report(folder):
    return json.loads((folder / "out/report.json").read_text())


def test_each_job_runs_once_on_one_thread_and_a_second_call_runs_none(folder, capsys):
    assert compare(folder) == 0
    first = calls(folder)
    assert len(first) == len(set(first)) == JOBS and all(call.startswith("1 ") for call in first)
    assert f"[{JOBS}/{JOBS}]" in capsys.readouterr().err
    before = (folder / "out/report.md").read_text()
    assert compare(folder) == 0
    assert calls(folder) == [] and (folder / "out/report.md").read_text() == before


def test_the_report_holds_every_seed_and_the_paired_differences(folder, capsys):
    assert compare(folder, "--json") == 0
    rows = {(row["method"], row["candidates"]): row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert list(rows) == [("bc", 1), ("filtered_bc", 1), ("otpr", 1), ("otpr", 8)]
    assert [row["success"]["mean"] for row in rows.values()] == [0.25, 0.5, 0.75, 0.75]
    assert [seed["outcomes"] for seed in rows["otpr", 1]["seeds"]] == ["1110", "1101"]
    assert rows["otpr", 8]["against_start"]["mean"] == 0.5 and rows["otpr", 8]["against_control"]["mean"] == 0.25
    assert rows["bc", 1]["against_start"] is None and rows["filtered_bc", 1]["against_control"] is None
    assert (rows["otpr", 1]["environment_steps"], rows["otpr", 1]["training_seconds"]) == (100, 10)
    assert (rows["bc", 1]["environment_steps"], rows["bc", 1]["training_seconds"]) == (0, 4)
    whole = report(folder)
    assert whole["rows"] == list(rows.values()) and whole["missing"] == []
    assert whole["machines"] == [{**machine(), "jobs": JOBS}]
    assert all(job["done"] and job["command"].startswith("otpr ") and job["seconds"] > 0 for job in whole["jobs"])
    text = (folder / "out/report.md").read_text()
    assert "| otpr | best of 8 | 0.750 [" in text and "| 0.75, 0.75 | 100 | 10 s | +0.500 [" in text
    assert f"; {machine()['cores']} cores ({machine()['cpu']}), Python {machine()['python']}, one thread per job. 16 of 16" in text
    assert "## All seeds" in text and "Interquartile mean" in text and "better than filtered_bc" in text
    assert str(folder) not in text + (folder / "out/report.json").read_text()
    assert (folder / "out/curves.png").read_bytes().startswith(b"\x89PNG")
    assert "](curves.png)\n\nEvaluations during training, each a mark" in text
    assert "critic's choice.</p>" in unescape((folder / "out/report.html").read_text())


def test_a_job_shorter_than_a_tenth_of_a_second_has_taken_time_too(folder, monkeypatch):
    monkeypatch.setattr(children.Child, "seconds", property(lambda _: 0.0123))
    assert compare(folder) == 0
    assert {job["seconds"] for job in report(folder)["jobs"]} == {0.012}


def test_episodes_that_were_lost_are_told_by_run(folder):
    assert compare(folder) == 0
    assert report(folder)["lost_episodes"] == [] and "lost" not in (folder / "out/report.md").read_text()
    run, other = (folder / "out/lift" / name for name in ("otpr/0", "filtered_bc/1"))
    (run / "metrics.csv").write_text("step,seconds,rollout/lost_episodes\n50,5,0\n100,10,3\n")
    (other / "evaluations.csv").write_text("step,seconds,policy/success,policy/episodes\n0,1,0.5,50\n100,10,0.45,40\n")
    assert compare(folder, "--report-only") == 0
    assert [tuple(one.values()) for one in report(folder)["lost_episodes"]] == [("lift/otpr/0", 3, 0), ("lift/filtered_bc/1", 0, 10)]
    text = (folder / "out/report.md").read_text()
    assert "left out: lift/otpr/0 (3 of training); lift/filtered_bc/1 (10 of evaluations during training)." in text


def test_what_is_cloned_is_reported_without_environment_steps(folder, capsys):
    (folder / "plan.yaml").write_text(PLAN.replace("algorithm: filtered_bc}", "algorithm: bridger}"))
    assert compare(folder) == 0
    steps = {row["method"]: (row["environment_steps"], row["training_seconds"]) for row in report(folder)["rows"]}
    assert steps == {"bc": (0, 4.0), "filtered_bc": (0, 4.0), "otpr": (100, 10.0)}


def test_a_failed_job_is_shown_and_stops_only_what_needs_it(folder, capsys):
    (folder / "fail-train-otpr-0").touch()
    assert compare(folder) == 1
    shown = capsys.readouterr().err
    assert "FAILED lift/otpr/0/train: exit status 3" in shown and "    the last words" in shown
    assert f"otpr train otpr --task lift --demos {folder}/out/lift/demos/0" in shown and "1 job failed" in shown
    missing = ["lift/otpr/0/train", "lift/otpr/0/evaluate-nominal-1", "lift/otpr/0/evaluate-nominal-8"]
    assert report(folder)["missing"] == missing
    assert (
        "| otpr | one sample | 0.750" in (folder / "out/report.md").read_text() and "| -, 0.75 |" in (folder / "out/report.md").read_text()
    )
    (folder / "fail-train-otpr-0").unlink()
    calls(folder)
    assert compare(folder) == 0
    assert len(calls(folder)) == 3 and report(folder)["missing"] == []


def test_ctrl_c_lets_trainings_save_and_the_next_call_goes_on(folder, capsys):
    (folder / "hang-train-otpr-0").touch()
    run = folder / "out/lift/otpr/0"
    threading.Thread(target=interrupt_when, args=(run / "pid",), daemon=True).start()
    assert compare(folder, "--jobs", 1) == 130
    shown = capsys.readouterr().err
    assert f"go on with: otpr compare {folder}/plan.yaml --out {folder}/out --jobs 1\n" in shown and "5 of 16 jobs are done" in shown
    assert (run / "saved").exists() and not alive(run)
    begun = calls(folder)
    assert len(begun) == 6
    assert compare(folder) == 0
    resumed = [call for call in calls(folder) if call.endswith("--resume")]
    assert len(resumed) == 1 and f"--out {run} " in resumed[0] and "--init" not in resumed[0]


def test_the_terminals_ctrl_c_does_not_reach_a_job_a_second_time(folder):
    """A training that gets two of them ends without a checkpoint."""
    (folder / "hang-train-bc-0").touch()
    run = folder / "out/lift/bc/0"
    groups = []
    threading.Thread(target=interrupt_when, args=(run / "pid", lambda pid: groups.append(os.getpgid(pid))), daemon=True).start()
    assert compare(folder, "--jobs", 1) == 130
    assert len(groups) == 1 and groups[0] != os.getpgid(0)


def test_a_second_ctrl_c_ends_a_job_that_does_not_listen(folder):
    (folder / "hang-train-bc-0").touch()
    (folder / "deaf-train-bc-0").touch()
    run = folder / "out/lift/bc/0"

    def twice():
        interrupt_when(run / "pid")
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=twice, daemon=True).start()
    begin = time.monotonic()
    assert compare(folder, "--jobs", 1) == 130
    assert not alive(run) and not (run / "saved").exists() and time.monotonic() < begin + 50


def test_no_job_outlives_a_comparison_that_is_killed(folder):
    (folder / "hang-train-bc-0").touch()
    run = folder / "out/lift/bc/0"
    program = (
        "import sys; from otpr_trainer.compare import runner as r; from otpr_trainer.commands.compare import COMMAND; import toy_runs; "
        f"r.Runner.__init__.__defaults__ = ((sys.executable, '-S', {fake_otpr.__file__!r}),); "
        f"toy_runs.run_command(COMMAND, {str(folder / 'plan.yaml')!r}, '--out', {str(folder / 'out')!r})"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.DEVNULL)
    wait_for(run / "pid")
    killed.kill()
    killed.wait()
    wait_for(run / "saved")
    deadline = time.monotonic() + 20
    while alive(run) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(run)


def test_another_plan_in_the_same_directory_is_refused_with_what_changed(folder):
    assert compare(folder) == 0
    (folder / "plan.yaml").write_text(PLAN.replace("budget: 100", "budget: 200").replace("[0, 1]", "[0, 1, 2]"))
    calls(folder)
    with pytest.raises(PlanError, match=r"another plan: budget 100 -> 200, settings.*; choose another --out"):
        compare(folder)
    (folder / "plan.yaml").write_text(PLAN.replace("[0, 1]", "[0]"))
    with pytest.raises(PlanError, match="another plan: seeds 1 present -> absent; choose another --out"):
        compare(folder)
    assert calls(folder) == []


def test_a_plan_may_ask_for_more_of_the_same_and_what_is_done_is_not_repeated(folder):
    assert compare(folder) == 0
    calls(folder)
    more = (
        PLAN.replace("[0, 1]", "[2, 0, 1]").replace("[nominal]", "[nominal, hard]").replace("[1, 8]", "[1, 4, 8]").replace("small", "big")
    )
    (folder / "plan.yaml").write_text(more)
    assert compare(folder) == 0
    done = calls(folder)
    assert sum(call.split()[1] == "train" for call in done) == 3  # those of the new seed
    again = [call for call in done if call.split()[1] == "eval" and "/2 " not in call]
    assert again and all("--preset hard" in call or "--candidates 4" in call for call in again)
    assert compare(folder) == 0 and calls(folder) == []


def test_other_defaults_of_a_method_are_another_plan(folder):
    assert compare(folder) == 0
    path = folder / "out/plan.json"
    plan = json.loads(path.read_text())
    del plan["settings"]["otpr"]["pool"]  # as a version wrote it that did not have this setting
    path.write_text(json.dumps(plan))
    with pytest.raises(PlanError, match=r"another plan: settings.otpr.pool absent -> own; choose another --out"):
        compare(folder)
    assert compare(folder, "--report-only") == 0


def as_of_another_package(folder, monkeypatch):
    """The plan's otpr, as if another package had it. Returns a file of that package."""
    package = folder / "site/somebodys_package"
    package.mkdir(parents=True)
    for name in ("__init__", "method", "loss"):
        (package / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(str(folder / "site"))
    modules = code.modules
    monkeypatch.setattr(code, "modules", lambda plan: {**modules(plan), "otpr": "somebodys_package.method"})
    return package / "loss.py"


def test_a_method_that_is_other_code_than_its_runs_is_refused_until_they_are_gone(folder, monkeypatch):
    loss = as_of_another_package(folder, monkeypatch)
    assert compare(folder) == 0 and list(json.loads((folder / "out/plan.json").read_text())["code"]) == ["otpr"]
    assert compare(folder) == 0
    calls(folder)
    loss.write_text("SCALE = 2\n")
    runs, kept = (folder / "out/lift/otpr", folder / "out/jobs/lift/otpr"), (folder / "out/plan.json").read_text()
    said = f"holds runs of otpr by other code than its package has now; choose another --out, or remove {runs[0]} {runs[1]}"
    with pytest.raises(PlanError, match=re.escape(said)):
        compare(folder)
    assert calls(folder) == [] and (folder / "out/plan.json").read_text() == kept
    assert compare(folder, "--report-only") == 0
    for place in runs:
        shutil.rmtree(place)
    assert compare(folder) == 0
    assert {call.split()[2] for call in calls(folder) if call.split()[1] == "train"} == {"otpr"}
    assert compare(folder) == 0 and calls(folder) == []


def test_a_comparison_of_a_version_that_kept_no_code_goes_on(folder, monkeypatch):
    assert compare(folder) == 0
    path = folder / "out/plan.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "code"}))
    as_of_another_package(folder, monkeypatch)
    assert compare(folder) == 0 and list(json.loads(path.read_text())["code"]) == ["otpr"]


def test_of_code_every_file_of_its_own_package_counts(folder, monkeypatch):
    loss, plan = as_of_another_package(folder, monkeypatch), load(str(folder / "plan.yaml"))
    found = [code.of(plan)]
    for path, text in ((loss, "SCALE = 2\n"), (loss.parent / "more.py", ""), (loss.parent / "more.py", "\n")):
        path.write_text(text)
        found.append(code.of(plan))
    loss.rename(loss.with_name("losses.py"))
    found.append(code.of(plan))
    (folder / "site/other.py").write_text("")
    (loss.parent / "notes.txt").write_text("")
    assert len({one["otpr"] for one in found}) == 5 and code.of(plan) == found[-1]


def test_a_job_whose_output_is_gone_runs_again(folder):
    assert compare(folder) == 0
    calls(folder)
    (folder / "out/lift/otpr/1/config.json").unlink()
    assert compare(folder) == 0
    assert [call.split()[1:3] for call in calls(folder)] == [["train", "otpr"]]


def test_report_only_runs_nothing_and_needs_a_comparison(folder):
    with pytest.raises(OutputError, match="holds no comparison yet"):
        compare(folder, "--report-only")
    (folder / "fail-demos-demos-1").touch()
    assert compare(folder) == 1
    (folder / "out/report.md").unlink()
    calls(folder)
    assert compare(folder, "--report-only") == 0
    assert calls(folder) == [] and "8 of 16 jobs are done" in (folder / "out/report.md").read_text()


def test_a_part_of_the_plan_runs_with_what_it_needs_and_the_rest_may_follow(folder, capsys):
    assert compare(folder, "--only", "*/otpr/1") == 0
    ran = calls(folder)
    assert len(ran) == 5, "demonstrations, start policy, training, two evaluations"
    assert not any("filtered_bc" in call or "/0" in call for call in ran)
    assert "Not done" in capsys.readouterr().out
    assert compare(folder, "--only", "*/otpr/*") == 0
    assert len(calls(folder)) == 5
    assert compare(folder) == 0
    assert len(calls(folder)) == JOBS - 10


@pytest.mark.parametrize("pattern", ["can", "lift/dppo", "lift/otpr/7", "lift/otpr/1/train"])
def test_a_part_that_the_plan_does_not_have_is_refused_with_what_it_has(folder, pattern):
    said = f"no run is '{pattern}'; tasks: lift; methods: demos, bc, filtered_bc, otpr; seeds: 0, 1"
    with pytest.raises(PlanError, match=re.escape(said)):
        compare(folder, "--only", pattern)
    assert calls(folder) == []
    assert not (folder / "out").exists()


def test_a_foreign_directory_and_one_in_use_are_left_alone(folder):
    (folder / "out").mkdir()
    (folder / "out/thesis.tex").touch()
    with pytest.raises(OutputError, match="is not a comparison; choose another --out"):
        compare(folder)
    with pytest.raises(PlanError, match="--jobs must be at least 1, got 0"):
        compare(folder, "--jobs", 0)
    assert [path.name for path in (folder / "out").iterdir()] == ["thesis.tex"] and calls(folder) == []
    with locked(folder / "out"), pytest.raises(OutputError, match="another 'otpr compare' is at work"), locked(folder / "out"):
        pass


def test_what_a_killed_write_of_the_plan_left_is_in_nobodys_way(folder, monkeypatch):
    left = []

    def killed(temporary, target):
        left.append((temporary, Path(temporary).read_text()))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        compare(folder)
    temporary, half = left[0]
    Path(temporary).write_text(half[:10])  # a process that is killed does not tidy up
    assert [path.name for path in (folder / "out").iterdir()] == [Path(temporary).name]
    assert compare(folder) == 0 and len(calls(folder)) == JOBS


def test_time_left_is_learnt_from_like_jobs_and_shared_among_processes():
    from otpr_trainer.compare import plan as plans
    from otpr_trainer.compare.jobs import jobs

    of = {job.name: job for job in jobs(plans.load("lift5"))}
    trained, other, alike = (of[f"lift/{name}/train"] for name in ("otpr/0", "filtered_bc/0", "otpr/1"))
    durations = Durations()
    assert durations.estimate(trained) == trained.guess_s
    durations.add(trained, 100.0)
    assert durations.estimate(alike) == 100.0
    assert durations.estimate(other) == pytest.approx(other.guess_s * 100.0 / trained.guess_s)
    assert durations.left([alike, alike], {alike: 0.5}, parallel=2) == pytest.approx(125.0)
    assert durations.left([], {alike: 0.25}, parallel=2) == pytest.approx(75.0)


def interrupt_when(path: Path, look=lambda pid: None) -> None:
    wait_for(path)
    look(int(path.read_text()))
    os.kill(os.getpid(), signal.SIGINT)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not (path.exists() and (path.name != "pid" or path.read_text())):
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)


def alive(run: Path) -> bool:
    status = Path("/proc") / (run / "pid").read_text() / "stat"
    try:
        return status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False

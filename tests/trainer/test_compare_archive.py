# SPDX-License-Identifier: Apache-2.0
"""Archives of comparisons: the report of one is the report of the directory, parts add up, and nothing in one is replaced."""

import json
import shutil
import sys

import fake_otpr
import pytest
from toy_runs import run_command

from otpr_policy.errors import OutputError, PlanError
from otpr_trainer.commands.compare import COMMAND
from otpr_trainer.compare import runner as runners

PLAN = """
name: small
tasks: [{task: lift, demos: 2}]
seeds: [0, 1]
budget: 100
evaluation: {episodes: 4, presets: [nominal, hard]}
methods:
  - {name: filtered_bc, algorithm: filtered_bc}
  - {name: otpr, algorithm: otpr, candidates: [1, 8]}
control: filtered_bc
"""
JOBS = 2 * (1 + 3 + 2 * 4)
REPORT = {"report.html", "report.md", "report.json", "success.png", "curves.png"}
OTPR = "lift/otpr/0"


def prepare(folder, monkeypatch):
    monkeypatch.setenv("OTPR_FAKE", str(folder))
    monkeypatch.setattr(runners.Runner.__init__, "__defaults__", ((sys.executable, "-S", fake_otpr.__file__),))
    monkeypatch.setattr(runners, "POLL_S", 0.01)
    (folder / "plan.yaml").write_text(PLAN)
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch):
    return prepare(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The whole plan in ``out``, its archive in ``archive``."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        folder = prepare(tmp_path_factory.mktemp("whole"), monkeypatch)
        assert compare(folder, "out", "--archive", folder / "archive") == 0
    return folder


@pytest.fixture
def done(whole, folder):
    """A copy of it to change."""
    for name in ("out", "archive"):
        shutil.copytree(whole / name, folder / name)
    return folder


def compare(folder, out, *words):
    return run_command(COMMAND, folder / "plan.yaml", "--out", folder / out, *words)


def archive(folder, out, target="archive"):
    return compare(folder, out, "--report-only", "--archive", folder / target)


def report(folder, out):
    assert compare(folder, out, "--report-only") == 0
    return json.loads((folder / out / "report.json").read_text())


def content(directory):
    """All but the report."""
    paths = [path for path in directory.rglob("*") if path.is_file() and path.name not in REPORT]
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def edit(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data, indent=2) + "\n")


@pytest.mark.parametrize("part", ["*", "lift/otpr/1"])
def test_the_report_of_an_archive_is_that_of_the_directory(folder, part):
    assert compare(folder, "out", "--only", part, "--archive", folder / "archive") == 0
    here, there = report(folder, "out"), report(folder, "archive")
    assert here["rows"] and {**here, "written": ""} == {**there, "written": ""}
    for name in ("report.md", "success.png", "curves.png"):
        assert (folder / "archive" / name).read_bytes() == (folder / "out" / name).read_bytes(), name


def test_an_archive_is_small_text_without_paths_of_the_machine(done):
    (done / "out/lift/otpr/0/checkpoints").mkdir()
    (done / "out/lift/otpr/0/checkpoints/00000100.safetensors").write_bytes(bytes(200_000))
    rows = "".join(f"{step},{step / 10},{'0.123456789,' * 20}\n" for step in range(2000))
    (done / "out/lift/otpr/0/metrics.csv").write_text(f"step,seconds,{'loss,' * 20}\n" + rows)
    assert archive(done, "out", "again") == 0
    found = content(done / "again")
    runs = [f"lift/{method}/{seed}" for method in ("bc", "filtered_bc", "otpr") for seed in (0, 1)]
    files = {f"{run}/{name}" for run in runs for name in ("config.json", "metrics.csv", "evaluations.csv")}
    files |= {f"lift/demos/{seed}/demos.json" for seed in (0, 1)}
    assert {name for name in found if not name.startswith("jobs/")} == {"plan.json", *files}
    assert sum(name.startswith("jobs/") and name.endswith(".json") for name in found) == len(found) - 1 - len(files) == JOBS
    assert max(map(len, found.values())) < 10_000 and not any(b'"/' in text for text in found.values())
    assert found[f"{OTPR}/metrics.csv"] == b"step,seconds\n1999,199.9\n"
    assert json.loads(found[f"{OTPR}/config.json"])["init_sha256"] == "lift-bc-0"


def test_an_archive_says_which_runs_lost_episodes(done):
    (done / f"out/{OTPR}/metrics.csv").write_text("step,seconds,rollout/lost_episodes\n100,10.0,4\n")
    assert archive(done, "out", "again") == 0
    assert compare(done, "again", "--report-only") == 0
    assert report(done, "again")["lost_episodes"] == [{"run": OTPR, "training": 4, "evaluation": 0}]


def test_what_is_archived_again_changes_nothing_and_an_archive_of_an_archive_is_the_same(done, capsys):
    before = content(done / "archive")
    capsys.readouterr()
    assert archive(done, "out") == 0
    assert "otpr: 0 jobs added to " in capsys.readouterr().err and content(done / "archive") == before
    assert compare(done, "archive", "--report-only", "--archive", done / "second", "--json") == 0
    assert json.loads(capsys.readouterr().out)["archived"] == JOBS and content(done / "second") == before


@pytest.mark.parametrize(
    "parts", [("lift/*/0", "lift/*/1"), ("lift/bc", "lift/otpr", "lift/filtered_bc"), ("lift/filtered_bc", "lift/*/1", "lift/*/0")]
)
def test_parts_that_were_run_apart_add_up_to_the_whole(done, parts):
    for number, part in enumerate(parts):
        assert compare(done, f"part{number}", "--only", part, "--archive", done / "sum") == 0
    assert set(content(done / "sum")) == set(content(done / "archive"))
    whole, added = report(done, "archive"), report(done, "sum")
    assert added["missing"] == [] and all(added[key] == whole[key] for key in ("rows", "overall", "machines"))


def test_an_archive_grows_with_its_plan(done):
    (done / "plan.yaml").write_text(PLAN.replace("[0, 1]", "[0, 1, 2]"))
    before = content(done / "archive")
    assert compare(done, "more", "--only", "lift/*/2", "--archive", done / "archive") == 0
    after = content(done / "archive")
    assert all(after[name] == text for name, text in before.items() if name != "plan.json") and report(done, "archive")["missing"] == []


def test_a_directory_that_began_with_less_of_the_plan_adds_to_an_archive_of_more(done):
    (done / "plan.yaml").write_text("\n".join(line for line in PLAN.splitlines() if "name: otpr" not in line))
    assert compare(done, "less", "--only", "lift/bc/0") == 0
    (done / "plan.yaml").write_text(PLAN)
    before = content(done / "archive")
    (done / "archive/jobs/lift/bc/0/train.json").unlink()
    assert archive(done, "less") == 0
    after = content(done / "archive")
    assert set(after) == set(before) and after["plan.json"] == before["plan.json"]


def test_the_same_outcome_in_another_time_is_kept_as_it_was(done):
    edit(done / f"out/jobs/{OTPR}/train.json", lambda data: (data.update(seconds=99.0), data["result"].update(seconds=99.0)))
    (done / f"out/{OTPR}/metrics.csv").write_text("step,seconds\n100,99.0\n")
    before = content(done / "archive")
    (done / f"archive/jobs/{OTPR}/evaluate-hard-8.json").unlink()  # of a run whose training the archive has
    assert archive(done, "out") == 0
    assert content(done / "archive") == before


def other_outcomes(out, _):
    edit(out / f"jobs/{OTPR}/evaluate-hard-8.json", lambda data: data["result"].update(outcomes="0000"))


def other_words(_, target):
    edit(target / f"jobs/{OTPR}/evaluate-hard-8.json", lambda data: data["words"].append("--video"))


def damaged(_, target):
    (target / f"jobs/{OTPR}/evaluate-hard-8.json").write_text("{")


def other_training(_, target):
    """Of what both have only the training is in the archive, and there it was another one from the same beginnings."""
    path = target / OTPR / "evaluations.csv"
    path.write_text(path.read_text().replace("1.0\n", "0.875\n"))
    for record in (target / f"jobs/{OTPR}").glob("evaluate-*.json"):
        record.unlink()


def other_start(out, target):
    """The same outcome of what both have, but the new run is of a start policy that was trained elsewhere."""
    edit(out / f"{OTPR}/config.json", lambda data: data.update(init_sha256="other"))
    shutil.rmtree(target / f"jobs/{OTPR}")


def other_demonstrations(out, _):
    edit(out / f"{OTPR}/config.json", lambda data: data.update(demos_sha256="other"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_outcomes, f"{OTPR}/evaluate-hard-8 came out differently there"),
        (other_words, f"{OTPR}/evaluate-hard-8 came out differently there"),
        (damaged, f"{OTPR}/evaluate-hard-8 came out differently there"),
        (other_training, f"{OTPR}/train came out differently there"),
        (other_start, f"{OTPR} began with another start policy than the runs there"),
        (other_demonstrations, f"{OTPR} began with other demonstrations than the runs there"),
    ],
)
def test_what_does_not_go_with_an_archive_is_refused_by_name_and_changes_nothing(done, change, said):
    change(done / "out", done / "archive")
    shutil.rmtree(done / "archive/jobs/lift/filtered_bc/1")  # this could be added, but is not
    before = content(done / "archive")
    with pytest.raises(OutputError, match=f"nothing was added to .*archive: {said}; choose another --archive"):
        archive(done, "out")
    assert content(done / "archive") == before
    with pytest.raises(OutputError, match=said):
        compare(done, "out", "--archive", done / "archive")
    assert not (done / "calls").exists(), "refused before anything runs"


def test_another_plan_is_refused_with_what_differs_before_anything_runs(done):
    before = content(done / "archive")
    for old, new, said in (("budget: 100", "budget: 200", "budget 100 -> 200"), ("[0, 1]", "[0]", "seeds 1 present -> absent")):
        (done / "plan.yaml").write_text(PLAN.replace(old, new))
        with pytest.raises(PlanError, match=f"archive was begun with another plan: {said}.*; choose another --archive"):
            compare(done, f"another-{said.split()[0]}", "--archive", done / "archive")
    assert content(done / "archive") == before and not (done / "calls").exists()


def test_jobs_of_other_defaults_are_not_added(done):
    edit(done / "out/plan.json", lambda data: data["settings"]["otpr"].update(pool="another"))  # as another version of the program had it
    with pytest.raises(PlanError, match=r"another plan: settings.otpr.pool own -> another; choose another --archive"):
        archive(done, "out")
    assert archive(done, "out", "fresh") == 0
    assert json.loads((done / "fresh/plan.json").read_text())["settings"]["otpr"]["pool"] == "another"


def test_runs_of_other_code_are_not_added(done):
    """Which code the methods of other packages were."""
    edit(done / "archive/plan.json", lambda data: data["code"].update(otpr="1" * 64, another="2" * 64))
    edit(done / "out/plan.json", lambda data: data["code"].update(otpr="1" * 64, another="3" * 64))  # of which there are no runs
    assert archive(done, "out") == 0
    assert json.loads((done / "archive/plan.json").read_text())["code"] == {"otpr": "1" * 64, "another": "3" * 64}
    edit(done / "out/plan.json", lambda data: data["code"].update(otpr="2" * 64))
    before = content(done / "archive")
    with pytest.raises(PlanError, match=r"holds runs of otpr by other code .*; choose another --archive, or remove .*/lift/otpr "):
        archive(done, "out")
    assert content(done / "archive") == before


def test_nothing_runs_in_an_archive(done):
    before = content(done / "archive")
    (done / "plan.yaml").write_text(PLAN.replace("[0, 1]", "[0, 1, 2]"))
    with pytest.raises(OutputError, match="archive is an archive, which nothing can run in; pass --report-only, or run in another --out"):
        compare(done, "archive")
    assert content(done / "archive") == before and not (done / "calls").exists()


def test_an_archive_goes_neither_into_a_comparison_nor_into_a_foreign_directory(done):
    (done / "thesis").mkdir()
    (done / "thesis/thesis.tex").touch()
    assert compare(done, "second") == 0
    before = content(done / "second")
    for target, said in (
        ("thesis", "is not a comparison"),
        ("out", "--archive and --out are both"),
        ("second", "is a comparison in which"),
    ):
        with pytest.raises(OutputError, match=f"{said}.*; choose another --archive"):
            archive(done, "out", target)
    assert content(done / "second") == before and [path.name for path in (done / "thesis").iterdir()] == ["thesis.tex"]
    for target in ("fresh/lift", "fresh/jobs/archive"):
        with pytest.raises(OutputError, match=f"{target} is where jobs of --out write; choose another --archive"):
            compare(done, "fresh", "--archive", done / target)
    assert set(content(done / "fresh")) == {"plan.json"}, "refused before anything runs"
    with pytest.raises(OutputError, match="nowhere holds no comparison yet"):
        archive(done, "nowhere", "new")
    assert not (done / "new").exists()


def test_a_report_names_the_machines_of_its_jobs_as_far_as_they_are_known(done):
    records = sorted((done / "archive/jobs").rglob("*.json"))
    here = json.loads(records[0].read_text())["machine"]
    assert {one.read_text().count(json.dumps(here["cpu"])) for one in records} == {1}
    for path in records:
        edit(path, lambda data: data["machine"].update(cores=3, cpu="Abacus", python="3.10.1"))
    assert "; 3 cores (Abacus), Python 3.10.1, one thread per job. 24 of 24" in text(done)
    edit(records[0], lambda data: data["machine"].update(cpu="Slide rule"))
    assert "; 3 cores (Abacus), Python 3.10.1 (23 jobs), 3 cores (Slide rule), Python 3.10.1 (1 jobs), one thread" in text(done)
    assert [(one["cpu"], one["jobs"]) for one in report(done, "archive")["machines"]] == [("Abacus", 23), ("Slide rule", 1)]
    edit(records[0], lambda data: data.pop("machine"))
    assert "; 3 cores (Abacus), Python 3.10.1 (23 jobs), a machine that is not recorded (1 jobs), one thread" in text(done)


def test_records_of_before_are_done_and_name_no_machine(done):
    for path in (done / "out/jobs").rglob("*.json"):
        edit(path, lambda data: data.pop("machine"))
    assert compare(done, "out") == 0
    assert not (done / "calls").exists()
    assert archive(done, "out", "old") == 0
    for name in ("out", "old"):
        found = report(done, name)
        assert found["missing"] == [] and found["machines"] == []
        assert "; one thread per job. 24 of 24 jobs are done." in (done / name / "report.md").read_text()
    before = content(done / "archive")  # whose records have a machine
    assert archive(done, "out") == 0
    assert content(done / "archive") == before


def text(folder):
    report(folder, "archive")
    return (folder / "archive/report.md").read_text()

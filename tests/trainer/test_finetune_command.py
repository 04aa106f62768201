# SPDX-License-Identifier: Apache-2.0
"""``otpr train ALGORITHM`` from a cloned policy to an evaluated file, and a run that is killed and resumed."""

import csv
import importlib
import json
import shutil
from dataclasses import replace

import numpy as np
import point_task
import point_tuning
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_runs import run_command

from otpr_policy import artifact
from otpr_policy.errors import RunError
from otpr_policy.inference import OnnxPolicy
from otpr_trainer import run as runs
from otpr_trainer.commands import eval as evaluation
from otpr_trainer.commands import export as exporting
from otpr_trainer.commands import train
from otpr_trainer.finetune import Rounds

COMMANDS = {"otpr": train.OTPR, "idql": train.IDQL, "filtered_bc": train.FILTERED_BC, "dawr": train.DAWR, "dipo": train.DIPO}
COMMANDS |= {"ddiffpg": train.DDIFFPG}
NO_CRITIC = ("filtered_bc", "dawr", "ddiffpg")  # of chunks, to choose with
ALIKE = {"drwr": train.DRWR, "dql": train.DQL, "qsm": train.QSM, "qvpo": train.QVPO}  # one of the above in all that is tested here
ACTORS = {"dsrl": train.DSRL, "residual": train.RESIDUAL, "rlpd": train.RLPD}  # learn a Gaussian
COMMANDS |= ACTORS | {"ars": train.ARS}
NO_CRITIC += (*ACTORS, "ars")
CHANGES = {"steps": 80, "evaluate_every": 40}
ACTING = ["--sampler", "ddim", "--steps", 2, "--eta", 1, "--episodes", 4, "--workers", 1, "--json"]


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """Demonstrations, a cloned policy, and one run of each algorithm that nothing happened to."""
    folder = tmp_path_factory.mktemp("origin")
    point_task.write_demonstrations(folder / "demos")
    with pytest.MonkeyPatch.context() as patch:
        prepare(patch)
        data = ["--task", "point", "--demos", folder / "demos"]
        assert run_command(train.BC, *data, "--out", folder / "clone", *point_tuning.flags(point_tuning.START.__dict__)) == 0
        for name in COMMANDS:
            assert begin(folder, name, folder / name) == 0
    return folder


@pytest.fixture(autouse=True)
def here(monkeypatch):
    prepare(monkeypatch)


def prepare(patch):
    point_tuning.play_here(patch)
    patch.setattr(Rounds, "checkpoint_every", point_tuning.CHECKPOINT_EVERY)


def words(folder, name, output, **changes):
    settings = {**point_tuning.SETTINGS[name], **CHANGES, **changes}
    start = ["--task", "point", "--demos", folder / "demos", "--init", folder / "clone", "--out", output, "--workers", 1]
    return [*start, *point_tuning.flags(settings)]


def begin(folder, name, output, *more, **changes):
    return run_command(COMMANDS[name], *words(folder, name, output, **changes), *more)


def rows(path):
    """The rows of a CSV file without wall-clock times."""
    with path.open() as file:
        return [{key: value for key, value in row.items() if not key.startswith("seconds")} for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_has_its_rows_its_critic_and_where_it_came_from(origin, name):
    run = runs.load(origin / name)
    newest = run.newest_checkpoint()
    assert run.config.algorithm == name and newest.step >= 80 and run.config.init == str(origin / "clone")
    metrics, evaluations = rows(run.directory / "metrics.csv"), rows(run.directory / "evaluations.csv")
    assert [int(row["step"]) for row in metrics] == sorted({int(row["step"]) for row in metrics}) and int(
        metrics[-1]["step"]
    ) == newest.step
    assert len(evaluations) == 1 + len({int(row["step"]) // 40 for row in metrics if int(row["step"]) >= 40})
    assert np.isfinite([float(value) for row in metrics + evaluations for value in row.values()]).all()
    assert ("selected/success" in evaluations[0]) == (name not in NO_CRITIC) == (run.config.critic is not None)
    tuned, cloned = run.policy().state_dict(), runs.load(origin / "clone").policy().state_dict()
    changed = [key for key in tuned if key not in cloned or not torch.equal(tuned[key], cloned[key])]
    assert changed and all(key.startswith(("network.", "gaussian.")) for key in changed)  # normalisers stay


HEALTH = ("row_error", "column_error", "support", "effective_chunks", "dead_rows", "entropy", "epsilon")


def test_the_health_of_transport_is_a_column_of_the_metrics_and_a_curve_of_tensorboard(origin):
    """The same numbers at the same steps in both."""
    names = {*(f"transport/{name}" for name in HEALTH), "policy/gradient", "critic/gradient"}
    written = rows(origin / "otpr/metrics.csv")
    assert names <= set(written[0]) and len(written) > 1
    board = EventAccumulator(str(origin / "otpr/tensorboard"), size_guidance={"scalars": 0}).Reload()
    assert names <= set(board.Tags()["scalars"])
    for name in names:
        events = board.Scalars(name)
        assert [event.step for event in events] == [int(row["step"]) for row in written]
        assert [event.value for event in events] == pytest.approx([float(row[name]) for row in written], rel=1e-6)
    health = {name: float(written[-1][f"transport/{name}"]) for name in HEALTH}
    assert health["row_error"] < 1e-5 and health["dead_rows"] == 0.0 and health["epsilon"] > 0.0  # semi-relaxed rows are exact
    assert 0.0 < health["support"] <= 1.0 and health["effective_chunks"] >= 1.0 and 0.0 <= health["entropy"] <= 1.0
    assert health["column_error"] > 0.0 and all(float(written[-1][f"{side}/gradient"]) > 0.0 for side in ("policy", "critic"))


@pytest.mark.parametrize("name", ["otpr", "idql", "dipo"])
def test_a_run_with_a_critic_is_evaluated_with_candidates(origin, capsys, name):
    capsys.readouterr()
    outcomes = []
    for candidates in (1, 4):
        assert run_command(evaluation.COMMAND, origin / name, *ACTING, "--candidates", candidates) == 0
        outcomes.append(json.loads(capsys.readouterr().out))
    assert [outcome["candidates"] for outcome in outcomes] == [1, 4] and outcomes[0]["episodes"] == 4
    assert outcomes[0]["mean_steps"] != outcomes[1]["mean_steps"]  # the critic did choose


@pytest.mark.parametrize("name", ACTORS)
def test_a_run_with_an_actor_is_evaluated_as_it_learnt_to_act(origin, capsys, name):
    """With the chain that it chose noise for, or none; a residual with any chain of its base."""
    capsys.readouterr()
    own = ACTING if name == "residual" else ACTING[6:]
    outcomes = []
    for _ in range(2):
        assert run_command(evaluation.COMMAND, origin / name, *own) == 0
        outcomes.append(json.loads(capsys.readouterr().out))
    assert outcomes[0] == outcomes[1] and outcomes[0]["episodes"] == 4
    if name != "residual":
        with pytest.raises(RunError, match=r"a chain of its own.*leave out --sampler, --steps and --eta"):
            run_command(evaluation.COMMAND, origin / name, *ACTING)


def test_steered_noise_travels_in_the_file(origin, tmp_path):
    """Exported without a word about the chain, since there is one only."""
    file = tmp_path / "steered.onnx"
    assert run_command(exporting.COMMAND, origin / "dsrl", "--out", file, "--episodes", 4, *ACTING[-3:]) == 0
    manifest = artifact.load(file).manifest
    assert (manifest.denoising.sampler, manifest.denoising.steps, manifest.denoising.eta) == ("ddim", 2, 0.0)
    assert manifest.denoising.source == "noise actor" and manifest.evaluation.disagreements == 0
    policy = OnnxPolicy.from_graph(artifact.load(file).content, manifest.policy, manifest.noise_shape)
    observation = np.tile([0.5, 20.0, 20.0], (2, 1))
    first, second = (policy.infer(observation, noise * np.ones(manifest.noise_shape)) for noise in (0.0, 2.0))
    np.testing.assert_array_equal(first, second)  # nothing is drawn
    with pytest.raises(RunError, match="a chain of its own"):
        run_command(exporting.COMMAND, origin / "dsrl", "--out", tmp_path / "other.onnx", "--steps", 1, "--episodes", 4, *ACTING[-3:])


@pytest.mark.parametrize(
    ("name", "flags", "expected"),
    [
        ("clone", [], ("ddim", 4, 1.0)),  # all of its 4 steps, since 5 are more
        ("clone", ["--sampler", "ddpm"], ("ddpm", 4, 1.0)),
        ("clone", ["--sampler", "ddim", "--steps", 3], ("ddim", 3, 1.0)),
        ("filtered_bc", [], ("ddim", 2, 1.0)),  # as its own evaluations
        ("filtered_bc", ["--eta", 0], ("ddim", 2, 0.0)),
        ("filtered_bc", ["--steps", 3], ("ddim", 3, 1.0)),
        ("filtered_bc", ["--sampler", "ddpm"], ("ddpm", 4, 1.0)),
        ("residual", [], ("ddim", 2, 1.0)),
        ("dsrl", [], ("ddim", 2, 0.0)),
        ("rlpd", [], ("gaussian", 1, 0.0)),
    ],
)
def test_a_run_is_judged_as_it_acted_unless_told_otherwise(origin, capsys, name, flags, expected):
    """And says how."""
    capsys.readouterr()
    assert run_command(evaluation.COMMAND, origin / name, *flags, *ACTING[6:]) == 0
    found = json.loads(capsys.readouterr().out)
    assert tuple(found["denoising"].values()) == expected
    run = runs.load(origin / name)
    assert (run.config.acting is None) == (name == "clone")


def test_what_is_judged_by_default_is_what_is_exported_by_default(origin, capsys, tmp_path):
    for name in ("clone", "filtered_bc"):
        capsys.readouterr()
        assert run_command(evaluation.COMMAND, origin / name, *ACTING[6:]) == 0
        judged = json.loads(capsys.readouterr().out)
        assert run_command(exporting.COMMAND, origin / name, "--out", tmp_path / f"{name}.onnx", *ACTING[6:]) == 0
        manifest = json.loads(capsys.readouterr().out)["manifest"]
        assert {key: manifest["denoising"][key] for key in judged["denoising"]} == judged["denoising"]
        assert manifest["evaluation"]["torch_successes"] == judged["successes"]


def test_a_run_that_acted_with_another_sampler_is_judged_with_that(origin):
    """Few steps are the default of the one for few steps alone."""
    run = runs.load(origin / "clone")
    run = replace(run, config=replace(run.config, acting={"sampler": "ddpm", "steps": 4, "eta": 1.0}))
    assert exporting.acting(run, None, None, None) == ("ddpm", 4, 1.0)
    assert exporting.acting(run, "ddim", None, 0.5) == ("ddim", 4, 0.5)
    assert exporting.acting(run, None, 3, None) == ("ddpm", 3, 1.0)  # which the policy refuses


def test_cloning_has_no_critic_to_choose_with(origin):
    with pytest.raises(RunError, match="has no critic: filtered_bc trains none"):
        run_command(evaluation.COMMAND, origin / "filtered_bc", *ACTING, "--candidates", 4)


def test_a_fine_tuned_run_is_exported_with_candidates_and_its_file_acts(origin, tmp_path):
    """The proof holds where fewer actions are carried out than a chunk has."""
    file = tmp_path / "tuned.onnx"
    assert (
        run_command(exporting.COMMAND, origin / "otpr", "--out", file, "--steps", 2, "--candidates", 3, "--episodes", 4, *ACTING[-3:]) == 0
    )
    manifest = artifact.load(file).manifest
    assert (manifest.selection.candidates, manifest.provenance.algorithm, manifest.policy.executed_length) == (3, "otpr", 2)
    assert manifest.parity.end_to_end_error < 1e-4 and manifest.evaluation.disagreements == 0
    policy = OnnxPolicy.from_graph(artifact.load(file).content, manifest.policy, manifest.noise_shape)
    observation = np.tile([0.5, 20.0, 20.0], (2, 1))
    assert policy.infer(observation, np.zeros(manifest.noise_shape)).shape == (3, 2)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_that_is_killed_and_resumed_ends_bit_equal(origin, tmp_path, name):
    """Killed in its third round, behind a checkpoint, and again in the first one of going on."""
    module = importlib.import_module(f"otpr_trainer.algorithms.{name}")
    output, straight = tmp_path / "run", origin / name
    point_tuning.killed(module, words(origin, name, output), update=3)
    assert 0 < runs.load(output).newest_checkpoint().step < 80
    point_tuning.killed(module, ["--resume", "--out", output, "--workers", 1], update=1)
    assert run_command(COMMANDS[name], "--resume", "--out", output, "--workers", 1) == 0
    for table in ("metrics.csv", "evaluations.csv"):
        assert rows(output / table) == rows(straight / table), table
    ours, theirs = runs.load(output).newest_checkpoint(), runs.load(straight).newest_checkpoint()
    assert ours.step == theirs.step and set(ours.tensors) == set(theirs.tensors)
    for key, tensor in ours.tensors.items():
        assert torch.equal(tensor, theirs.tensors[key]), key


def test_a_finished_run_resumed_has_nothing_to_do_and_settings_stay(origin, tmp_path):
    shutil.copytree(origin / "otpr", tmp_path / "run")
    before = rows(tmp_path / "run/metrics.csv")
    with pytest.raises(RunError, match="pool own -> all"):
        run_command(train.OTPR, "--resume", "--out", tmp_path / "run", "--pool", "all")
    assert run_command(train.OTPR, "--resume", "--out", tmp_path / "run", "--workers", 1) == 0
    assert rows(tmp_path / "run/metrics.csv") == before


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"steps": 0}, "a budget of 0 step trains nothing"), ({"steps": -5}, "a budget of -5 step"), ({"envs": 0}, "envs must be at least 1")],
)
def test_what_cannot_be_trained_leaves_no_run_behind(origin, tmp_path, name, change, sentence):
    with pytest.raises(RunError, match=sentence):
        begin(origin, name, tmp_path / "run", **change)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("seed", [-1, 2**31])
def test_a_seed_that_might_meet_that_of_an_evaluation_is_refused(origin, tmp_path, seed):
    with pytest.raises(RunError, match=r"--seed must be in 0\.\.2147483647, got"):
        begin(origin, "filtered_bc", tmp_path / "run", "--seed", seed)


def test_more_workers_than_environments_are_as_many_as_environments(origin, tmp_path):
    assert begin(origin, "filtered_bc", tmp_path / "run", "--workers", 9) == 0
    assert rows(tmp_path / "run/metrics.csv") == rows(origin / "filtered_bc/metrics.csv")


@pytest.mark.parametrize("name", COMMANDS | ALIKE)
def test_the_help_says_what_each_setting_is(capsys, name):
    with pytest.raises(SystemExit):
        run_command((COMMANDS | ALIKE)[name], "--help")
    text = capsys.readouterr().out
    assert f"{name} settings" in text and "budget of environment steps" in text and "--init RUN" in text


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "ars"])  # which has no replay
def test_a_fine_tuned_policy_says_which_states_its_own_episodes_have_seen(origin, name):
    """Its observation ranges are those of all of replay; with those of the demonstrations a robot would hold where it has learnt to act."""
    run = runs.load(origin / name)
    policy = run.policy()
    spec = policy.config.spec
    replay = run.newest_checkpoint().tensors["replay.condition"]
    seen = policy.observation.denormalize(replay.reshape(len(replay), spec.observation_horizon, -1)[..., : spec.observation.size])
    np.testing.assert_allclose(spec.observation.low, seen.amin((0, 1)), atol=1e-5)
    np.testing.assert_allclose(spec.observation.high, seen.amax((0, 1)), atol=1e-5)
    cloned = runs.load(origin / "clone").policy().config.spec.observation
    assert (spec.observation.low <= cloned.low).all() and (spec.observation.high >= cloned.high).all()
    assert (spec.observation.high - spec.observation.low).sum() > (cloned.high - cloned.low).sum()

# SPDX-License-Identifier: Apache-2.0
"""``otpr train`` for an algorithm that fine-tunes and is not of this package: its entry point, where it starts from, resuming."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import point_task
import pytest
import torch
import toy_algorithm
import toy_runs
from toy_runs import run_command

from otpr_policy import cli
from otpr_policy.errors import OutputError, RunError
from otpr_sim import registry
from otpr_trainer import checkpoint, start
from otpr_trainer import run as runs
from otpr_trainer.commands.train import BC

TOY = toy_algorithm.COMMAND


@pytest.fixture(scope="module")
def origin(tmp_path_factory):
    """Demonstrations and a cloned policy, to be copied."""
    folder = tmp_path_factory.mktemp("origin")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_TASKS", dict(registry._TASKS))
        toy_runs.register_point()
        toy_runs.clone(folder)
    return folder


@pytest.fixture
def folder(origin, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "_TASKS", dict(registry._TASKS))
    toy_runs.register_point()
    shutil.copytree(origin, tmp_path, dirs_exist_ok=True)
    return tmp_path


def begin(folder, *more):
    return run_command(TOY, *toy_runs.toy_words(folder), "--out", folder / "run", *more)


def interrupted(folder, monkeypatch, *more):
    """Starts a run and stops it in its third update, as a crash would; returns the run."""

    def crash(learner, episode):
        if episode == 2:
            raise MemoryError
        return play(learner, episode)

    play = toy_algorithm.Learner._play
    with monkeypatch.context() as patch:
        patch.setattr(toy_algorithm.Learner, "_play", crash)
        with pytest.raises(MemoryError):
            begin(folder, *more)
    return runs.load(folder / "run")


def test_a_variant_is_settings_to_start_from_and_single_flags_go_over_them(folder, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        begin(folder, "--variant", "slow")  # an algorithm without variants has no such flag
    assert "--variant" in capsys.readouterr().err
    monkeypatch.setattr(toy_algorithm, "VARIANTS", {"slow": {"steps": 40, "learning_rate": 1e-4}}, raising=False)
    begin(folder, "--variant", "slow", "--steps", 50)
    assert runs.load(folder / "run").config.settings == {"steps": 50, "learning_rate": 1e-4}
    begin(folder, "--variant", "slow", "--steps", 50, "--resume")
    with pytest.raises(RunError, match=r"not changed: steps 50 -> 40"):
        begin(folder, "--variant", "slow", "--resume")
    with pytest.raises(RunError, match="unknown variant 'quick'; known: slow"):
        begin(folder, "--variant", "quick", "--resume")


def test_an_algorithm_of_another_package_is_a_subcommand(folder, monkeypatch, capsys):
    metadata = folder / "site/toy_robotics-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-robotics\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[otpr.commands]\ntrain.toy = toy_algorithm:COMMAND\n")
    monkeypatch.syspath_prepend(str(folder / "site"))
    assert cli.main(["train", "--help"]) == 0
    overview = capsys.readouterr().out
    assert "train toy        Clone the policy's own successes." in overview and "train bc " in overview
    with pytest.raises(SystemExit):
        cli.main(["train", "toy", "--help"])
    help_text = capsys.readouterr().out
    assert "--init RUN" in help_text and "toy_algorithm settings" in help_text and "environment steps (default: 150)" in help_text
    words = [*toy_runs.toy_words(folder), "--out", folder / "run", "--steps", 60, "--seed", 3, "--json"]
    assert cli.main(["train", "toy", *map(str, words)]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["task"], summary["unit"], summary["rollbacks"]) == ("point", "step", 0) and 60 <= summary["step"] < 72
    assert runs.load(folder / "run").config.algorithm == "toy"


def test_the_overview_does_not_import_torch():
    """Or ``otpr --help`` would take seconds."""
    program = "import sys; import otpr_trainer.commands.train as t; print(t.BC.help); print('torch' in sys.modules)"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.splitlines() == ["Behaviour-clone a diffusion policy from demonstrations.", "False"]


def test_a_fine_tuned_run_is_evaluated_and_fine_tuned_like_any_other(folder):
    assert begin(folder) == 0
    tuned, cloned = (runs.load(folder / name).policy() for name in ("run", "clone"))
    assert tuned.config == cloned.config
    changed = [name for name, tensor in tuned.state_dict().items() if not torch.equal(tensor, cloned.state_dict()[name])]
    assert len(changed) > 4
    words = toy_runs.toy_words(folder)
    words[-1] = folder / "run"
    assert run_command(TOY, *words, "--out", folder / "again", "--steps", 10) == 0
    assert runs.load(folder / "again").config.init_sha256 == start.weights_sha256(tuned)


def test_a_new_run_needs_a_start_where_one_is_needed_and_refuses_it_elsewhere(folder):
    with pytest.raises(RunError, match="a new run needs --task and --demos and --init"):
        run_command(TOY, "--out", folder / "run")
    with pytest.raises(RunError, match="bc starts from nothing; --init is for"):
        toy_runs.clone(folder, "other", "--init", folder / "clone")
    with pytest.raises(RunError, match="--workers must be at least 1, got 0"):
        begin(folder, "--workers", 0)
    with pytest.raises(RunError, match="a budget of 0 step trains nothing"):
        begin(folder, "--steps", 0)
    with pytest.raises(RunError, match="demos is not a training run"):
        run_command(TOY, *toy_runs.toy_words(folder)[:-1], folder / "demos", "--out", folder / "run")
    with pytest.raises(OutputError, match="cannot replace the one that it starts from"):
        run_command(TOY, *toy_runs.toy_words(folder), "--out", folder / "demos/../clone", "--overwrite")
    assert not (folder / "run").exists() and runs.load(folder / "clone").has_checkpoint


def edit_config(directory, edit):
    path = directory / "config.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


MISFITS = {
    "is a run of task 'lift', not 'point'": lambda config: config.update(task="lift"),
    r"has the observation position \(1 x mm, .* have position \(1 x m,": lambda config: spec(config)["observation"][0].update(unit="mm"),
    r"has the action move .* twist .* have .* spin": lambda config: spec(config)["action"][1].update(name="twist"),
    "runs at 10 Hz, the demonstrations at 20 Hz": lambda config: spec(config).update(control_rate_hz=10.0),
}


def spec(config):
    return config["policy"]["spec"]


@pytest.mark.parametrize("sentence", MISFITS)
def test_a_start_that_does_not_fit_is_refused_in_one_sentence(folder, sentence):
    edit_config(folder / "clone", MISFITS[sentence])
    with pytest.raises(RunError, match=sentence):
        begin(folder)
    assert not (folder / "run").exists()


def test_a_start_with_other_lengths_than_the_settings_ask_for_is_refused(folder):
    from otpr_trainer.algorithms.bc import Config

    lengths = Config(observation_horizon=1, chunk_length=1, executed_length=1)
    demos = point_task.demonstrations().header
    assert start.open_start(folder / "clone", "point", demos, lengths).config.spec.chunk_length == 1
    with pytest.raises(RunError, match="has chunk_length 1, the settings ask for 4; give --chunk-length 1"):
        start.open_start(folder / "clone", "point", demos, replace(lengths, chunk_length=4))
    with pytest.raises(RunError, match="has observation_horizon 1, the settings ask for 2; give --observation-horizon 1"):
        start.open_start(folder / "clone", "point", demos, replace(lengths, observation_horizon=2))


def test_resuming_needs_no_init_even_before_the_first_checkpoint(folder, monkeypatch):
    straight = [*toy_runs.toy_words(folder), "--out", folder / "straight"]
    assert run_command(TOY, *straight) == 0
    run = interrupted(folder, monkeypatch)
    shutil.rmtree(run.checkpoints)  # as if it had been killed before it wrote the first
    shutil.rmtree(folder / "clone")  # and the policy that it started from is gone
    assert run_command(TOY, "--resume", "--out", folder / "run") == 0
    ours, theirs = run.newest_checkpoint(), runs.load(folder / "straight").newest_checkpoint()
    assert ours.step == theirs.step and all(torch.equal(tensor, theirs.tensors[name]) for name, tensor in ours.tensors.items())


def test_resuming_refuses_another_start_and_takes_the_same(folder, monkeypatch):
    toy_runs.clone(folder, "other", "--seed", 5)
    interrupted(folder, monkeypatch)
    with pytest.raises(RunError, match=r"other is not the policy that .*run started from; leave --init out"):
        run_command(TOY, "--resume", "--out", folder / "run", "--init", folder / "other")
    with pytest.raises(RunError, match="steps 150 -> 99"):
        run_command(TOY, "--resume", "--out", folder / "run", "--steps", 99)
    with pytest.raises(RunError, match="is a run of 'toy', not 'bc'"):
        run_command(BC, "--resume", "--out", folder / "run")
    assert run_command(TOY, "--resume", "--out", folder / "run", "--init", folder / "clone") == 0


def test_a_learner_may_train_its_start_in_place(folder, monkeypatch):
    identity = start.weights_sha256(runs.load(folder / "clone").policy())
    build = toy_algorithm.Learner.__init__

    def spoil(learner, config, setup):
        build(learner, config, setup)
        with torch.no_grad():
            setup.start.network.from_chunk.bias += 1.0

    monkeypatch.setattr(toy_algorithm.Learner, "__init__", spoil)
    assert begin(folder, "--steps", 10) == 0
    run = runs.load(folder / "run")
    assert run.config.init_sha256 == identity == start.weights_sha256(start.kept(run))


def test_a_start_that_was_tampered_with_is_refused(folder, monkeypatch):
    run = interrupted(folder, monkeypatch)
    path = run.directory / "start.safetensors"
    saved = checkpoint.load(path)
    saved.tensors["policy.network.from_chunk.bias"][0] += 1.0
    checkpoint.write(path, saved)
    with pytest.raises(RunError, match=r"start\.safetensors is not the policy that this run started from"):
        run_command(TOY, "--resume", "--out", folder / "run")


def test_the_identity_of_weights_is_that_of_every_number(folder):
    policy = runs.load(folder / "clone").policy()
    identity = start.weights_sha256(policy)
    assert identity == start.weights_sha256(runs.load(folder / "clone").policy())
    with torch.no_grad():
        policy.observation.center[2] += 1e-6 * policy.observation.center[2].abs() + 1e-6
    assert start.weights_sha256(policy) != identity


@pytest.mark.parametrize("at", ["never", "in an update", "at once", "while the run is made", "when restored"])
def test_the_learner_is_closed_however_training_ends(folder, monkeypatch, at):
    closed = []
    monkeypatch.setattr(toy_algorithm.Learner, "close", lambda learner: closed.append(learner.step))

    def fail(*arguments):
        raise MemoryError

    if at == "never":
        assert begin(folder) == 0
        assert len(closed) == 1 and closed[0] >= 150
        return
    if at == "while the run is made":
        (folder / "run").mkdir()
        (folder / "run/thesis.txt").touch()
        with pytest.raises(OutputError, match="exists"):
            begin(folder)
    elif at == "at once":
        with pytest.raises(RunError):
            begin(folder, "--steps", 0)
    elif at == "when restored":
        interrupted(folder, monkeypatch)
        monkeypatch.setattr(toy_algorithm.Learner, "restore", fail)
        closed.clear()
        with pytest.raises(MemoryError):
            run_command(TOY, "--resume", "--out", folder / "run")
    else:
        interrupted(folder, monkeypatch)
    assert len(closed) == 1

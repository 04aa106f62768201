# SPDX-License-Identifier: Apache-2.0
"""The training loop with learners that misbehave: accounting, Ctrl-C, roll backs and their end, logs, budgets."""

import csv
import math
import os
import signal

import pytest
import torch

from otpr_policy.errors import RunError
from otpr_trainer import divergence, learner
from otpr_trainer import run as runs
from otpr_trainer.checkpoint import Checkpoint
from otpr_trainer.learner import Diverged, retry_seed
from otpr_trainer.logs import RowFile
from otpr_trainer.train import TRIES, train


class Walk(learner.Learner):
    """A random walk whose updates advance by 1, 2, 3, 1, ... units. ``trouble`` may spoil an update's loss."""

    unit, log_every, checkpoint_every = "step", 10, 20

    def __init__(self, total=90, trouble=lambda walk: 1.0):
        self.total, self.trouble = total, trouble
        self.step, self.updates, self.attempt = 0, 0, 0
        self.seen = []  # what the loop asked of us, in order
        self.position = torch.zeros(2)
        self._generator = torch.Generator().manual_seed(0)

    def update(self):
        self.updates += 1
        self.step += 1 + (self.updates - 1) % 3
        self.position = self.position + torch.randn(2, generator=self._generator)
        return {"walk/loss": self.trouble(self), "walk/position": self.position[0]}

    def checkpoint(self):
        self.seen.append(f"checkpoint {self.step}")
        tensors = {"policy.position": self.position, "generator": self._generator.get_state()}
        return Checkpoint(self.step, tensors, {"updates": self.updates})

    def restore(self, checkpoint):
        self.seen.append(f"restore {checkpoint.step}")
        self.step, self.updates, self.attempt = checkpoint.step, checkpoint.values["updates"], 0
        assert set(checkpoint.values) == {"updates"}  # the loop keeps its own to itself
        self.position = checkpoint.tensors["policy.position"]
        self._generator.set_state(checkpoint.tensors["generator"])

    def diverted(self, attempt):
        self.seen.append(f"diverted {attempt}")
        self.attempt = attempt
        self._generator.manual_seed(retry_seed(0, self.step, attempt))

    def evaluations(self):
        due = self.step == 0 or self.updates % 10 == 0
        return [{"success_rate": float(self.position[1]), "updates": self.updates}] if due and self.updates >= 0 else []


def new_run(directory):
    config = runs.RunConfig("walk", "point", 0, {}, "demos", "", {}, "", "0", "")
    return runs.create(directory / "run", config, overwrite=False)


@pytest.fixture
def run(tmp_path):
    return new_run(tmp_path)


def rows(run, name="metrics.csv"):
    with (run.directory / name).open() as file:
        return list(csv.DictReader(file))


def timeless(found):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def test_rows_and_checkpoints_come_when_a_multiple_was_crossed(run):
    """Updates end at 1, 3, 6, 7, 9, 12, 13, 15, 18, ...: three of them advance by 6."""
    walk = Walk()
    outcome = train(run, walk)
    assert (outcome.step, outcome.finished, outcome.rollbacks, walk.updates) == (90, True, 0, 45)
    assert [int(row["step"]) for row in rows(run)] == [12, 21, 30, 42, 51, 60, 72, 81, 90]
    assert walk.seen == [f"checkpoint {step}" for step in (0, 21, 42, 60, 81, 90)]


def test_a_row_is_the_mean_over_its_updates(run):
    positions = []
    train(run, Walk(), stop_after=21)
    copy = Walk()
    for _ in range(11):
        positions.append(float(copy.update()["walk/position"]))
    assert copy.step == 21
    assert [float(row["walk/position"]) for row in rows(run)] == pytest.approx([sum(positions[:6]) / 6, sum(positions[6:]) / 5], rel=1e-12)


def test_a_budget_that_is_overshot_is_spent(run):
    outcome = train(run, Walk(total=8))
    assert (outcome.step, outcome.finished) == (9, True)
    assert train(run, Walk(total=8)).step == 9  # nothing is left to do
    assert run.newest_checkpoint().step == 9


@pytest.mark.parametrize("total", [0, -5])
def test_no_budget_is_refused_before_anything_is_written(run, total):
    with pytest.raises(RunError, match=f"a budget of {total} step trains nothing; it must be at least 1"):
        train(run, Walk(total=total))
    assert [path.name for path in run.directory.iterdir()] == ["config.json"]


@pytest.mark.parametrize("at", [1, 9, 20, 21, 59, 60, 89, 90])
def test_ctrl_c_saves_the_update_that_was_under_way_and_changes_nothing(tmp_path, at):
    def interrupt(walk):
        if interrupt.armed and walk.step >= at:
            interrupt.armed = False
            os.kill(os.getpid(), signal.SIGINT)
        return 1.0

    interrupt.armed = False
    straight, halves = new_run(tmp_path / "a"), new_run(tmp_path / "b")
    train(straight, Walk())
    interrupt.armed = True
    outcome = train(halves, Walk(trouble=interrupt))
    assert at <= outcome.step <= at + 2 and outcome.finished == (outcome.step >= 90)
    assert halves.newest_checkpoint().step == outcome.step
    assert train(halves, Walk(trouble=interrupt)).finished
    for name in ("metrics.csv", "evaluations.csv"):
        assert timeless(rows(halves, name)) == timeless(rows(straight, name))
    assert torch.equal(*(run.newest_checkpoint().tensors["policy.position"] for run in (halves, straight)))


def test_seconds_go_on_after_a_resume_and_never_back(run):
    first = train(run, Walk(), stop_after=30)
    checkpoint = run.newest_checkpoint()
    assert 0 < checkpoint.values["loop"]["seconds"] <= first.seconds
    second = train(run, Walk())
    assert second.seconds > first.seconds
    seconds = [float(row["seconds"]) for row in rows(run)]
    assert seconds == sorted(seconds) and seconds[-1] <= second.seconds + 0.001


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, torch.tensor(math.nan)])
def test_a_number_that_is_not_finite_sends_back_to_the_newest_checkpoint(run, bad, capsys):
    walk = Walk(trouble=lambda walk: bad if walk.step >= 35 and walk.attempt < 2 else 1.0)
    outcome = train(run, walk)
    assert (outcome.finished, outcome.rollbacks) == (True, 2)
    again = ["restore 21", "diverted 1", "restore 21", "diverted 2"]
    assert walk.seen == ["checkpoint 0", "checkpoint 21", *again, *(f"checkpoint {step}" for step in (42, 60, 81, 90))]
    assert [int(row["step"]) for row in rows(run)] == [12, 21, 30, 42, 51, 60, 72, 81, 90]  # that of step 30 was written three times
    assert all(math.isfinite(float(row["walk/loss"])) for row in rows(run))
    assert f"otpr: step 36: walk/loss is {float(bad)}; back to step 21, try 2 of 3" in capsys.readouterr().err


def test_any_metric_counts_and_so_does_a_learner_that_says_so_itself(run):
    walk = Walk()
    fail = iter([False] * 20 + [True] + [False] * 99)

    def update(original=walk.update):
        if next(fail):
            raise Diverged("no plan exists")
        return original()

    walk.update = update
    assert train(run, walk).rollbacks == 1
    other = Walk(total=200)
    other.position, spoilt = torch.tensor([math.nan, 0.0]), other.update
    other.update = lambda: {**spoilt(), "walk/other": 0.0}
    with pytest.raises(RunError, match=r"training cannot begin: policy\.position holds a number that is not finite"):
        train(runs.create(run.directory.parent / "other", run.config, overwrite=False), other)


def test_after_three_tries_it_stops_says_why_and_can_be_resumed(run):
    walk = Walk(trouble=lambda walk: math.nan if walk.step >= 50 else 1.0)
    expected = rf"diverged at step 51: walk/loss is nan; {TRIES} tries from step 42 .*00000042\.safetensors is kept"
    with pytest.raises(RunError, match=expected):
        train(run, walk)
    assert [entry for entry in walk.seen if "diverted" in entry] == ["diverted 1", "diverted 2", "diverted 3"]
    assert run.newest_checkpoint().step == 42 and torch.isfinite(run.newest_checkpoint().tensors["policy.position"]).all()
    assert train(run, Walk()).finished


def test_a_checkpoint_is_progress_and_makes_the_tries_count_anew(run):
    failures = [0] * 5  # in the 20 units up to each checkpoint

    def fail_three_times_before_each_checkpoint(walk):
        window = walk.step // 20
        if walk.step % 20 >= 8 and failures[window] < TRIES:
            failures[window] += 1
            return math.nan
        return 1.0

    outcome = train(run, Walk(trouble=fail_three_times_before_each_checkpoint))
    assert outcome.finished and outcome.rollbacks == sum(failures) == 5 * TRIES


def test_a_try_after_a_roll_back_draws_other_numbers_and_repeats_itself_after_a_kill(tmp_path):
    """The roll back is a part of the run: who resumes from the checkpoint before meets the same trouble and the same answer."""

    def trouble(walk):
        return math.nan if walk.step >= 50 and walk.attempt == 0 and walk.step < 60 else 1.0

    straight, killed = new_run(tmp_path / "a"), new_run(tmp_path / "b")
    train(straight, Walk(trouble=trouble))
    untroubled = Walk()
    train(new_run(tmp_path / "c"), untroubled)
    ended = straight.newest_checkpoint()
    assert not torch.equal(ended.tensors["policy.position"], untroubled.position) and ended.values["loop"]["rollbacks"] == 1

    class Killed(BaseException):
        pass

    def trouble_then_killed(walk):
        if walk.attempt == 1 and walk.step >= 55:
            raise Killed
        return trouble(walk)

    with pytest.raises(Killed):
        train(killed, Walk(trouble=trouble_then_killed))
    assert killed.newest_checkpoint().step == 42
    assert train(killed, Walk(trouble=trouble)).rollbacks == 1
    assert train(killed, Walk()).rollbacks == 1  # finished before; the run's rollbacks are still told
    assert torch.equal(killed.newest_checkpoint().tensors["policy.position"], ended.tensors["policy.position"])
    assert timeless(rows(killed)) == timeless(rows(straight))


@pytest.mark.parametrize(("level", "spike", "caught"), [(1.0, 3e5, True), (1.0, 3e3, False), (500.0, 3e5, False), (1e-9, 3e3, False)])
def test_a_loss_diverges_when_a_row_is_far_above_its_level(run, level, spike, caught):
    """Level 1 at least; the spike lasts a row, so that its mean is above 1e4 times the level or not."""
    walk = Walk(trouble=lambda walk: spike if 42 < walk.step <= 51 and walk.attempt == 0 else level)
    assert train(run, walk).rollbacks == int(caught)


def test_one_wild_update_among_many_is_no_divergence(run):
    walk = Walk(trouble=lambda walk: 4.0 * divergence.FACTOR if walk.updates == 24 else 1.0)
    assert train(run, walk).rollbacks == 0


@pytest.mark.parametrize(("checkpoint_every", "caught"), [(60, True), (20, False)])
def test_growth_is_measured_from_checkpoint_to_checkpoint(run, checkpoint_every, caught):
    """Eightfold from row to row: 8^6 times within 60 units is too much, 8^2 times within 20 may be how this loss is."""
    walk = Walk(total=200, trouble=lambda walk: 1.0 if walk.attempt or walk.step < 100 else 8.0 ** ((walk.step - 100) / 10))
    walk.checkpoint_every = checkpoint_every
    assert train(run, walk).rollbacks == int(caught)


def test_a_resumed_run_knows_the_level_from_before(run):
    train(run, Walk(trouble=lambda walk: 500.0), stop_after=42)
    assert train(run, Walk(trouble=lambda walk: 3e5 if walk.step > 60 else 1e-3)).rollbacks == 0


def test_a_weight_that_is_not_finite_never_reaches_the_disk(run):
    """A gradient can break a weight in the update before a checkpoint, when the loss still looks well."""
    walk = Walk()
    whole = walk.checkpoint

    def broken():
        state = whole()
        if state.step == 42 and walk.attempt == 0:
            state.tensors["policy.position"] = torch.tensor([1.0, math.inf])
        return state

    walk.checkpoint = broken
    assert train(run, walk).rollbacks == 1
    assert torch.isfinite(run.newest_checkpoint().tensors["policy.position"]).all()


def test_evaluations_are_written_once_whatever_was_killed_or_rolled_back(tmp_path):
    def trouble(walk):
        return math.nan if walk.step >= 80 and walk.attempt == 0 else 1.0

    run = new_run(tmp_path)
    train(run, Walk(trouble=trouble), stop_after=60)
    assert train(run, Walk(trouble=trouble)).rollbacks == 1  # from step 81 to 60, after the evaluation at 79
    steps = [int(row["step"]) for row in rows(run, "evaluations.csv")]
    assert steps == [0, 19, 39, 60, 79]  # after updates 10, 20, 30 and 40
    assert list(rows(run, "evaluations.csv")[0]) == ["step", "seconds", "success_rate", "updates"]
    assert (run.directory / "tensorboard").is_dir()


def test_a_learner_without_evaluations_leaves_no_such_file(run):
    walk = Walk()
    walk.evaluations = list
    train(run, walk)
    assert not (run.directory / "evaluations.csv").exists()


def test_a_metric_that_comes_later_is_an_error_that_names_it(run):
    walk = Walk()
    plain = walk.update
    walk.update = lambda: {**plain(), **({"walk/late": 0.0} if walk.step > 30 else {})}
    with pytest.raises(ValueError, match="these changed: walk/late"):
        train(run, walk)


def test_a_row_with_other_names_is_refused_and_a_file_of_an_earlier_version_keeps_its_rows(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,bc/loss,old\n50,0.5,1\n100,0.25,1\n15")
    file = RowFile(path)
    file.drop_after(50)
    file.append({"step": 100, "seconds": 2.5, "bc/loss": 0.125})
    assert path.read_text() == "step,seconds,bc/loss,old\n50,,0.5,1\n100,2.5,0.125,\n"
    with pytest.raises(ValueError, match=r"metrics\.csv: .* at step 150 these changed: bc/extra, bc/loss"):
        file.append({"step": 150, "seconds": 3.0, "bc/extra": 0.1})
    file.drop_after(50)
    assert path.read_text() == "step,seconds,bc/loss,old\n50,,0.5,1\n"


def test_a_run_of_an_earlier_version_goes_on(run):
    """Its checkpoint knows nothing of the loop, its config nothing of critic and init."""
    from otpr_trainer import checkpoint

    walk = Walk()
    for _ in range(10):
        walk.update()
    checkpoint.save(run.checkpoints, walk.checkpoint())
    text = (run.directory / "config.json").read_text()
    later = ("critic", "init", "init_sha256", "corrections", "corrections_sha256", "acting")
    shorter = text.replace("".join(f',\n  "{name}": null' for name in later), "")
    assert len(shorter) < len(text)
    (run.directory / "config.json").write_text(shorter)
    old = runs.load(run.directory)
    assert old.config == run.config
    assert train(old, Walk()).finished
    (run.directory / "config.json").write_text(text.replace('"init": null', '"init": 3'))
    with pytest.raises(RunError, match="init 3 is not of the expected type"):
        runs.load(run.directory)


def test_retry_seeds_differ_and_fit_a_generator():
    seeds = {retry_seed(seed, step, attempt) for seed in range(3) for step in (0, 7, 10**7) for attempt in range(1, 4)}
    assert len(seeds) == 27 and all(0 <= seed < 2**63 for seed in seeds)

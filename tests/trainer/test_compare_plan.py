# SPDX-License-Identifier: Apache-2.0
"""Plans of comparisons: what is shipped is valid, what is wrong is said with what would be valid, and what commands follow."""

import argparse
import dataclasses
import importlib
import re
import sys
from types import SimpleNamespace

import point_tuning
import pytest

from otpr_policy.cli import installed_commands
from otpr_policy.errors import PlanError, RunError
from otpr_trainer.commands import train
from otpr_trainer.compare import plan as plans
from otpr_trainer.compare import report
from otpr_trainer.compare.jobs import Kind, jobs
from otpr_trainer.config import add_flags

PLAN = """
name: small
tasks: [{task: lift, demos: 2}]
seeds: [0, 1]
budget: 100
evaluation: {episodes: 4, seed: 10000, presets: [nominal, hard]}
start: {algorithm: bc, settings: {width: 16}}
methods:
  - {name: filtered_bc, algorithm: filtered_bc}
  - {name: otpr, algorithm: otpr, settings: {pool: near, mask: false, support: 3}, candidates: [1, 8]}
control: filtered_bc
"""


def load(folder, text):
    path = folder / "small.yaml"
    path.write_text(text)
    return plans.load(str(path))


@pytest.mark.parametrize(
    ("name", "seeds", "budget"),
    [
        ("lift5", 5, 30_000),
        ("lift5-100k", 5, 100_000),
        ("can5", 3, 100_000),
        ("quick", 1, 6000),
        ("lift2-ablation", 5, 12_000),
        ("lift5-shift", 3, 30_000),
        ("square20", 3, 100_000),
        ("lift5-baselines", 3, 30_000),
        ("full-dql", 3, 100_000),
    ],
)
def test_a_shipped_plan_is_valid_and_found_by_its_name(name, seeds, budget):
    plan = plans.load(name)
    assert (plan.name, len(plan.seeds), plan.budget) == (name, seeds, budget)
    tuned = [method.name for method in plan.methods if method.algorithm != "bridger"]
    assert all(plans.resolved_settings(plan)[method]["steps"] == budget for method in tuned)


def test_the_full_plan_repeats_what_the_small_ones_have_found():
    """Same seeds, scenes, demonstrations, budgets and settings of learning; evaluations beside training are not part of it."""
    full = {job.name: job for job in jobs(plans.load("full"))}
    for name in ("lift5", "can5", "square20"):
        for job in jobs(plans.load(name)):
            if job.name in full and job.kind is Kind.TRAIN:
                theirs, ours = (" ".join(words) + " " for words in (job.words, full[job.name].words))
                assert re.sub(r"--evaluate-\w+ \d+ ", "", ours) == re.sub(r"--evaluate-\w+ \d+ ", "", theirs)
            elif job.name in full:
                assert job.words == full[job.name].words
    assert {job.method for job in full.values()} == {"demos", "bc", "filtered_bc", "idql", "otpr", "dppo", "bridger"}
    assert {job.preset for job in full.values() if job.kind is Kind.EVALUATE} == {"nominal", "shifted"}


def test_rows_of_the_rival_can_be_laid_beside_those_of_the_full_plan():
    full = {job.name: job for job in jobs(plans.load("full"))}
    for job in jobs(plans.load("full-dql")):
        name = job.name.replace("/dql/", "/otpr/")
        assert [word.replace("/dql/", "/otpr/") for word in job.words if word != "dql"] == [
            word for word in full[name].words if word != "otpr"
        ]


def test_quick_has_every_method():
    replay = {"filtered_bc", "drwr", "dawr", "idql", "dql", "qsm", "dipo", "ddiffpg", "qvpo", "otpr"}
    others = {"bridger", "dppo", "ars", "rlpd", "residual", "dsrl"}
    assert {method.algorithm for method in plans.load("quick").methods} == replay | others


def test_a_method_has_the_budget_that_is_nearest_to_it(tmp_path):
    text = PLAN.replace("demos: 2", "demos: 2, budget: 200").replace("name: otpr,", "name: otpr, budget: 300,")
    plan = load(tmp_path, text.replace("tasks: [", "tasks: [{task: can, demos: 1}, "))
    assert {(job.task, job.method): job.budget for job in jobs(plan) if job.budget} == {
        ("can", "filtered_bc"): 100,
        ("lift", "filtered_bc"): 200,
        ("can", "otpr"): 300,
        ("lift", "otpr"): 300,
    }
    trained = next(job for job in jobs(plan) if job.name == "lift/otpr/0/train")
    assert trained.words[trained.words.index("--steps") + 1] == "300"
    assert report.budgets(plan) == "100 (can), 200 (lift), 300 (otpr)"
    assert report.budgets(plans.load("lift5-dppo")) == "30000, 300000 (dppo)"


MISTAKES = {
    "budget: 100": [
        ("budget: 1e2", "small.budget must be a whole number"),
        ("budget: true", "small.budget must be a whole number, got True"),
        ("budget: 0", "small.budget must be at least 1, got 0"),
        ("", "key 'budget' is missing; required: name, tasks, seeds, budget, methods$"),
        ("budget: 100\nspeed: 2", "unknown key 'speed'; known: budget, control, evaluation, methods, name, seeds, start, tasks"),
    ],
    "seeds: [0, 1]": [
        ("seeds: []", "seeds must not be empty"),
        ("seeds: [1, 1]", "seeds has a value twice"),
        ("seeds: [-1]", "seed -1 is not in 0"),
        ("seeds: 5", "small.seeds must be a list"),
    ],
    "task: lift": [("task: lit", "unknown task 'lit'; known: can, door, .*lift, square"), ("task: lift, label: ../x", "cannot be a name")],
    "demos: 2": [
        ("demos: 0", "demos of lift must be at least 1, got 0"),
        ("demos: 2, budget: -1", "budget of lift must be at least 0, got -1"),
    ],
    "hard]": [("hart]", "unknown preset 'hart'; known: hard, nominal, shifted")],
    "presets: [nominal, hard]": [
        ("presets: [nominal], steps: 21", "small.evaluation.steps must be at most 20, the train_steps that bc is trained with, got 21")
    ],
    "algorithm: bc,": [
        ("algorithm: bd,", "unknown algorithm 'bd'; known: .*bc, .*filtered_bc, .*idql, .*otpr"),
        ("algorithm: idql,", "idql fine-tunes a policy; a start starts from nothing"),
        ("algorithm: bridger,", "filtered_bc, otpr fine-tune a diffusion, and bridger trains none; name it among the methods"),
    ],
    "width: 16": [
        ("width: 16.5", "setting width must be a whole number, got 16.5"),
        ("with: 16", "unknown setting 'with'; known: .*width"),
    ],
    "algorithm: filtered_bc}": [
        ("algorithm: bc, settings: {steps: 9}}", "method filtered_bc: unknown setting 'steps'; known: .*iterations")
    ],
    "algorithm: filtered_bc": [
        ("candidates: [1, 8], algorithm: filtered_bc", "filtered_bc has candidates .*1, 8.*, but filtered_bc trains no critic to choose")
    ],
    "name: filtered_bc": [("name: otpr", "'otpr' cannot be a name; each must be different"), ("name: demos", "not demos or bc")],
    "pool: near": [
        ("pool: nar", "method otpr: .*nar.*all.*near.*own|method otpr: .*own.*near.*all"),
        ("steps: 5", "steps is the budget, which the plan, a task or a method has under that name"),
    ],
    "mask: false": [
        ("mask: 1", "setting mask must be true or false, got 1"),
        ("preset: 3", "setting preset must be text, got 3"),
        ("gamma: high", "setting gamma must be a number, got 'high'"),
        ("actor_learning_rate: .inf", "method otpr: setting actor_learning_rate must be finite, got inf"),
        ("gamma: .nan", "method otpr: setting gamma must be finite, got nan"),
    ],
    "candidates: [1, 8]": [
        ("candidates: [0]", "candidates of otpr must be different whole numbers from 1"),
        ("candidates: []", "must be different"),
    ],
    "name: otpr,": [("name: otpr, budget: -1,", "budget of otpr must be at least 0, got -1")],
    "  - {name: filtered_bc, algorithm: filtered_bc}": [
        (
            "  - {name: filtered_bc, algorithm: filtered_bc}\n  - {name: bridge, algorithm: bridger, budget: 9}",
            "bridge has a budget, but bridger learns from the demonstrations alone",
        )
    ],
    "control: filtered_bc": [("control: bc", "control: unknown method 'bc'; known: filtered_bc, otpr")],
}


@pytest.mark.parametrize(
    ("right", "wrong", "sentence"), [(right, *mistake) for right, mistakes in MISTAKES.items() for mistake in mistakes]
)
def test_a_mistake_is_one_sentence_that_says_what_is_valid(tmp_path, right, wrong, sentence):
    assert right in PLAN
    with pytest.raises(PlanError, match=sentence):
        load(tmp_path, PLAN.replace(right, wrong))


def test_as_many_steps_are_judged_as_any_diffusion_of_the_plan_is_trained_with(tmp_path):
    """An evaluation with more fails, after the training; and the directory is then of that plan."""
    longer = PLAN.replace("width: 16", "train_steps: 50").replace("seed: 10000", "steps: 50")
    assert load(tmp_path, longer).evaluation.steps == 50
    cloned = "algorithm: bc, settings: {train_steps: 49}}"
    with pytest.raises(PlanError, match="steps must be at most 49, the train_steps that filtered_bc is trained with, got 50"):
        load(tmp_path, longer.replace("algorithm: filtered_bc}", cloned))
    assert load(tmp_path, longer.replace("algorithm: filtered_bc}", "algorithm: bridger, settings: {train_steps: 49}}"))


def test_a_method_whose_module_lacks_a_part_is_refused_with_what_it_lacks(monkeypatch):
    monkeypatch.setitem(sys.modules, "half_a_method", SimpleNamespace(NAME="half", Config=object))
    with pytest.raises(RunError, match=r"^half_a_method has no NEEDS_INIT and no Learner; the module of a method has NAME, NEEDS_INIT, "):
        train.command("half_a_method", "Half a method.").algorithm()


def test_a_setting_that_was_not_made_by_setting_is_named():
    config = dataclasses.make_dataclass("Config", [("share", float, 0.1)])
    with pytest.raises(RunError, match=r"setting share must be made by otpr_trainer.config.setting\(default, reason\)$"):
        add_flags(argparse.ArgumentParser(), config)


def test_a_variant_is_settings_to_start_from_in_a_plan_as_in_the_command(tmp_path):
    plan = load(tmp_path, PLAN.replace("pool: near", "variant: paper, gain_sampling: 2"))
    settings = plans.resolved_settings(plan)["otpr"]
    assert (settings["critic"], settings["pool"], settings["weights"], settings["gain_sampling"]) == ("iql", "all", "potentials", 2)
    words = next(job.words for job in jobs(plan) if job.method == "otpr" and job.kind is Kind.TRAIN)
    assert " --variant paper --gain-sampling 2 " in " ".join(words)
    with pytest.raises(PlanError, match="method otpr: unknown variant 'papper'; known: paper"):
        load(tmp_path, PLAN.replace("pool: near", "variant: papper"))
    with pytest.raises(PlanError, match="unknown variant 'paper'; known: none"):
        load(tmp_path, PLAN.replace("algorithm: filtered_bc}", "algorithm: filtered_bc, settings: {variant: paper}}"))


def test_a_plan_that_is_not_there_is_refused_with_the_shipped_names():
    assert {"lift5", "can5", "quick"} < set(plans.shipped())
    with pytest.raises(PlanError, match=f"no plan 'lift6'; give a YAML file, or one of the shipped: {', '.join(plans.shipped())}$"):
        plans.load("lift6")


def test_the_jobs_are_the_commands_of_the_plan_each_after_what_it_needs(tmp_path):
    plan = load(tmp_path, PLAN)
    found = jobs(plan)
    names = [job.name for job in found]
    assert len(set(names)) == len(names) == 2 * (1 + 3 + 2 * (1 + 1 + 2))
    assert all(names.index(need) < names.index(job.name) for job in found for need in job.needs)
    by_name = {job.name: " ".join(job.words) for job in found}
    assert by_name["lift/demos/1/collect"] == "demos collect --task lift --episodes 2 --seed 1 --out DIR/lift/demos/1 --workers 1 --json"
    assert by_name["lift/bc/1/train"] == (
        "train bc --task lift --demos DIR/lift/demos/1 --out DIR/lift/bc/1 --seed 1 --width 16 --workers 1 --json"
    )
    assert by_name["lift/otpr/0/train"] == (
        "train otpr --task lift --demos DIR/lift/demos/0 --init DIR/lift/bc/0 --out DIR/lift/otpr/0 --seed 0 "
        "--pool near --no-mask --support 3 --steps 100 --workers 1 --json"
    )
    assert by_name["lift/otpr/0/evaluate-hard-8"] == (
        "eval DIR/lift/otpr/0 --task lift --episodes 4 --seed 10000 --preset hard --candidates 8 "
        "--sampler ddim --steps 5 --eta 1 --workers 1 --json"
    )
    assert next(job for job in found if job.name == "lift/otpr/0/train").needs == ("lift/demos/0/collect", "lift/bc/0/train")


def test_policies_with_a_chain_of_their_own_are_judged_with_that(tmp_path, monkeypatch):
    known = {**installed_commands(), ("train", "dsrl"): SimpleNamespace(load=lambda: train.DSRL)}
    monkeypatch.setattr(plans, "installed_commands", lambda: known)
    found = jobs(load(tmp_path, PLAN.replace("algorithm: filtered_bc", "algorithm: dsrl")))
    by_name = {job.name: " ".join(job.words) for job in found}
    flags = "--sampler ddim --steps 5 --eta 1"
    assert flags not in by_name["lift/filtered_bc/0/evaluate-nominal-1"] and flags in by_name["lift/bc/0/evaluate-nominal-1"]
    assert by_name["lift/filtered_bc/0/evaluate-nominal-1"].endswith("--preset nominal --candidates 1 --workers 1 --json")


def test_what_is_cloned_has_the_demonstrations_alone_and_its_own_sampler(tmp_path):
    """It does not wait for the start policy, and neither start nor budget are its."""
    found = jobs(load(tmp_path, PLAN.replace("algorithm: filtered_bc", "algorithm: bridger, settings: {form: power3}")))
    trained, judged = (next(job for job in found if job.name == f"lift/filtered_bc/0/{end}") for end in ("train", "evaluate-hard-1"))
    assert " ".join(trained.words) == (
        "train bridger --task lift --demos DIR/lift/demos/0 --out DIR/lift/filtered_bc/0 --seed 0 --form power3 --workers 1 --json"
    )
    assert trained.needs == ("lift/demos/0/collect",) and trained.budget == 0
    assert " --sampler bridge --steps 5 --eta 1 " in " ".join(judged.words)
    assert all(" --sampler ddim " in " ".join(job.words) for job in found if job.kind is Kind.EVALUATE and job.method != "filtered_bc")


def test_a_command_that_goes_on_repeats_no_start(tmp_path):
    job = next(job for job in jobs(load(tmp_path, PLAN)) if job.kind is Kind.TRAIN and job.method == "otpr")
    anew, again = job.command(tmp_path, begun=False), job.command(tmp_path, begun=True)
    assert anew[anew.index("--init") + 1] == f"{tmp_path}/lift/bc/0" and anew[anew.index("--out") + 1] == f"{tmp_path}/lift/otpr/0"
    assert "--init" not in again and again[-1] == "--resume" and set(again) < {*anew, "--resume"}


@pytest.mark.parametrize("begun", [False, True])
def test_every_command_of_the_shipped_plans_is_one_that_otpr_takes(tmp_path, begun):
    commands, parsers = installed_commands(), {}
    for name in plans.shipped():
        for job in jobs(plans.load(name)):
            words = job.command(tmp_path, begun and bool(job.output))
            size = 1 if job.kind is Kind.EVALUATE else 2
            if tuple(words[:size]) not in parsers:
                parser = parsers[tuple(words[:size])] = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
                commands[tuple(words[:size])].load().add_arguments(parser)
            assert parsers[tuple(words[:size])].parse_args(words[size:]).workers == 1


@pytest.mark.parametrize("name", sorted(point_tuning.SETTINGS))
def test_who_says_that_its_critic_chooses_has_one_in_its_checkpoints(monkeypatch, name):
    point_tuning.play_here(monkeypatch)
    module = importlib.import_module(f"otpr_trainer.algorithms.{name}")
    learner = module.Learner(module.Config(**point_tuning.SETTINGS[name]), point_tuning.setup())
    try:
        assert plans.chooses(name) == (learner.critic_config is not None)
    finally:
        learner.close()

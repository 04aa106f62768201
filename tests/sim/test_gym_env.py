# SPDX-License-Identifier: Apache-2.0
"""Laws of Gymnasium environments as tasks: what the specification says, what success and an episode's end mean, what is refused."""

import sys
from typing import Any

import numpy as np
import pytest
from gym_experts import PickAndPlace

from otpr_policy.errors import EnvironmentSetupError, TaskError
from otpr_policy.spec import Semantics
from otpr_sim import gym_env, registry
from otpr_sim.env import RobotEnv, episode_seed
from otpr_sim.gym_task import GymTask
from otpr_sim.twin import make_robot

gymnasium = pytest.importorskip("gymnasium")
needs_robotics = pytest.mark.skipif(
    gym_env.importlib.util.find_spec("gymnasium_robotics") is None, reason="gymnasium-robotics is not installed"
)
DOOR, PICK = "gym:AdroitHandDoor-v1", "gym:FetchPickAndPlace-v4"


class Line(gymnasium.Env):
    """A point that moves by the action; every knob of the adapter can be set. Reports success beyond 1, and is over beyond 2."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012 - Gymnasium's own convention

    def __init__(self, render_mode: str | None = None, **changes: Any) -> None:
        box = gymnasium.spaces.Box
        self.observation_space = changes.get("observation", box(-np.inf, np.inf, (1,), np.float64))
        self.action_space = changes.get("action", box(-1.0, 1.0, (1,), np.float32))
        self.render_mode = render_mode
        self._word = changes.get("word", "success")
        self._broken_at = changes.get("broken_at", 99)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps, self._place = 0, np.array([self.np_random.uniform(-0.1, 0.1)])
        return self._place, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert action.dtype == np.float32 and self.action_space.contains(action)
        self._steps += 1
        self._place += action  # in place: the adapter must not keep a reference
        if self._steps == self._broken_at:
            self._place[:] = np.nan
        return self._place, float(action[0]), bool(abs(self._place[0]) > 2), False, {self._word: bool(self._place[0] > 1)}

    def render(self) -> np.ndarray:
        return np.full((20, 40, 3), 200, dtype=np.uint8)


@pytest.fixture
def register():
    """Registers a Line for the length of a test; returns the task's name."""
    made = []

    def add(horizon: int | None = 10, **changes: Any) -> str:
        identity = f"Line{len(made)}-v0"
        gymnasium.register(identity, entry_point=Line, max_episode_steps=horizon, kwargs=changes)
        made.append(identity)
        return f"gym:{identity}"

    yield add
    for identity in made:
        del gymnasium.registry[identity]
    gym_env.spec.cache_clear()


@needs_robotics
def test_the_specification_of_a_dict_of_boxes_has_a_field_for_each() -> None:
    spec = registry.spec(PICK)
    assert {field.name: field.size for field in spec.observation.fields} == {"achieved_goal": 3, "desired_goal": 3, "observation": 25}
    assert {field.unit for field in (*spec.observation.fields, *spec.action.fields)} == {"unstated"}
    assert (spec.name, spec.control_rate_hz, spec.horizon) == (PICK, 25.0, 50)
    assert spec.success_rule == "the environment reports 'is_success'"
    assert spec.action.names == ("action",) and spec.action["action"].semantics is Semantics.ABSOLUTE
    assert spec.action["action"].low == (-1.0,) * 4 and spec.action["action"].high == (1.0,) * 4


@needs_robotics
def test_the_specification_of_a_box_has_one_field() -> None:
    spec = registry.spec(DOOR)
    assert [(field.name, field.size) for field in spec.observation.fields] == [("observation", 39)]
    assert (spec.action.size, spec.control_rate_hz, spec.horizon) == (28, 100.0, 200)
    assert spec.success_rule == "the environment reports 'success'"


@needs_robotics
@pytest.mark.parametrize("task", [DOOR, PICK])
def test_an_episode_depends_on_its_seed_alone(task: str) -> None:
    def roll(env, seed: int) -> np.ndarray:
        rng = np.random.default_rng(1)
        fields = env.spec.observation
        flat = [fields.flatten(env.reset(episode_seed(seed, 0)))]
        flat += [fields.flatten(env.step(rng.uniform(env.spec.action.low, env.spec.action.high)).observation) for _ in range(20)]
        return np.stack(flat)

    with registry.make(task) as env, registry.make(task) as other:
        first = roll(env, 3)
        assert not np.array_equal(roll(env, 4)[0], first[0])
        np.testing.assert_array_equal(roll(env, 3), first)
        np.testing.assert_array_equal(roll(other, 3), first)


@needs_robotics
def test_success_is_what_the_environment_measures() -> None:
    with registry.make(PICK) as env:
        observation, expert = env.reset(0), PickAndPlace(np.random.default_rng(0))
        results = []
        while not results or not (results[-1].terminated or results[-1].truncated):
            results.append(env.step(expert.act(observation)))
            observation = results[-1].observation
            distance = np.linalg.norm(observation["achieved_goal"] - observation["desired_goal"])
            assert results[-1].success == results[-1].terminated == (distance < 0.05)
            assert results[-1].reward == -float(distance > 0.05)
    assert [result.success for result in results] == [False] * (len(results) - 1) + [True] and len(results) > 5


def test_terminated_and_truncated_are_kept_apart(register) -> None:
    with registry.make(register(horizon=5)) as env:
        env.reset(0)
        solved = [env.step(np.array([0.6])) for _ in range(2)][-1]
        assert (solved.terminated, solved.truncated, solved.success, env.ended) == (True, False, True, False)
        env.reset(0)
        failed = [env.step(np.array([-0.9])) for _ in range(3)][-1]
        assert (failed.terminated, failed.truncated, failed.success, env.ended) == (True, False, False, True)
        with pytest.raises(TaskError, match="after its end"):
            env.step(np.zeros(1))
        env.reset(0)
        late = [env.step(np.zeros(1)) for _ in range(5)]
        assert [result.truncated for result in late] == [False] * 4 + [True] and not any(result.terminated for result in late)


@pytest.mark.parametrize(("threshold", "success"), [(-2.5, True), (-2.4, False)])
def test_a_stated_return_is_judged_over_the_whole_episode(register, threshold: float, success: bool) -> None:
    """Five rewards of -0.5: on the way the sum is above both thresholds, at the end above one."""
    with registry.make(f"{register(horizon=5, word='nothing', action=gymnasium.spaces.Box(-0.5, 9, (1,)))},return={threshold}") as env:
        assert env.spec.success_rule == f"the rewards of the episode add up to at least {threshold:g}"
        env.reset(0)
        env._env.unwrapped._place += 1.0  # away from where the environment is over
        results = [env.step(np.array([-0.5])) for _ in range(5)]
    assert [result.success for result in results] == [False] * 4 + [success]
    assert [result.truncated for result in results] == [False] * 4 + [True] and env.ended


@pytest.mark.parametrize(("threshold", "success"), [(2.5, True), (3, False)])
def test_an_episode_that_the_environment_ends_is_judged_by_its_return_then(register, threshold: float, success: bool) -> None:
    with registry.make(f"{register(word='nothing')},return={threshold}") as env:
        env.reset(0)
        results = [env.step(np.array([0.9])) for _ in range(3)]
    assert [(result.terminated, result.success) for result in results] == [(False, False)] * 2 + [(True, success)] and env.ended


def test_an_observation_is_the_callers_own(register) -> None:
    with registry.make(register()) as env:
        first = env.reset(0)
        before = first["observation"].copy()
        second = env.step(np.array([0.5])).observation
        np.testing.assert_array_equal(first["observation"], before)
        second["observation"][:] = 7.0
        assert env.observe()["observation"][0] == pytest.approx(before[0] + 0.5)


def test_an_action_beyond_the_bounds_is_clipped_to_them(register) -> None:
    with registry.make(register()) as env:
        start = env.reset(0)["observation"]
        assert env.step(np.array([5.0])).observation["observation"] == pytest.approx(start + 1.0)


def test_what_the_environment_does_not_bound_gets_a_nominal_range_and_stated_bounds_stay(register) -> None:
    low, high = np.array([-np.inf, 0.0, -np.inf, -2.0, -3.4e38]), np.array([np.inf, np.inf, 5.0, 3.0, 3.4e38])
    task = register(observation=gymnasium.spaces.Box(low, high, dtype=np.float64), word="success")
    field = gym_env._observation_field(GymTask.parse(task), "x", gymnasium.spaces.Box(low, high, dtype=np.float64))
    assert field.low == (-1.0, 0.0, 3.0, -2.0, -1.0) and field.high == (1.0, 2.0, 5.0, 3.0, 1.0)


BOX = gymnasium.spaces.Box
REFUSED = [
    ({"action": gymnasium.spaces.Discrete(3)}, r"the action is Discrete\(3\)"),
    ({"action": BOX(0, 5, (2,), np.int32)}, "floating point"),
    ({"action": BOX(-1, 1, (2, 2), np.float32)}, "one-dimensional"),
    ({"action": BOX(-np.inf, np.inf, (1,), np.float32)}, "every component needs bounds"),
    ({"observation": BOX(0, 255, (8, 8, 3), np.uint8)}, "observation 'observation' is Box"),
    ({"observation": gymnasium.spaces.Discrete(4)}, "only one-dimensional Box spaces"),
    ({"observation": gymnasium.spaces.Dict(a=gymnasium.spaces.Dict(b=BOX(0, 1, (1,))))}, "observation 'a' is Dict"),
    ({"word": "glory"}, r"reports no success \(info\['success'\] or info\['is_success'\]\); state it in .*,return=100"),
    ({"horizon": None}, r"no step limit; state it in the task's name, such as gym:Line0-v0,horizon=200"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_cannot_be_a_task_is_refused_with_the_reason(register, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        registry.spec(register(**changes))


def test_an_unknown_rate_is_refused_unless_it_is_stated(register, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Line, "metadata", {"render_modes": []})
    task = register()
    with pytest.raises(TaskError, match=r"neither dt nor render_fps.*,rate=20"):
        registry.spec(task)
    assert registry.spec(f"{task},rate=12.5").control_rate_hz == 12.5


def test_options_of_the_name_override_what_the_environment_says(register) -> None:
    spec = registry.spec(f"{register(horizon=10)},horizon=7,rate=50,return=-3")
    assert (spec.horizon, spec.control_rate_hz) == (7, 50.0)


def test_a_number_that_is_not_finite_is_refused_where_it_appears(register) -> None:
    with registry.make(register(broken_at=3)) as env:
        env.reset(0)
        env.step(np.zeros(1))
        env.step(np.zeros(1))
        with pytest.raises(TaskError, match=r"observation\[0\] is nan in step 3"):
            env.step(np.zeros(1))


def test_an_unknown_environment_lists_similar_ones() -> None:
    with pytest.raises(TaskError, match=r"unknown Gymnasium environment 'Pendulumm-v1'; similar: Pendulum-v1"):
        registry.spec("gym:Pendulumm-v1")
    with pytest.raises(TaskError, match="similar: none"):
        registry.spec("gym:QQQQQQQQ")


def test_a_name_cannot_import_a_module_and_a_variable_can(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = "import gymnasium\ngymnasium.register('Mine-v0', entry_point=lambda **k: None)\n"
    (tmp_path / "my_environments.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TaskError, match="unknown Gymnasium environment 'my_environments:Mine-v0'"):
        registry.spec("gym:my_environments:Mine-v0")
    assert "my_environments" not in sys.modules
    monkeypatch.setenv(gym_env.MODULES_VARIABLE, "my_environments")
    try:
        assert gym_env._find(GymTask.parse("gym:Mine-v0")).id == "Mine-v0"
    finally:
        gymnasium.registry.pop("Mine-v0", None)
    monkeypatch.setenv(gym_env.MODULES_VARIABLE, "no_such_module")
    with pytest.raises(EnvironmentSetupError, match="OTPR_GYM_MODULES: 'no_such_module' cannot be imported"):
        registry.spec("gym:Pendulum-v1,return=-200")


def test_without_gymnasium_the_command_to_install_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(EnvironmentSetupError, match=r"pip install -c requirements/constraints\.txt gymnasium"):
        registry.make("gym:Pendulum-v1,return=-200")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gym:X-v0,return=20,horizon=3", "is spelt 'gym:X-v0,horizon=3,return=20'"),
        ("gym:X-v0,return=20.0", "is spelt 'gym:X-v0,return=20'"),
        ("gym:X-v0,colour=3", "unknown option 'colour'; known: horizon, rate, return"),
        ("gym:X-v0,return=1,return=2", "repeated"),
        ("gym:X-v0,return=many", "return needs a number, got 'many'"),
        ("gym:X-v0,return=nan", "return needs a number"),
        ("gym:X-v0,horizon=2.5", "horizon must be a whole number"),
        ("gym:X-v0,rate=0", "rate must be above 0"),
    ],
)
def test_a_name_that_is_not_the_tasks_one_name_is_refused(name: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        GymTask.parse(name)


@pytest.mark.parametrize("task", [GymTask("X-v0"), GymTask("a/X-v0", 300, 12.5, -0.25), GymTask("X-v0", success_return=1e-7)])
def test_a_name_is_read_back_as_the_task_that_it_names(task: GymTask) -> None:
    assert GymTask.parse(task.name) == task


def test_there_is_no_state_and_no_robot(register) -> None:
    task = register()
    with registry.make(task) as env:
        assert env.state().shape == (0,) and not isinstance(env, RobotEnv)
        with pytest.raises(TaskError, match="cannot be set to a state"):
            env.set_state(np.zeros(0))
    with pytest.raises(TaskError, match="has no robot that a twin can play"):
        make_robot(task)


def test_an_environment_of_another_simulator_draws_itself_in_the_size_asked_for(register, monkeypatch: pytest.MonkeyPatch) -> None:
    with registry.make(register()) as env:
        picture = env.render(40, 40)
        assert picture.shape == (40, 40, 3) and env.renderer() == gym_env.OWN_RENDERER
        assert (picture[12:28] == 200).all() and (picture[:8] == 0).all()  # twice as wide as high, in the middle
    monkeypatch.setattr(Line, "metadata", {"render_modes": [], "render_fps": 10})
    with registry.make(register()) as env, pytest.raises(EnvironmentSetupError, match="no render mode 'rgb_array'"):
        env.render(40, 40)


@needs_robotics
def test_a_mujoco_scene_is_drawn_without_opengl_and_drawing_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from otpr_sim import render

    monkeypatch.setattr(render, "backend", lambda: "software")
    actions = np.random.default_rng(0).uniform(-1.0, 1.0, (10, 4))
    with registry.make(PICK) as drawn, registry.make(PICK) as plain:
        drawn.reset(2)
        plain.reset(2)
        pictures = []
        for action in actions:
            pictures.append(drawn.render(80, 60))
            ours, theirs = drawn.step(action), plain.step(action)
            np.testing.assert_array_equal(ours.observation["observation"], theirs.observation["observation"])
        assert drawn.renderer() == "software"
    assert pictures[0].shape == (60, 80, 3) and pictures[0].std() > 10.0 and (pictures[0] != pictures[-1]).any()

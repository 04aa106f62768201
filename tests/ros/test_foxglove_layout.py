# SPDX-License-Identifier: Apache-2.0
"""The Foxglove layout names topics, fields and services that the running nodes have, and every panel has its place."""

import json
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from rclpy.node import Node
from std_msgs.msg import String

from otpr_operator.ros.trial_topics import TrialTopics, topics
from otpr_policy.bringup import POLICY_STATUS
from otpr_policy.contract import load_contract
from otpr_sim.ros.twin import TwinNode

pytestmark = pytest.mark.ros
LAYOUT = Path(__file__).parents[2] / "ros2_ws/src/otpr/config/foxglove/otpr.json"


@pytest.fixture(scope="module")
def layout() -> dict[str, Any]:
    """The layout as data."""
    return dict(json.loads(LAYOUT.read_text()))


def panels(layout: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [config for name, config in layout["configById"].items() if name.split("!")[0] == kind]


def message_paths(layout: dict[str, Any]) -> list[str]:
    """Every topic with a field that a panel reads."""
    found = [path["value"] for kind in ("Plot", "StateTransitions") for panel in panels(layout, kind) for path in panel["paths"]]
    found += [panel["path"] for panel in panels(layout, "Indicator")]
    return found + [panel["topicPath"] for panel in panels(layout, "RawMessages")]


def placed(node: Any) -> Iterator[str]:
    """Panels in the tree of splits."""
    if isinstance(node, str):
        yield node
    else:
        assert 0 < node["splitPercentage"] < 100
        yield from placed(node["first"])
        yield from placed(node["second"])


def ros_class(name: str) -> Any:
    """The class of a message or service type such as ``std_msgs/msg/String`` or ``geometry_msgs/Point``."""
    package, *_, kind = name.split("/")
    return getattr(import_module(f"{package}.{'srv' if '/srv/' in name else 'msg'}"), kind)


def field_type(message_type: str, path: str) -> str:
    """The type of a field such as ``pose.position.x`` or ``data[0]`` in a message type. Raises KeyError when there is none."""
    kind = message_type
    for part in re.findall(r"\w+|\[\d+\]", path):
        if part.startswith("["):
            element = re.fullmatch(r"sequence<([^,>]+).*>|(.+)\[\d+\]", kind)
            if element is None:
                raise KeyError(path)
            kind = element.group(1) or element.group(2)
        else:
            kind = ros_class(kind).get_fields_and_field_types()[part]
    return kind


@pytest.fixture(scope="module")
def graph() -> Iterator[tuple[dict[str, str], dict[str, str], list[str]]]:
    """What policy node, twin and trials publish and serve, and what they take: topic to type, service to type, topics."""
    import tempfile

    import tiny_policy
    from rclpy.parameter import Parameter

    from otpr_policy.ros.node import PolicyNode

    with tempfile.TemporaryDirectory() as folder, topics() as trials:
        policy = tiny_policy.write(Path(folder) / "tiny.onnx")
        node = PolicyNode(parameter_overrides=[Parameter("policy", value=str(policy)), Parameter("robot", value="panda_twin")])
        node.trigger_configure()
        twin = TwinNode()
        nodes = (node, twin, _node_of(trials))
        try:
            # Of the nodes themselves and not of the graph, where others of these names may still be.
            published = {p.topic_name: _name_of(p.msg_type) for one in nodes for p in one.publishers}
            served = {s.service_name: _name_of(s.srv_type) for one in nodes for s in one.services}
            taken = [s.topic_name for one in nodes for s in one.subscriptions]
            yield published, served, taken
        finally:
            twin.close()
            node.close()
            twin.destroy_node()
            node.destroy_node()


def _name_of(interface: Any) -> str:
    """As the graph names a message or service: geometry_msgs/msg/PoseStamped."""
    package, kind, *_ = interface.__module__.split(".")
    return f"{package}/{kind}/{interface.__name__}"


def _node_of(trials: TrialTopics) -> Node:
    return trials._node


def test_every_message_path_is_a_field_of_a_topic_that_is_published(layout: dict[str, Any], graph: Any) -> None:
    published, _, _ = graph
    paths = message_paths(layout)
    assert len(paths) > 15
    for path in paths:
        topic, _, field = path.partition(".")
        assert topic in published, f"{path}: nobody publishes {topic}"
        assert "/" not in field_type(published[topic], field), f"{path} is not a number or text"


@pytest.mark.parametrize("path", ["pose.position.w", "position", "pose[0]", "pose.position[0]"])
def test_a_field_that_is_not_there_is_noticed(path: str) -> None:
    with pytest.raises(KeyError):
        field_type("geometry_msgs/msg/PoseStamped", path)


def test_topics_drawn_in_space_are_poses_and_the_frame_is_the_contracts(layout: dict[str, Any], graph: Any) -> None:
    published, _, _ = graph
    for panel in panels(layout, "3D"):
        assert {published[topic] for topic in panel["topics"]} == {"geometry_msgs/msg/PoseStamped"}
        assert panel["followTf"] == load_contract("panda_twin").pose_command.frame


def test_buttons_call_services_that_are_served_with_requests_that_fit(layout: dict[str, Any], graph: Any) -> None:
    _, served, _ = graph
    buttons = panels(layout, "CallService")
    assert buttons
    for button in buttons:
        request = ros_class(served[button["serviceName"]]).Request
        for field, value in json.loads(button["requestPayload"]).items():
            assert type(value) is type(getattr(request(), field))


def test_answers_go_where_trials_listen(layout: dict[str, Any], graph: Any) -> None:
    _, _, taken = graph
    for panel in panels(layout, "Publish"):
        assert panel["topicName"] in taken
        assert panel["datatype"] == "std_msgs/msg/String"
        String(**json.loads(panel["value"]))


def test_diagnostics_are_those_of_the_policy_node(layout: dict[str, Any], graph: Any) -> None:
    published, _, _ = graph
    for kind in ("DiagnosticSummary", "DiagnosticStatusPanel"):
        for panel in panels(layout, kind):
            assert published[panel["topicToRender"]] == "diagnostic_msgs/msg/DiagnosticArray"
    (status,) = panels(layout, "DiagnosticStatusPanel")
    assert status["selectedName"] == POLICY_STATUS
    assert status["selectedHardwareId"] == load_contract("panda_twin").robot


def test_every_panel_has_one_place_and_its_settings(layout: dict[str, Any]) -> None:
    there = list(placed(layout["layout"]))
    assert sorted(there) == sorted(set(there)) == sorted(layout["configById"])
    known = {
        "3D",
        "CallService",
        "DiagnosticStatusPanel",
        "DiagnosticSummary",
        "Indicator",
        "Plot",
        "Publish",
        "RawMessages",
        "StateTransitions",
    }
    assert {name.split("!")[0] for name in there} <= known

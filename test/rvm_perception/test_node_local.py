"""The node and what surrounds it: clocks, QoS, lost images, live parameters, and transitions that go wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS is not installed")

import rclpy  # noqa: E402
from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import QoSProfile, ReliabilityPolicy  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402

from live_node import RELIABLE, Client, wait_for  # noqa: E402
from node_in_process import ERROR, FAILURE, SUCCESS, Gate, LocalNode, message, picture  # noqa: E402
from rvm_core.engines import Engine, create_engine  # noqa: E402
from rvm_perception.faulty_engine import Fault, order  # noqa: E402
from rvm_perception.node import RVMNode  # noqa: E402
from rvm_perception.parameters import ParameterError  # noqa: E402
from rvm_perception.stream import SUPERSEDED  # noqa: E402


def topic(name: str) -> str:
    return f"/{name}/cam/image"


def client_of(local: LocalNode) -> Client:
    return Client(local.name, topic=topic(local.name))


def set_parameters(local: LocalNode, **values: Any) -> list[str]:
    """Why each was refused; "" where it was not."""
    changes = [Parameter(name, value=value) for name, value in values.items()]
    return [result.reason for result in local.do(lambda: local.node.set_parameters(changes))]


# ---- clocks ---------------------------------------------------------------------------------------------------------


def test_a_clock_that_starts_again_resets_before_any_stamp_tells(ros_environment: dict[str, str]) -> None:
    with LocalNode("clocked", use_sim_time=True) as local, client_of(local) as client:
        local.start()
        client.wait_for_node()
        clock = client.node.create_publisher(Clock, "/clock", RELIABLE)

        def set_clock(seconds: int) -> None:
            time = Clock()
            time.clock.sec = seconds

            def reached() -> bool:
                clock.publish(time)
                return local.do(lambda: local.node.get_clock().now().nanoseconds) == seconds * 10**9

            wait_for(reached, f"the time {seconds}")

        set_clock(1010)
        assert client.exchange(message(picture(0), 250)).epoch == 0
        set_clock(1000)
        client.publish(message(picture(1), 251))
        wait_for(lambda: local.camera().stream.rejected["old_loop"] == 1, "the frame of the old loop to be dropped")
        after = [client.exchange(message(picture(2 + i), i)) for i in range(2)]
        assert [(m.epoch, m.index) for m in after] == [(1, 0), (1, 1)]
        assert local.camera().values()["resets_clock_jump"] == 1


def test_two_cameras_on_one_topic_are_told_as_an_unstable_clock(ros_environment: dict[str, str]) -> None:
    with LocalNode("unstable") as local, client_of(local) as client:
        local.start()
        client.wait_for_node()
        for i in range(3):
            for start in (100_000, 0):
                client.exchange(message(picture(i), start + i))
        level, text = local.condition()
        assert level == DiagnosticStatus.ERROR and "clock unstable: 3 resets by stamps (backward, gap)" in text


# ---- what does not arrive -------------------------------------------------------------------------------------------


def test_images_that_are_replaced_before_they_are_taken_are_counted(ros_environment: dict[str, str]) -> None:
    with LocalNode("late") as local, client_of(local) as client:
        local.start()
        client.wait_for_node()
        client.exchange(message(picture(0), 0))
        busy = threading.Event()
        blocked = local.executor.create_task(busy.wait)
        for i in range(1, 21):
            client.publish(message(picture(i), i))
        wait_for(lambda: client.camera.get_subscription_count() == 1, "the node")
        busy.set()
        wait_for(blocked.done, "the executor")
        wait_for(lambda: client.features[-1].header == message(picture(0), 20).header, "the last image")
        values = local.camera().values()
        assert int(str(values["received"])) + int(str(values["lost"])) == 21
        assert int(str(values["lost"])) >= 15
        level, text = local.condition()
        assert level == DiagnosticStatus.WARN and "were replaced by newer ones" in text
        assert local.condition()[0] == DiagnosticStatus.OK


def test_incompatible_qos_and_overrides_are_told(
    ros_environment: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    overrides = {
        "qos_overrides./strict/cam/image.subscription.reliability": "reliable",
        "qos_overrides./strict/cam/image.subscription.depth": 7,
        "qos_overrides./strict/features.publisher.reliability": "best_effort",
        # The event may come before it is known whose publisher it is; the watchdog says it again.
        "stall_timeout": 0.5,
    }
    with LocalNode("strict", input_reliability="best_effort", **overrides) as local, client_of(local) as client:
        client.node.destroy_publisher(client.camera)
        best_effort = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        camera = client.node.create_publisher(Image, topic("strict"), best_effort)
        local.start()
        used = local.camera().input
        assert used is not None and (used.qos.depth, used.qos.reliability) == (7, ReliabilityPolicy.RELIABLE)
        wait_for(lambda: client.node.get_publishers_info_by_topic("/strict/features"), "the features' publisher")
        (features,) = client.node.get_publishers_info_by_topic("/strict/features")
        assert features.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
        text = ""
        said = (
            "has an incompatible QoS (RELIABILITY)",
            "test_client (sensor_msgs/msg/Image, best_effort",
            "qos_overrides./strict/cam/image.subscription.reliability where that is set",
        )

        def told() -> bool:
            nonlocal text
            text += capfd.readouterr().err
            return all(words in text for words in said)

        wait_for(told, "the incompatible QoS to be told, by whom, and what to do")
        client.node.destroy_publisher(camera)


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("qos_overrides./nobody/image.subscription.depth", 5, "unknown parameters: qos_overrides./nobody/image"),
        ("qos_overrides./wrong/features.publisher.reliability", "perhaps", "Unexpected QoS override"),
        ("height", 100, "height must be a multiple of 16"),
        ("weights", "/nowhere/rvm.npz", "/nowhere/rvm.npz"),
    ],
)
def test_a_node_that_cannot_be_configured_says_why_and_can_be_once_it_is_mended(
    ros_environment: dict[str, str], name: str, value: Any, reason: str
) -> None:
    with LocalNode("wrong") as local:
        # What a file may hold; a change to it would be refused.
        given = local.node._parameter_overrides if name.startswith("qos_overrides") else local.node._parameters
        good = given.get(name)
        given[name] = Parameter(name, value=value)
        assert local.configure() == FAILURE and local.state == "unconfigured"
        status = local.do(local.node._engine_status)
        assert status.level == DiagnosticStatus.ERROR and reason in status.message
        if good is not None:
            given[name] = good
        else:
            del given[name]
            local.node._parameters.pop(name, None)
        assert local.configure() == SUCCESS and local.state == "inactive"
        assert local.do(local.node._engine_status).level == DiagnosticStatus.OK


# ---- parameters -----------------------------------------------------------------------------------------------------


def test_live_parameters_take_effect_and_others_are_refused(ros_environment: dict[str, str]) -> None:
    with LocalNode("living", tracking="features") as local, client_of(local) as client:
        local.start()
        client.wait_for_node()
        client.exchange(message(picture(0), 0))
        (reason,) = set_parameters(local, height=64)
        assert reason == "height: read in configure; deactivate and clean the node up first"
        (reason,) = set_parameters(local, max_gap=-1.0)
        assert "max_gap" in reason
        (reason,) = set_parameters(local, on_backward="perhaps")
        assert "on_backward must be one of reset, continue" in reason
        assert client.exchange(message(picture(1), 1)).index == 1, "what was refused has changed nothing"
        assert set_parameters(local, max_gap=0.0, on_backward="continue", max_points=0, overlay_alpha=0.25) == [""] * 4
        after = [client.exchange(message(picture(i), i)) for i in (1000, 0)]
        assert [(m.epoch, m.index) for m in after] == [(0, 2), (0, 3)]
        camera = local.camera()
        assert camera.session is not None
        assert (camera.session.parameters.max_points, camera.topics.overlay_alpha) == (0, 0.25)
        assert set_parameters(local, max_gap=1.0) == [""]
        assert client.exchange(message(picture(3), 100)).epoch == 1


# ---- transitions ----------------------------------------------------------------------------------------------------


def broken(*_: Any, **__: Any) -> Any:
    raise KeyError("broken on purpose")


@pytest.fixture
def local(ros_environment: dict[str, str]) -> Iterator[LocalNode]:
    with LocalNode("changing") as local:
        yield local


@pytest.mark.parametrize("place", ["set_up_engine", "make_tracker", "CameraTopics", "FrameProcessor"])
def test_an_error_in_configure(local: LocalNode, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(f"rvm_perception.node.{place}", broken)
        assert local.configure() == FAILURE and local.state == "unconfigured"
        status = local.do(local.node._engine_status)
        assert status.level == DiagnosticStatus.ERROR and "cannot configure: KeyError" in status.message
    local.start()


@pytest.mark.parametrize("place", ["CameraInput", "Worker"])
def test_an_error_in_activate(local: LocalNode, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    assert local.configure() == SUCCESS
    with monkeypatch.context() as patch:
        patch.setattr(f"rvm_perception.node.{place}", broken)
        assert local.activate() == FAILURE and local.state == "inactive"
        assert "cannot activate: KeyError" in local.do(local.node._engine_status).message
        assert local.node.count_subscribers(topic("changing")) == 0
    assert local.activate() == SUCCESS
    assert local.do(local.node._engine_status).level == DiagnosticStatus.OK


@pytest.mark.parametrize(
    ("transition", "place"),
    [
        (LocalNode.deactivate, "rvm_perception.camera_input.CameraInput.close"),
        (LocalNode.deactivate, "rvm_perception.camera.Camera.totals"),
        (LocalNode.cleanup, "rvm_perception.camera.CameraTopics.destroy"),
        (LocalNode.cleanup, "rvm_perception.processor.CameraHistory.keep"),
    ],
)
def test_an_error_on_the_way_back(
    local: LocalNode, monkeypatch: pytest.MonkeyPatch, transition: Callable[[LocalNode], Any], place: str
) -> None:
    local.start()
    if transition is LocalNode.cleanup:
        assert local.deactivate() == SUCCESS
    with monkeypatch.context() as patch:
        patch.setattr(place, broken)
        assert transition(local) == ERROR and local.state == "unconfigured"
        assert "KeyError" in local.do(local.node._engine_status).message
    local.start()
    with client_of(local) as client:
        client.wait_for_node()
        client.exchange(message(picture(0), 0))


def test_a_step_that_does_not_end_keeps_the_node_from_a_second_worker(
    ros_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("rvm_perception.node._JOIN_TIMEOUT_S", 0.1)
    gate = Gate()
    with LocalNode("stuck", gate=gate, step_timeout=0.1) as local, client_of(local) as client:
        local.start()
        client.wait_for_node()
        client.exchange(message(picture(0), 0))
        gate.close()
        client.publish(message(picture(1), 1))
        wait_for(lambda: local.condition()[0] == DiagnosticStatus.ERROR, "the hanging step to be told")
        assert "step has been running for" in local.condition()[1]
        assert "step has been running for" in local.do(local.node._engine_status).message
        ledger = local.camera().stream.ledger()
        assert (ledger["received"], ledger["processed"], ledger["waiting"]) == (2, 1, 1)
        assert local.deactivate() == SUCCESS
        assert local.activate() == FAILURE and local.state == "inactive"
        assert "cannot activate: the engine has not come back" in capfd.readouterr().err
        gate.open()
        wait_for(lambda: not local.node.is_computing, "the step to end")
        assert local.camera().stream.ledger()["rejected"] == 1, "what came too late is not committed"
        assert local.activate() == SUCCESS
        client.wait_for_node()
        after = client.exchange(message(picture(2), 2))
        assert (after.epoch, after.index, len(client.features)) == (1, 0, 2)


def test_the_ledger_adds_up_at_the_end(ros_environment: dict[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    gate = Gate()
    with LocalNode("counting", gate=gate) as local, client_of(local) as client:
        local.start()
        client.wait_for_node()
        stream = local.camera().stream

        def send(rgb: np.ndarray, index: int) -> None:
            count = stream.received + 1
            client.publish(message(rgb, index))
            wait_for(lambda: stream.received == count, f"frame {index}")

        def settle() -> None:
            wait_for(lambda: stream.ledger()["waiting"] == 0, "the worker")

        for index in (0, 1, 1, 100, 0):
            send(picture(index), index)
            settle()
        send(order(picture(7), Fault.RAISE), 8)
        settle()
        gate.close()
        send(picture(9), 9)
        wait_for(lambda: gate.waiting == 1, "a step")
        for index in (10, 11):
            send(picture(index), index)
        assert stream.reasons()[0] == {"duplicate": 1, "engine": 1, SUPERSEDED: 1}
        opener = threading.Timer(0.5, gate.open)
        opener.start()
        assert local.deactivate() == SUCCESS
        opener.join()
        expected = (
            "camera cam: received 9, processed 4, dropped 1, rejected 4 (duplicate 1, engine 1, inactive 2), "
            "waiting 0, lost 0, resets 2 (backward 1, gap 1)"
        )
        assert local.camera().totals() == expected
        log = capfd.readouterr().err
        assert expected in log
        assert f"camera cam: waiting for images on {topic('counting')}" in log
        assert log.count("camera cam: first frame, 144x96, frame_id 'optical'") == 1
        assert "camera cam: state reset (gap), epoch 1" in log and "frame rejected, duplicate: stamp" in log


def test_the_engine_is_made_in_a_thread_that_ends(
    ros_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What OpenMP keeps for it would slow down the thread that steps."""
    threads = []

    def create(*arguments: Any, **options: Any) -> Engine:
        threads.append(threading.current_thread())
        return create_engine(*arguments, **options)

    monkeypatch.setattr("rvm_perception.engine_setup.create_engine", create)
    with LocalNode("apart") as local:
        assert local.configure() == SUCCESS
        (thread,) = threads
        assert thread is not local.do(threading.current_thread)
        wait_for(lambda: not thread.is_alive(), "the end of the thread")


def test_an_unknown_parameter_is_an_error(ros_environment: dict[str, str]) -> None:
    context = rclpy.Context()
    rclpy.init(context=context)
    with pytest.raises(ParameterError, match="unknown parameters: heigth"):
        RVMNode("mistaken", parameter_overrides=[Parameter("heigth", value=64)], context=context)
    rclpy.shutdown(context=context)

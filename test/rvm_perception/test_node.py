"""The live node, in its own process, over real DDS."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="ROS is not installed")

from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState  # noqa: E402
from rcl_interfaces.srv import SetParameters  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from sensor_msgs.msg import CompressedImage, Image  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402

from live_node import RELIABLE, Client, NodeProcess, header, image, wait_for  # noqa: E402
from rvm_core import Preprocess, create_engine, load_checkpoint, weights_hash  # noqa: E402
from rvm_core.engines import backends  # noqa: E402
from rvm_perception import feature_map_to_numpy  # noqa: E402
from rvm_perception.msg import FeatureMap  # noqa: E402

WEIGHTS = Path(__file__).parents[1] / "data" / "rvm_tiny_official_format.npz"
HEIGHT, WIDTH = 64, 128
# Reliable, so that not even the first image, sent while both sides are still finding each other, is lost.
COMMON: dict[str, Any] = {"input_reliability": "reliable", "device": "cpu"}
ENGINE: dict[str, Any] = {"backend": "torch", "precision": "fp32", "height": HEIGHT, "width": WIDTH}
NODE: dict[str, Any] = {**COMMON, **ENGINE, "weights": str(WEIGHTS)}

TOLERANCE = 1e-3
"""Largest difference between live features and those computed directly; both are float32 on one machine."""

SHUTDOWN_S = 5.0


class Direct:
    """The same computation without ROS."""

    def __init__(self, backend: str = "torch", precision: str = "fp32") -> None:
        self.model = load_checkpoint(WEIGHTS)
        self.engine = create_engine(
            self.model, backend=backend, precision=precision, image_size=(HEIGHT, WIDTH), device="cpu"
        )
        self.preprocess = Preprocess(height=HEIGHT, width=WIDTH, policy="letterbox")
        self.reset()

    def reset(self) -> None:
        self.state = self.engine.init_state()

    def step(self, frame_bgr: np.ndarray) -> np.ndarray:
        frame = self.preprocess(np.ascontiguousarray(frame_bgr[..., ::-1]))
        features, self.state = self.engine.step(frame[None], self.state)
        return features[0].numpy()

    def assert_equal(self, message: FeatureMap, frame_bgr: np.ndarray) -> None:
        expected = self.step(frame_bgr)
        grid = feature_map_to_numpy(message)
        assert np.abs(grid - expected[1:].reshape(grid.shape)).max() < TOLERANCE
        assert np.abs(np.asarray(message.cls) - expected[0]).max() < TOLERANCE


@pytest.fixture(scope="module")
def node(ros_environment: dict[str, str]) -> Iterator[NodeProcess]:
    with NodeProcess(ros_environment, **NODE) as process:
        yield process


@pytest.fixture
def client(node: NodeProcess) -> Iterator[Client]:
    with Client() as client:
        client.wait_for_node()
        response = client.call(Trigger, "/rvm/reset", Trigger.Request())
        assert response.success, response.message
        yield client


def test_features_equal_those_computed_directly(client: Client, clip: list[np.ndarray]) -> None:
    direct = Direct()
    epochs = set()
    for i, frame in enumerate(clip):
        message = client.exchange(image(frame, i))
        direct.assert_equal(message, frame)
        assert message.header == header(i)
        assert (message.camera, message.model) == ("rvm_camera", "rvm_custom")
        assert message.weights_hash == weights_hash(direct.model)
        assert (message.index, message.skipped) == (i, 0)
        assert (message.rows, message.cols, message.channels) == (HEIGHT // 16, WIDTH // 16, 64)
        assert (message.image_height, message.image_width) == (272, 640)
        expected_map = direct.preprocess.map(272, 640).grid_to_image
        assert np.allclose(np.reshape(message.grid_to_image, (2, 3)), expected_map)
        epochs.add(message.epoch)
    assert len(epochs) == 1


def test_a_flood_drops_frames_and_says_how_many(client: Client, clip: list[np.ndarray]) -> None:
    first = client.exchange(image(clip[0], 0))
    for i in range(1, 200):
        client.publish(image(clip[i % len(clip)], i))
    # The newest frame always wins, so the last one is processed whatever was dropped before it.
    wait_for(lambda: client.features[-1].header == header(199), "features of the last frame")
    direct = Direct()
    received = [message for message in client.features if message.epoch == first.epoch]
    for message in received:
        i = (message.header.stamp.sec - 1000) * 25 + message.header.stamp.nanosec // 40_000_000
        direct.assert_equal(message, clip[i % len(clip)])
    assert [message.index for message in received] == list(range(len(received)))
    values, _ = client.status("rvm: camera rvm_camera", lambda values, _: True)
    assert int(values["received"]) == sum(int(values[name]) for name in ("processed", "dropped", "rejected"))


def test_reset_starts_a_new_epoch(client: Client, clip: list[np.ndarray]) -> None:
    before = [client.exchange(image(frame, i)) for i, frame in enumerate(clip[:3])]
    assert client.call(Trigger, "/rvm/reset", Trigger.Request()).success
    direct = Direct()
    after = client.exchange(image(clip[3], 3))
    direct.assert_equal(after, clip[3])
    assert (after.epoch, after.index) == (before[-1].epoch + 1, 0)


def test_clock_that_jumps_back_starts_a_new_epoch(client: Client, clip: list[np.ndarray]) -> None:
    before = client.exchange(image(clip[0], 100))
    after = client.exchange(image(clip[1], 0))
    assert (after.epoch, after.index) == (before.epoch + 1, 0)


def test_bad_frames_are_survived_and_counted(client: Client, clip: list[np.ndarray], node: NodeProcess) -> None:
    direct = Direct()
    direct.assert_equal(client.exchange(image(clip[0], 0)), clip[0])
    before, _ = client.status("rvm: camera rvm_camera", lambda values, _: True)
    bad = [
        Image(header=header(1), height=4, width=4, encoding="32FC1", step=16, data=bytes(64)),
        Image(header=header(2), height=272, width=640, encoding="rgb8", step=1920, data=bytes(100)),
        Image(header=header(3), height=0, width=0, encoding="rgb8"),
        Image(header=header(4), height=4, width=4, encoding="", step=12, data=bytes(48)),
    ]
    for number, message in enumerate(bad, 1):
        client.publish(message)
        client.status(
            "rvm: camera rvm_camera",
            lambda values, _, n=number: int(values["rejected"]) == int(before["rejected"]) + n,  # type: ignore[misc]
        )
    message = client.exchange(image(clip[5], 5))
    direct.assert_equal(message, clip[5])
    assert (message.index, message.skipped) == (1, len(bad))
    assert "rgb8" in node.output and "bayer_rggb8" in node.output, "a refused encoding is told what is supported"


def test_overlay_is_published_when_someone_listens(client: Client, clip: list[np.ndarray]) -> None:
    overlays: list[Image] = []
    subscription = client.node.create_subscription(Image, "/rvm/overlay", overlays.append, RELIABLE)
    wait_for(lambda: client.node.count_publishers("/rvm/overlay"), "the overlay's publisher")

    def overlay_of(index: int) -> Image | None:
        client.exchange(image(clip[index % len(clip)], index))
        return overlays[-1] if overlays else None

    numbers = iter(range(1000))
    picture = wait_for(lambda: overlay_of(next(numbers)), "an overlay")
    assert picture is not None
    assert (picture.height, picture.width, picture.header.frame_id) == (272, 640, "camera_optical_frame")
    pixels = np.frombuffer(picture.data, np.uint8)
    assert len(pixels) == 272 * 640 * 3 and pixels.std() > 5
    client.node.destroy_subscription(subscription)


def test_parameters_do_not_change_while_configured(client: Client) -> None:
    request = SetParameters.Request(parameters=[Parameter("height", value=32).to_parameter_msg()])
    result = client.call(SetParameters, "/rvm/set_parameters", request).results[0]
    assert not result.successful and "clean the node up first" in result.reason


def test_diagnostics_name_the_engine(client: Client) -> None:
    values, entry = client.status("rvm: engine", lambda values, _: True)
    assert entry.level == DiagnosticStatus.OK
    assert values["weights"] == str(WEIGHTS)
    assert (values["backend"], values["precision"], values["device"]) == ("torch", "fp32", "cpu")


def test_compressed_images(ros_environment: dict[str, str], clip: list[np.ndarray]) -> None:
    direct = Direct()
    parameters = {**NODE, "image_transport": "compressed", "tracking": "none"}
    with (
        NodeProcess(ros_environment, name="compressed", **parameters),
        Client("compressed", topic="/compressed_camera/image/compressed") as client,
    ):
        client.wait_for_node()
        for i, frame in enumerate(clip[:3]):
            data = cv2.imencode(".png", frame)[1].tobytes()
            message = CompressedImage(header=header(i), format="bgr8; png compressed bgr8", data=data)
            direct.assert_equal(client.exchange(message), frame)
        topics = [name for name, _ in client.node.get_topic_names_and_types()]
        assert "/compressed/features" in topics
        assert not [name for name in topics if name.startswith("/compressed/") and "track" in name]


@pytest.mark.parametrize(
    ("backend", "precision"),
    [("torch", "fp32"), ("torch", "bf16"), ("openvino", "fp32"), ("openvino", "bf16"), ("inductor", "bf16")],
)
def test_every_engine_gives_its_own_features(
    ros_environment: dict[str, str], clip: list[np.ndarray], backend: str, precision: str
) -> None:
    missing = backends()[backend].missing()
    if missing:
        pytest.skip(missing)
    direct = Direct(backend, precision)
    parameters = {**NODE, "backend": backend, "precision": precision}
    with NodeProcess(ros_environment, name="engine", **parameters) as process, Client("engine") as client:
        client.wait_for_node()
        for i, frame in enumerate(clip[:8]):
            direct.assert_equal(client.exchange(image(frame, i)), frame)
        values, _ = client.status("engine: engine", lambda values, _: True)
        assert (values["backend"], values["precision"]) == (backend, precision)
        assert f"{backend} on cpu in {precision}" in process.output


def test_two_cameras_have_their_own_states_and_topics(ros_environment: dict[str, str], clip: list[np.ndarray]) -> None:
    parameters = {**NODE, "camera_topics": "['/left/image','/right/image']"}
    with (
        NodeProcess(ros_environment, name="two", **parameters),
        Client("two", topic="/left/image", features="left/features") as left,
        Client("two", topic="/right/image", features="right/features") as right,
    ):
        for client, frames in ((left, clip[:4]), (right, clip[10:14])):
            client.wait_for_node()
            direct = Direct()
            for i, frame in enumerate(frames):
                message = client.exchange(image(frame, i))
                direct.assert_equal(message, frame)
                assert (message.epoch, message.index) == (0, i)
        assert {message.camera for message in left.features} == {"left"}
        assert {message.camera for message in right.features} == {"right"}


def test_random_weights_are_named_everywhere(ros_environment: dict[str, str], clip: list[np.ndarray]) -> None:
    parameters = {**COMMON, "model": "rvm_s16", "height": 32, "width": 32}
    with NodeProcess(ros_environment, name="random", **parameters) as process, Client("random") as client:
        client.wait_for_node()
        assert client.exchange(image(clip[0], 0)).model == "rvm_s16 (random weights)"
        _, entry = client.status("random: engine", lambda values, _: True)
        assert entry.level == DiagnosticStatus.WARN and "random weights" in entry.message
        assert "RANDOM weights" in process.output


def test_silence_is_explained(ros_environment: dict[str, str]) -> None:
    parameters = {**NODE, "stall_timeout": 0.5, "camera_topics": "['/nobody/image']"}
    with NodeProcess(ros_environment, name="silent", **parameters), Client("silent") as client:
        _, entry = client.status("silent: camera nobody", lambda values, entry: entry.level == DiagnosticStatus.WARN)
        assert "no image on /nobody/image" in entry.message and "nothing publishes there" in entry.message


def test_lifecycle_keeps_epochs_growing(ros_environment: dict[str, str], clip: list[np.ndarray]) -> None:
    def change(transition: int) -> None:
        request = ChangeState.Request(transition=Transition(id=transition))
        assert client.call(ChangeState, "/managed/change_state", request).success

    epochs = []
    with NodeProcess(ros_environment, name="managed", autostart=False, **NODE), Client("managed") as client:
        for start in range(2):
            change(Transition.TRANSITION_CONFIGURE)
            for activation in range(2):
                change(Transition.TRANSITION_ACTIVATE)
                client.wait_for_node()
                for i in range(3):
                    message = client.exchange(image(clip[i], i + 100 * activation + 1000 * start))
                    assert message.index == i
                epochs.append(message.epoch)
                change(Transition.TRANSITION_DEACTIVATE)
                wait_for(lambda: client.camera.get_subscription_count() == 0, "the end of the subscription")
            change(Transition.TRANSITION_CLEANUP)
    assert epochs == sorted(set(epochs))


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"weights": "/nowhere/rvm.npz"}, "/nowhere/rvm.npz"),
        ({"heigth": 64}, "unknown parameters: heigth"),
        ({"resize_policy": "zoom"}, "resize_policy must be one of"),
        ({**NODE, "point_head": "/nowhere/head.npz"}, "/nowhere/head.npz"),
        ({"device": "cuda:99"}, "cuda:99"),
    ],
)
def test_a_node_that_cannot_start_says_why(
    ros_environment: dict[str, str], parameters: dict[str, str], expected: str
) -> None:
    with NodeProcess(ros_environment, name="failing", **parameters) as process:
        assert process.process.wait(timeout=60) == 1
        process.wait_for_line(expected)
        assert "Traceback" not in process.output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("phase", ["configuring", "idle", "computing"])
def test_shutdown_is_clean(
    ros_environment: dict[str, str], clip: list[np.ndarray], number: signal.Signals, phase: str
) -> None:
    # Base size at 480x640 steps for about a second or more on a CPU: the signal meets it in the middle.
    parameters = NODE
    if phase == "computing":
        parameters = {**COMMON, **ENGINE, "model": "rvm_b16", "height": 480, "width": 640}
    with NodeProcess(ros_environment, name="stopping", **parameters) as process, Client("stopping") as client:
        if phase == "configuring":
            process.wait_for_line("loading weights")
        else:
            client.wait_for_node()
            client.exchange(image(clip[0], 0))
        if phase == "computing":
            client.publish(image(clip[1], 1))
            client.publish(image(clip[2], 2))
            time.sleep(0.3)
        assert process.stop(number, timeout=SHUTDOWN_S) == 0
        assert "Traceback" not in process.output


def test_a_killed_node_starts_again_at_once(ros_environment: dict[str, str], clip: list[np.ndarray]) -> None:
    with Client("killed") as client:
        for number in range(2):
            start = time.monotonic()
            with NodeProcess(ros_environment, name="killed", **NODE) as process:
                process.wait_for_line("waiting for images")
                ready = time.monotonic() - start
                message = exchange_at_last(client, clip[number])
                assert (message.epoch, message.index) == (0, 0)
                print(f"start {number}: ready after {ready:.2f} s, features after {time.monotonic() - start:.2f} s")
                assert "bad" not in process.output and "lock" not in process.output
                process.process.kill()
                process.process.wait()
            client.features.clear()


def exchange_at_last(client: Client, frame: np.ndarray) -> FeatureMap:
    """The first features of a node: those of frames that were sent before all had found each other may be missing."""
    numbers = iter(range(10_000))

    def received() -> bool:
        client.publish(image(frame, next(numbers)))
        return bool(client.features)

    wait_for(received, "features")
    return client.features[0]

"""Files for robots and desks: containers, service, security policy, layouts. What they name must exist."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile*"))
INSTRUCTIONS = {
    "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "HEALTHCHECK", "RUN", "SHELL", "STOPSIGNAL", "USER", "WORKDIR",
}  # fmt: skip


def instructions(path: Path) -> list[tuple[str, str]]:
    """Name and text of each instruction of a Dockerfile, without comments, lines joined."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(line.partition(" ")[0], line.partition(" ")[2]) for line in joined.splitlines()]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_dockerfiles_are_sound(path: Path) -> None:
    found = instructions(path)
    assert {name for name, _ in found} <= INSTRUCTIONS
    stages = [text.partition(" AS ") for name, text in found if name == "FROM"]
    bases = {base for base, _, _ in stages} - {stage for _, _, stage in stages}
    assert len(bases) == 1 and not any(base.endswith(":latest") or ":" not in base for base in bases)
    runs = [text for name, text in found if name == "RUN"]
    assert all("rm -rf /var/lib/apt/lists/*" in run for run in runs if "apt-get install" in run)
    assert all("--no-install-recommends" in run for run in runs if "apt-get install" in run)
    assert not any(re.search(r"\bsudo\b|\|\s*(ba)?sh\b|http://(?!packages\.ros\.org)", run) for run in runs)
    users = [text for name, text in found if name == "USER"]
    assert users and users[-1] != "root", "the node does not run as root"
    for name, text in found:
        if name == "COPY" and "--from" not in text:
            assert (ROOT / text.split()[0]).exists(), text


def test_versions_in_the_container_are_those_of_the_lock() -> None:
    pinned = "\n".join((ROOT / name).read_text() for name in ("requirements.txt", "Makefile"))
    locked = dict(re.findall(r"^(?:TORCH := )?([a-z0-9-]+)==([0-9a-z.]+)", pinned, re.M))
    for path in DOCKERFILES:
        for name, version in re.findall(r"\b([a-z]+)==([0-9.]+)", path.read_text()):
            assert locked[name] == version, f"{path.name}: {name}"


def test_entrypoint_is_a_sound_script() -> None:
    path = ROOT / "docker" / "entrypoint.sh"
    assert path.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert path.read_text().rstrip().endswith('exec "$@"'), "signals must reach the command"


def test_devcontainer_builds_a_stage_that_is_there() -> None:
    config = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    dockerfile = ROOT / ".devcontainer" / config["build"]["dockerfile"]
    stages = [text.rpartition(" AS ")[2] for name, text in instructions(dockerfile) if name == "FROM"]
    assert config["build"]["target"] in stages
    profile = config["containerEnv"]["FASTDDS_DEFAULT_PROFILES_FILE"]
    assert (ROOT / Path(profile).relative_to(config["workspaceFolder"])).is_file()


def test_service_file() -> None:
    path = ROOT / "config" / "systemd" / "rvm.service"
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(path.read_text().replace("\\\n", " "))
    service = unit["Service"]
    assert service["KillSignal"] == "SIGINT" and service["Restart"] == "on-failure" and service["User"] != "root"
    assert service["CacheDirectoryMode"] == "0700"
    assert "PrivateIPC" not in service
    (executable,) = re.findall(r"exec \S*/lib/(\S+)", service["ExecStart"])
    package, _, name = executable.partition("/")
    assert f"install_executable(lib/${{PROJECT_NAME}} {name} " in (ROOT / "CMakeLists.txt").read_text()
    assert package == "rvm_perception"


def test_systemd_takes_the_service_file(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    path = tmp_path / "rvm.service"
    shutil.copy(ROOT / "config" / "systemd" / "rvm.service", path)
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, timeout=60)
    assert "rvm.service" not in done.stderr, done.stderr


def policy() -> dict[str, set[str]]:
    """Full names of what the node is allowed to publish, subscribe and reply."""
    (profile,) = ElementTree.parse(ROOT / "config" / "sros2" / "policy.xml").iter("profile")
    node = f"/{profile.attrib['node']}"
    allowed: dict[str, set[str]] = {}
    for group in profile:
        assert group.tag in ("topics", "services")
        for permission, value in group.attrib.items():
            assert value == "ALLOW"
            names = [(entry.text or "").strip() for entry in group]
            assert len(names) == len(set(names)) and names == sorted(names)
            allowed[permission] = {re.sub("^~", node, name) for name in names}
    return allowed


def layout_topics() -> Iterator[tuple[str, str]]:
    """Topics and services of the layouts, and where they stand."""
    text = (ROOT / "config" / "foxglove" / "rvm.json").read_text()
    panels = json.loads(text)["configById"]
    for name, panel in panels.items():
        found = [panel.get(key) for key in ("topicToRender", "topicPath", "topicName", "serviceName")]
        found += [panel.get("imageMode", {}).get("imageTopic")]
        found += [path["value"].partition(".")[0] for path in panel.get("paths", [])]
        assert any(found), f"{name} shows nothing"
        yield from ((topic, name) for topic in found if topic)
    rviz = yaml.safe_load((ROOT / "config" / "rviz" / "rvm.rviz").read_text())
    for display in rviz["Visualization Manager"]["Displays"]:
        yield display["Topic"]["Value"], display["Name"]


def test_foxglove_layout_shows_each_panel_once() -> None:
    layout = json.loads((ROOT / "config" / "foxglove" / "rvm.json").read_text())

    def panels(part: Any) -> list[str]:
        return [part] if isinstance(part, str) else panels(part["first"]) + panels(part["second"])

    assert sorted(panels(layout["layout"])) == sorted(layout["configById"])


def test_foxglove_paths_are_fields_of_our_messages() -> None:
    panels = json.loads((ROOT / "config" / "foxglove" / "rvm.json").read_text())["configById"]
    messages = {"features": "FeatureMap", "point_tracks": "PointTracks", "box_tracks": "BoxTracks"}
    paths = [path["value"] for panel in panels.values() for path in panel.get("paths", [])]
    assert paths
    for path in paths:
        topic, _, field = path.partition(".")
        definition = (ROOT / "msg" / f"{messages[topic.rpartition('/')[2]]}.msg").read_text()
        assert re.search(rf"\s{field.partition('[')[0]}\b", definition), path
    query = json.loads(panels["Publish!rvmQueries"]["value"])
    definition = (ROOT / "msg" / "TrackQueries.msg").read_text()
    assert all(re.search(rf"\] {field}\b", definition) for field in query)


def test_layouts_name_what_the_policy_allows() -> None:
    allowed = set().union(*policy().values())
    assert [(topic, place) for topic, place in layout_topics() if topic not in allowed] == []

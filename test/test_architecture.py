"""The import arrows between the three packages, the calls that no code may make, and the packaging that goes with them.

Everything is read from the sources with `ast`, so that it also holds for code no other test runs.
"""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("rvm_core", "rvm_perception", "rvm_training")

FORBIDDEN_IMPORTS = {
    "rvm_core": {"rvm_perception", "rvm_training", "rclpy", "launch", "launch_ros", "jax", "torchax", "optax"},
    "rvm_perception": {"rvm_training", "jax", "torchax", "optax"},
    "rvm_training": {"rvm_perception", "rclpy", "launch", "launch_ros"},
}
"""Top-level modules that a package may not import, anywhere. Messages (*_msgs, *_srvs) are of ROS as well."""
WITHOUT_ROS = {"rvm_core", "rvm_training"}

OPTIONAL_RUNTIMES = {"openvino", "tensorrt", "tensorrt_rtx", "onnxruntime"}
"""Each is imported by at most one file, one of rvm_core/engines. torch is no option: the model is made of it."""

FORBIDDEN_CALLS = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "torch.load", "torch.jit.load", "torch.hub.load",
    "joblib.load", "pandas.read_pickle", "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "eval",
    "exec", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "tempfile.mktemp",
    "shutil.unpack_archive", "ssl._create_unverified_context",
}  # fmt: skip
"""Calls that run what a file says, hand text to a shell, use a temporary name that another process may take first, or
trust any server."""
FORBIDDEN_METHODS = {"extractall", "extract", "unsafe_load"}
"""Of archives, which would choose the paths that are written, and of parsers. Their members are read one by one."""
FORBIDDEN_KEYWORDS = ("allow_pickle", "shell", "trust_remote_code")
"""May only be False, in any call."""
FORBIDDEN_MODULES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "telnetlib", "ftplib"}
"""No code of ours has a use for them."""

IMPORT_FUNCTIONS = ("import_module", "importlib.import_module", "__import__")

HEAVY_MODULES = ("rclpy", "torch", "cv2")


def imported_modules(source: str, package: str = "") -> Iterator[str]:
    """Dotted names of all modules a source imports, wherever the import stands; relative ones resolved in `package`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in IMPORT_FUNCTIONS and node.args:
            if isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)


def arrow_violations(source: str, package: str) -> set[str]:
    """Top-level modules which this source of `package` (dotted, its first part decides) imports but may not."""
    owner = package.split(".")[0]
    tops = top_level_imports(source, package)
    interfaces = {top for top in tops if top.endswith(("_msgs", "_srvs", "_interfaces"))}
    return tops & FORBIDDEN_IMPORTS[owner] | (interfaces if owner in WITHOUT_ROS else set())


def top_level_imports(source: str, package: str) -> set[str]:
    return {name.split(".")[0] for name in imported_modules(source, package)}


def runtime_violations(files: Mapping[str, str]) -> set[str]:
    """Optional runtimes imported by several files or outside rvm_core/engines; `files` gives the source by its path."""
    importers: dict[str, list[str]] = {}
    for path, source in files.items():
        for runtime in top_level_imports(source, path.rpartition("/")[0].replace("/", ".")) & OPTIONAL_RUNTIMES:
            importers.setdefault(runtime, []).append(path)
    return {
        runtime
        for runtime, paths in importers.items()
        if len(paths) > 1 or not paths[0].startswith("rvm_core/engines/")
    }


def call_violations(source: str) -> set[str]:
    """Forbidden calls in a source, also when the function was imported or its module renamed."""
    tree = ast.parse(source)
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        head, _, rest = ast.unparse(node.func).partition(".")
        name = ".".join(filter(None, [aliases.get(head, head), rest])).removeprefix("builtins.")
        if name in FORBIDDEN_CALLS:
            found.add(name)
        if isinstance(node.func, ast.Attribute) and node.func.attr in FORBIDDEN_METHODS:
            found.add(node.func.attr)
        found |= {k.arg for k in node.keywords if k.arg in FORBIDDEN_KEYWORDS and not is_false(k.value)}
        found |= {"verify" for k in node.keywords if k.arg == "verify" and is_false(k.value)}
    return found | {module.split(".")[0] for module in imported_modules(source)} & FORBIDDEN_MODULES


def is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def package_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).parts[:-1])


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", sources(*PACKAGES), ids=relative)
def test_imports_follow_the_arrows(path: Path) -> None:
    assert not arrow_violations(path.read_text(), package_of(path))


@pytest.mark.parametrize("path", sources(*PACKAGES, "launch"), ids=relative)
def test_no_code_runs_what_a_file_says(path: Path) -> None:
    assert not call_violations(path.read_text())


def test_each_runtime_is_imported_by_one_engine_only() -> None:
    assert not runtime_violations({relative(path): path.read_text() for path in sources(*PACKAGES)})


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"rvm_core/engines/a.py": "import openvino", "rvm_core/engines/b.py": "import openvino as ov"}, {"openvino"}),
        ({"rvm_core/model.py": "def f():\n    import tensorrt"}, {"tensorrt"}),
        ({"rvm_perception/node.py": "from onnxruntime import InferenceSession"}, {"onnxruntime"}),
        ({"rvm_core/engines/a.py": "import openvino", "rvm_core/engines/b.py": "import tensorrt"}, set()),
    ],
)
def test_planted_runtimes_are_found(files: dict[str, str], expected: set[str]) -> None:
    assert runtime_violations(files) == expected


@pytest.mark.parametrize(
    ("package", "source", "expected"),
    [
        ("rvm_core", "import rclpy", {"rclpy"}),
        ("rvm_core", "import rclpy.node as n", {"rclpy"}),
        ("rvm_core", "def f():\n    from sensor_msgs.msg import Image", {"sensor_msgs"}),
        ("rvm_core", "from std_srvs.srv import Trigger", {"std_srvs"}),
        ("rvm_core.engines", "from rvm_perception.node import RVMNode", {"rvm_perception"}),
        ("rvm_core", "from importlib import import_module\nimport_module('rvm_training.data')", {"rvm_training"}),
        ("rvm_core", "try:\n    import jax.numpy as jnp\nexcept ImportError:\n    jnp = None", {"jax"}),
        ("rvm_core", "import torchax", {"torchax"}),
        ("rvm_perception", "import rvm_training", {"rvm_training"}),
        ("rvm_perception", "from jax import jit", {"jax"}),
        ("rvm_training.data", "import rclpy", {"rclpy"}),
        ("rvm_training", "from rvm_perception import feature_map_to_numpy", {"rvm_perception"}),
        ("rvm_core.engines", "import torch\nfrom . import base\nfrom ..model import RVM", set()),
        ("rvm_perception", "import rclpy\nfrom sensor_msgs.msg import Image\nimport rvm_core", set()),
        ("rvm_training", "import jax, torchax\nimport rvm_core.model", set()),
    ],
)
def test_planted_imports_are_found(package: str, source: str, expected: set[str]) -> None:
    assert arrow_violations(source, package) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import pickle\npickle.load(f)", {"pickle", "pickle.load"}),
        ("import pickle as p\np.loads(b)", {"pickle", "pickle.loads"}),
        ("from pickle import loads as read\nread(b)", {"pickle", "pickle.loads"}),
        ("from importlib import import_module\nimport_module('marshal')", {"marshal"}),
        ("import shelve", {"shelve"}),
        ("import numpy as np\nnp.load(f, allow_pickle=True)", {"allow_pickle"}),
        ("import numpy as np\nnp.load(f, allow_pickle=flag)", {"allow_pickle"}),
        ("import torch\ntorch.load(f, weights_only=True)", {"torch.load"}),
        ("from torch import load\nload(f)", {"torch.load"}),
        ("import yaml\nyaml.load(f, Loader=yaml.SafeLoader)", {"yaml.load"}),
        ("eval('1')", {"eval"}),
        ("import builtins\nbuiltins.eval('1')", {"eval"}),
        ("exec('x = 1')", {"exec"}),
        ("import yaml\nyaml.unsafe_load(f)", {"yaml.unsafe_load", "unsafe_load"}),
        ("import torch\ntorch.jit.load(f)", {"torch.jit.load"}),
        ("import subprocess as s\ns.run(command, shell=True)", {"shell"}),
        ("import subprocess\nsubprocess.run(command, shell=flag)", {"shell"}),
        ("import os\nos.system(command)", {"os.system"}),
        ("from tempfile import mktemp\nmktemp()", {"tempfile.mktemp"}),
        ("import zipfile\nzipfile.ZipFile(f).extractall(folder)", {"extractall"}),
        ("import tarfile\narchive.extract(member)", {"extract"}),
        ("import shutil\nshutil.unpack_archive(f)", {"shutil.unpack_archive"}),
        ("import requests\nrequests.get(url, verify=False)", {"verify"}),
        ("from m import Auto\nAuto.from_pretrained(n, trust_remote_code=True)", {"trust_remote_code"}),
        ("import subprocess\nsubprocess.run(command, shell=False)", set()),
        ("import yaml\nyaml.safe_load(f)", set()),
        ("import numpy as np\nnp.load(f, allow_pickle=False)", set()),
        ("model.eval()  # eval( in a comment, and a method\n'torch.load('", set()),
    ],
)
def test_planted_calls_are_found(source: str, expected: set[str]) -> None:
    assert call_violations(source) == expected


def heavy_after(statement: str) -> str:
    """Which of the heavy modules a fresh interpreter has loaded after a statement, comma-separated."""
    code = f"{statement}; import sys; print(','.join(m for m in {HEAVY_MODULES} if m in sys.modules))"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout.strip()


def test_importing_rvm_perception_is_light() -> None:
    assert heavy_after("import rvm_perception; rvm_perception.feature_map_to_numpy") == ""


def test_a_heavy_import_would_be_noticed() -> None:
    assert heavy_after("import cv2") == "cv2"


def test_entry_points_name_existing_functions() -> None:
    entry_points = configparser.ConfigParser()
    entry_points.read(ROOT / "entry_points.txt")
    values = [value for section in entry_points.sections() for value in entry_points[section].values()]
    assert len(values) >= 3
    for value in values:
        module, function = value.split(":")
        tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, value


def test_versions_agree() -> None:
    in_ros = ElementTree.parse(ROOT / "package.xml").findtext("version")
    in_python = [line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("version = ")]
    assert in_python == [f'version = "{in_ros}"']


def test_lock_covers_the_direct_dependencies() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML reader")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    direct = {normalized(line) for line in [*project["dependencies"], *extras["ros"], *extras["demo"], *extras["test"]]}
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^TORCH := torch==[0-9.]+$", makefile, re.M)
    assert direct - locked().keys() - {"torch"} == set(), "run `make lock`"


def locked() -> dict[str, tuple[str, int]]:
    """Version and number of hashes of each package of the lock file."""
    found: dict[str, tuple[str, int]] = {}
    for block in re.split(r"\n(?=[a-z0-9])", (ROOT / "requirements.txt").read_text()):
        first = re.match(r"([a-z0-9-]+)==([0-9a-z.]+)( \\\n|$)", block)
        if first:
            found[first[1]] = (first[2], len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", block)))
        else:
            assert all(line.lstrip().startswith("#") for line in block.splitlines()), block
    return found


def test_everything_in_the_lock_has_hashes() -> None:
    assert len(locked()) > 100
    assert [name for name, (_, hashes) in locked().items() if hashes == 0] == []
    assert "--require-hashes --no-deps --no-build-isolation -r requirements.txt" in (ROOT / "Makefile").read_text()


def normalized(requirement: str) -> str:
    """The name of a requirement as PyPI normalizes it."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match[0]).lower()


def test_every_message_is_generated() -> None:
    cmake = (ROOT / "CMakeLists.txt").read_text()
    messages = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "msg").glob("*.msg"))
    assert messages
    assert [message for message in messages if message not in cmake] == []

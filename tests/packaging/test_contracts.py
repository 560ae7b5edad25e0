"""The checks of the tree's own rules pass on the tree, and fail on a tree that breaks a rule."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.conftest import ROOT

pytestmark = pytest.mark.packaging


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy that a test may break."""
    ignored = shutil.ignore_patterns("__pycache__")
    for folder in ("cascade", "cloud", "edge", "proto", "scripts"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def check(tree: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a check in a tree."""
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=tree)


def lint_imports(tree: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter in a tree."""
    tool = Path(sys.executable).with_name("lint-imports")
    return check(tree, str(tool), "--no-cache")


def test_the_import_contracts_hold(tree: Path) -> None:
    done = lint_imports(tree)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("cascade/errors.py", "import edge", "cloud uses edge, edge uses cascade"),
        ("cascade/errors.py", "import cloud", "cloud uses edge, edge uses cascade"),
        ("edge/bundle.py", "import cloud", "cloud uses edge, edge uses cascade"),
        ("edge/bundle.py", "import cascade.cli", "nothing below the command line imports it"),
        ("edge/bundle.py", "from cascade.v1 import inference_pb2", "only cascade.wire touches"),
        ("cloud/__init__.py", "import cascade.v1.inference_pb2", "only cascade.wire touches"),
        (
            "edge/build/graph.py",
            "import torch",
            "only edge.build.export and one",
        ),
        ("cloud/__init__.py", "import transformers", "only edge.build.export and one"),
        ("cloud/engines/onnx.py", "import torch", "only edge.build.export and one"),
        ("cloud/tier.py", "import cloud.engines.transformers", "the engine on torch is loaded"),
        ("edge/bundle.py", "import ray.serve", "only cloud touches ray"),
        ("cascade/home.py", "import xllamacpp", "only cloud touches ray"),
    ],
)
def test_a_forbidden_import_is_found(tree: Path, file: str, line: str, contract: str) -> None:
    with (tree / file).open("a") as source:
        source.write(f"\n{line}\n")
    done = lint_imports(tree)
    assert done.returncode == 1, done.stdout
    assert re.search(rf"^{re.escape(contract)}.* BROKEN", done.stdout, re.MULTILINE), done.stdout


def test_the_stubs_are_what_the_proto_files_say(tree: Path) -> None:
    script = (sys.executable, "scripts/generate_stubs.py", "--check")
    assert check(tree, *script).returncode == 0

    proto = tree / "proto/cascade/v1/inference.proto"
    proto.write_text(proto.read_text() + "\n// A message of the test.\nmessage Extra {}\n")
    done = check(tree, *script)
    assert done.returncode == 1
    assert "inference_pb2.py is not what proto/ says: run `make stubs`" in done.stderr


def test_the_stubs_import_without_a_warning() -> None:
    code = "import cascade.v1.artifact_pb2_grpc, cascade.v1.inference_pb2_grpc"
    done = check(ROOT, sys.executable, "-W", "error", "-c", code)
    assert done.returncode == 0, done.stderr

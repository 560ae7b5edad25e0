"""Makes .venv (and node_modules) hold what pyproject.toml (and package-lock.json) say, once.

    python3 scripts/environment.py bundle,tune,cloud     the virtual environment with these extras
    python3 scripts/environment.py --node                the node tools
    python3 scripts/environment.py --browser             a Chromium for the tests of pages

The install is editable: a changed source file needs no second install. A stamp keyed on the
dependencies makes the next call return at once. Standard library only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import browser_names
import phase

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "installed.json"
NODE_STAMP = ROOT / "node_modules" / ".installed"
MIN_PYTHON = (3, 11)
MIN_NODE = 18


def main() -> int:
    """Bring the environment up to date. Returns the exit code."""
    parser = argparse.ArgumentParser(description="install what the Makefile's targets need")
    parser.add_argument("extras", nargs="?", default="", help="extras, separated by commas")
    parser.add_argument("--node", action="store_true", help="the node tools instead")
    parser.add_argument("--browser", action="store_true", help="a Chromium instead")
    arguments = parser.parse_args()
    if arguments.node:
        return _node()
    if arguments.browser:
        return _browser()
    return _python(frozenset(filter(None, arguments.extras.split(","))))


def _python(extras: frozenset[str]) -> int:
    if sys.version_info < MIN_PYTHON:
        return _missing(f"Python 3.11 or newer (this is {sys.version.split()[0]})")
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return _missing("Python's venv module (on Debian and Ubuntu: apt install python3-venv)")
    python = VENV / "bin" / "python"
    key = _install_key()
    installed = _installed(key) if python.exists() else frozenset[str]()
    if extras <= installed:
        return 0
    if not _has_pip(python):
        code = phase.run("create .venv", [sys.executable, "-m", "venv", str(VENV)])
        if code:
            return code
    wanted = ",".join(sorted(extras | installed))
    # Without the stamp an interrupted install is repeated, which is quick and safe.
    STAMP.unlink(missing_ok=True)
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check"]
    code = phase.run(f"install .[{wanted}]", [*command, "--editable", f".[{wanted}]"], cwd=ROOT)
    if code == 0:
        STAMP.write_text(json.dumps({"key": key, "extras": sorted(extras | installed)}))
    return code


def _installed(key: str) -> frozenset[str]:
    """Extras that are in .venv for this pyproject.toml; ``all`` stands for what it contains."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return frozenset()
    if stamp.get("key") != key:
        return frozenset()
    extras = frozenset(stamp["extras"])
    return extras | {"bundle", "build", "cloud", "tune"} if "all" in extras else extras


def _has_pip(python: Path) -> bool:
    if not python.exists():
        return False
    probe = subprocess.run([python, "-c", "import pip"], check=False, capture_output=True)
    return probe.returncode == 0


def _node() -> int:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return _missing(f"Node {MIN_NODE} or newer with npm (for checks of proto/ and a test)")
    version = subprocess.check_output([node, "--version"], text=True).strip()
    if int(version.lstrip("v").split(".")[0]) < MIN_NODE:
        return _missing(f"Node {MIN_NODE} or newer (this is {version})")
    key = hashlib.sha256((ROOT / "package-lock.json").read_bytes()).hexdigest()
    if NODE_STAMP.exists() and NODE_STAMP.read_text() == key:
        return 0
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    code = phase.run("install node tools", command, cwd=ROOT)
    if code == 0:
        NODE_STAMP.write_text(key)
    return code


def _browser() -> int:
    """A browser is a package of the system. It is installed where nobody need be asked: as root on
    Debian, e.g. in a container. Elsewhere it is named."""
    named = os.environ.get("CHROMIUM")
    if named:
        return 0 if shutil.which(named) else _missing(f"CHROMIUM={named} (it is no program)")
    if any(map(shutil.which, browser_names.NAMES)):
        return 0
    if os.geteuid() == 0 and _is_debian() and shutil.which("apt-get"):
        install = ["apt-get", "install", "--yes", "--no-install-recommends", "chromium"]
        os.environ["DEBIAN_FRONTEND"] = "noninteractive"
        # An update that fails in part (one mirror of several) may still be enough.
        phase.run("update the lists of packages", ["apt-get", "update"])
        return phase.run("install chromium", install)
    return _missing(
        "Chromium or Chrome, for the tests of pages (on Debian: apt install chromium; elsewhere "
        "install one, and let CHROMIUM name its program)"
    )


def _is_debian() -> bool:
    """Debian itself: Ubuntu's package of that name is a stub that needs snapd."""
    try:
        return "\nID=debian\n" in "\n" + Path("/etc/os-release").read_text(encoding="utf-8")
    except OSError:
        return False


def _install_key() -> str:
    """Digest of what an install depends on; a changed lint rule is no reason for another one."""
    import tomllib  # not at the top: the message about an old Python comes first

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    parts = (project["build-system"], project["project"], project["tool"]["hatch"])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _missing(what: str) -> int:
    print(f"missing: {what}; CONTRIBUTING.md lists what is needed", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

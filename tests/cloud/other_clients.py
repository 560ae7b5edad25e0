"""gRPC clients that are not ours, used as docs/cluster.md says: Node's, and buf's curl."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import cloud
from cascade.wire import ClientProfile

ROOT = Path(cloud.__file__).parent.parent
MODULES = ROOT / "node_modules"


def by_node(profile: ClientProfile, folder: Path) -> tuple[list[str], list[dict[str, object]]]:
    """Run the page's program: the services that reflection tells, and the events of one answer."""
    page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```js\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (folder / "ask.js").write_text(program, encoding="utf-8")
    profile.save(folder / "client.json")
    services, *events = _output(["node", "ask.js"], folder).splitlines()
    return services.split(), [json.loads(event) for event in events]


def by_buf(profile: ClientProfile, folder: Path, method: str = "", data: str = "") -> str:
    """What ``buf curl`` prints: of a method, or without one the list of services."""
    (folder / "ca.pem").write_bytes(profile.ca_pem or b"")
    command = [str(MODULES / ".bin" / "buf"), "curl", "--protocol", "grpc", "--timeout", "60s"]
    command += ["--cacert", "ca.pem", "--header", f"x-api-key: {profile.api_key}"]
    command += ["--reflect-header", "*", *(["--data", data] if data else ["--list-services"])]
    return _output([*command, f"https://{profile.address}{method and f'/{method}'}"], folder)


def _output(command: list[str], folder: Path) -> str:
    assert MODULES.exists(), "the node tools are missing: make lint installs them"
    environment = {**os.environ, "NODE_PATH": str(MODULES)}
    done = subprocess.run(
        command, cwd=folder, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout

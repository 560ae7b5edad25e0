"""Generates the stubs of proto/ with the one compiler version whose stubs import everywhere.

    python scripts/generate_stubs.py           write the stubs
    python scripts/generate_stubs.py --check   exit 1 if they differ from what is there

grpcio-tools 1.76 writes gencode 6.31.1, which protobuf 6.31 to 7.x accepts without a warning.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib import metadata, resources
from pathlib import Path

REQUIRED = "1.76"
ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
PACKAGES = (Path("cascade/v1"), Path("cascade/federation/v1alpha1"))


def main() -> int:
    """Write or check. Returns the exit code."""
    parser = argparse.ArgumentParser(description="generate the stubs of proto/")
    parser.add_argument("--check", action="store_true", help="only compare with what is there")
    check: bool = parser.parse_args().check
    problem = _wrong_compiler()
    if problem:
        print(problem, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        fresh = _compile(Path(scratch))
    committed = {
        package / path.name: path.read_bytes()
        for package in PACKAGES
        for pattern in ("*_pb2.py", "*_pb2.pyi", "*_pb2_grpc.py")
        for path in (ROOT / package).glob(pattern)
    }
    changed = sorted(
        name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name)
    )
    if check:
        for name in changed:
            print(f"{name} is not what proto/ says: run `make stubs`", file=sys.stderr)
        return 1 if changed else 0
    for name in changed:
        if name in fresh:
            (ROOT / name).write_bytes(fresh[name])
        else:
            (ROOT / name).unlink()
    print(f"{len(fresh)} files, {len(changed)} changed")
    return 0


def _wrong_compiler() -> str | None:
    """One line on what to install, or None."""
    try:
        version = metadata.version("grpcio-tools")
    except metadata.PackageNotFoundError:
        version = "missing"
    if version.startswith(f"{REQUIRED}."):
        return None
    return f"grpcio-tools is {version}: pip install 'grpcio-tools=={REQUIRED}.*'"


def _compile(scratch: Path) -> dict[Path, bytes]:
    """Every generated file, by its path in the project."""
    from grpc_tools import protoc

    sources = sorted(
        str(path) for package in PACKAGES for path in (PROTO / package).glob("*.proto")
    )
    well_known = str(resources.files("grpc_tools") / "_proto")
    arguments = [
        "protoc",
        f"--proto_path={PROTO}",
        f"--proto_path={well_known}",
        f"--python_out={scratch}",
        f"--pyi_out={scratch}",
        f"--grpc_python_out={scratch}",
        *sources,
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed: see the lines above")
    return {
        package / path.name: path.read_bytes()
        for package in PACKAGES
        for path in (scratch / package).iterdir()
    }


if __name__ == "__main__":
    sys.exit(main())

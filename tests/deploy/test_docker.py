"""Dockerfiles and the Compose file: linted, and true to the repository and the command line."""

from __future__ import annotations

import fnmatch
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml

from cascade.cli import parse
from cloud.config import load_config
from tests.deploy.manifests import DEPLOY, ROOT, tool

DOCKERFILES = sorted((DEPLOY / "docker").glob("*.Dockerfile"))
COMPOSE = DEPLOY / "compose.yaml"


def instructions(file: Path) -> list[tuple[str, str]]:
    """Instruction and arguments, continuation lines joined."""
    lines = [line for line in file.read_text().splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in text.splitlines())]


def last_stage(file: Path) -> list[tuple[str, str]]:
    """The instructions that make the image."""
    found = instructions(file)
    start = max(place for place, (word, _) in enumerate(found) if word == "FROM")
    return found[start:]


def named(file: Path) -> str:
    return file.stem


def test_there_is_one_for_gateway_and_tiers_with_and_without_vllm_for_gpus_and_for_devices() -> (
    None
):
    assert [file.stem for file in DOCKERFILES] == ["cluster", "device", "gpu", "vllm"]


@pytest.mark.parametrize("file", DOCKERFILES, ids=named)
def test_the_linter_finds_nothing(file: Path) -> None:
    command = [tool("hadolint"), "--no-color", str(file)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_the_linter_would_find_something(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM python:latest\nRUN apt-get install gcc\n")
    done = subprocess.run([tool("hadolint"), str(bad)], check=False, capture_output=True, text=True)
    assert done.returncode != 0
    assert "DL3007" in done.stdout


@pytest.mark.parametrize("file", DOCKERFILES, ids=named)
def test_the_base_is_a_full_version_that_a_digest_can_pin(file: Path) -> None:
    found = instructions(file)
    tags = dict(rest.split("=", 1) for word, rest in found if word == "ARG" and "=" in rest)
    assert re.fullmatch(r"3\.\d+\.\d+-slim-[a-z]+", tags["PYTHON_TAG"])
    assert tags["PYTHON_DIGEST"] == ""
    for base in (rest for word, rest in found if word == "FROM"):
        assert base.split(" ")[0] == "python:${PYTHON_TAG}${PYTHON_DIGEST}"


@pytest.mark.parametrize("file", DOCKERFILES, ids=named)
def test_the_image_is_not_run_as_root_and_says_whether_it_is_well(file: Path) -> None:
    stage = last_stage(file)
    (user,) = (rest for word, rest in stage if word == "USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert [word for word, _ in stage].count("HEALTHCHECK") == 1
    after = [word for word, _ in stage[[word for word, _ in stage].index("USER") :]]
    assert "RUN" not in after


@pytest.mark.parametrize("file", DOCKERFILES, ids=named)
def test_nothing_is_installed_into_the_image_but_what_was_built_before(file: Path) -> None:
    runs = " ".join(rest for word, rest in last_stage(file) if word == "RUN")
    assert "pip install" not in runs
    # Triton compiles when vLLM starts; the files say so.
    assert ("apt-get install" in runs) == (file.stem in ("gpu", "vllm"))


def context(file: Path) -> Path:
    """The folder that an image is built from."""
    return DEPLOY / "docker" if file.stem == "gpu" else ROOT


@pytest.mark.parametrize("file", DOCKERFILES, ids=named)
def test_what_is_copied_is_there_and_is_sent_to_the_builder(file: Path) -> None:
    sources = [
        source
        for word, rest in instructions(file)
        if word == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    ]
    assert sources
    kept = [
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    ]
    for source in sources:
        assert (context(file) / source).exists(), source
        if context(file) == ROOT:
            assert any(fnmatch.fnmatch(source, pattern) for pattern in kept), source


def test_the_clusters_images_install_extras_that_there_are() -> None:
    declared = (ROOT / "pyproject.toml").read_text()
    defaults = [
        rest.partition("=")[2]
        for name in ("cluster", "vllm")
        for word, rest in instructions(DEPLOY / "docker" / f"{name}.Dockerfile")
        if word == "ARG" and rest.startswith("EXTRAS")
    ]
    assert ["vllm" in default.split(",") for default in defaults] == [False, True]
    asked = compose()["services"]["cluster"]["build"]["args"]["EXTRAS"]
    for extra in {*",".join(defaults).split(","), *asked.split(",")}:
        assert re.search(rf"^{extra} = \[", declared, re.MULTILINE), extra


def compose() -> dict[str, Any]:
    """The Compose file as plain data."""
    content: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return content


def test_the_compose_file_keeps_the_specification() -> None:
    # The parser knows no merge keys, which Compose does; PyYAML has merged them here.
    parsed = compose_spec.PyCompose.from_yaml(yaml.safe_dump(compose(), sort_keys=False))
    parsed.validate()
    assert set(parsed.service_names()) == {
        "cluster",
        "publisher",
        "device",
        "prometheus",
        "grafana",
    }


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("hostname:", "hostnam:"), ("condition: service_healthy", "condition: healthy")],
)
def test_a_mistake_in_the_compose_file_does_not_pass(right: str, wrong: str) -> None:
    text = yaml.safe_dump(compose(), sort_keys=False)
    assert right in text
    with pytest.raises(ValueError, match=r".+"):
        compose_spec.PyCompose.from_yaml(text.replace(right, wrong)).validate()


def test_only_this_machine_reaches_what_compose_starts() -> None:
    published = [port for each in compose()["services"].values() for port in each.get("ports", ())]
    assert len(published) == 3
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_the_cluster_alone_starts_without_a_profile() -> None:
    plain = [name for name, each in compose()["services"].items() if "profiles" not in each]
    assert plain == ["cluster"]


def test_files_that_compose_names_are_there() -> None:
    content = compose()
    names = [each["file"] for each in content["configs"].values()]
    for service in content["services"].values():
        if "build" in service:
            names.append(f"{service['build']['context']}/{service['build']['dockerfile']}")
        names += [
            volume.split(":")[0] for volume in service.get("volumes", ()) if volume[:1] == "."
        ]
    assert len(names) >= 6
    for name in names:
        assert (DEPLOY / name).exists(), name


def test_images_that_are_not_ours_have_full_versions() -> None:
    for name, service in compose()["services"].items():
        _, _, tag = service["image"].partition(":")
        assert tag == "dev" or re.fullmatch(r"v?\d+\.\d+\.\d+", tag), name


def test_the_clusters_configuration_is_the_one_that_compose_publishes() -> None:
    config = load_config(DEPLOY / "compose" / "cluster.yaml")
    service = compose()["services"]["cluster"]
    assert service["ports"] == [f"127.0.0.1:{config.gateway.port}:{config.gateway.port}"]
    assert any(str(config.gateway.registry) in volume for volume in service["volumes"])


def test_the_commands_in_compose_exist() -> None:
    said = list(cascade_commands())
    assert len(said) == 5
    for words in said:
        parse(words)


def cascade_commands() -> Iterator[list[str]]:
    """The words after ``cascade`` in every command of the Compose file."""
    for service in compose()["services"].values():
        command = service.get("command", ())
        if command[:1] == ["cascade"]:
            yield command[1:]
        elif service.get("entrypoint") == ["/bin/sh", "-ec"]:
            for line in command[0].replace("\\\n", " ").splitlines():
                for part in re.split(r"\|\||&&", line):
                    words = shlex.split(part)
                    if words[:1] == ["cascade"]:
                        yield words[1:]

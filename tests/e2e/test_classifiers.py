"""A text model and a classifier in one real cluster; a device that classifies; by command line."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from cascade import home
from cascade.cli import main
from edge.build import rescaling
from tests.digits import LABELS, digits, quantised, trained

pytestmark = [pytest.mark.models, pytest.mark.processes]

CONFIG = """
gateway: {{port: {port}}}
tiers:
  - name: text
    model: qwen2.5-coder-0.5b-instruct-q4_k_m
    context_tokens: 512
    parallel: 1
  - name: digits
    engine: onnx_classifier
    model: digits-large
"""


@pytest.fixture(scope="module")
def machine(model_path: Callable[[str], Path]) -> Iterator[Path]:
    """CASCADE_HOME of this module, with the text model in place and no bundle yet."""
    with pytest.MonkeyPatch.context() as patch:
        path = Path(tempfile.mkdtemp(prefix="cascade-home-"))
        patch.setenv("CASCADE_HOME", str(path))
        home.models_dir().mkdir(parents=True)
        text = model_path("qwen2.5-coder-0.5b-instruct-q4_k_m")
        (home.models_dir() / text.name).symlink_to(text)
        yield path
        shutil.rmtree(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a developer has: two models, a preprocessor, labels, an image."""
    folder = tmp_path_factory.mktemp("files")
    onnx.save(quantised(trained(8)), folder / "digits-small.onnx")
    onnx.save(trained(128), folder / "digits-large.onnx")
    pixels = rescaling("pixels", "uint8", (8, 8), scale=1 / 16, reshape=(64,))
    onnx.save(pixels, folder / "pixels.onnx")
    (folder / "labels.txt").write_text("\n".join(LABELS) + "\n")
    np.save(folder / "image.npy", digits().images[0])
    np.save(folder / "wide.npy", np.zeros((8, 9), np.uint8))
    return folder


@pytest.fixture(scope="module")
def built(cascade, files):
    """Both bundles, built by the command line."""
    for name in ("digits-small", "digits-large"):
        done = cascade(
            *("bundle", "build", "--classifier", str(files / f"{name}.onnx")),
            *("--labels", str(files / "labels.txt")),
            *("--preprocessor", str(files / "pixels.onnx")),
        )
        assert done.returncode == 0, done.stderr
        assert "signed and pinned as this-machine" in done.stdout
    return files


@pytest.fixture(scope="module")
def cluster(cascade, built, port) -> Iterator[None]:
    config = built / "cluster.yaml"
    config.write_text(CONFIG.format(port=port))
    try:
        done = cascade("cluster", "up", "--config", str(config), "--detach")
        assert done.returncode == 0, done.stderr
        yield
    finally:
        cascade("cluster", "down")


def classify(cascade, files, *words, image="image.npy"):
    given = f"pixels={files / image}"
    return cascade("classify", given, "--bundle", "digits-small", *words)


def test_a_classifier_bundle_says_what_it_takes(cascade, built):
    shown = json.loads(cascade("bundle", "inspect", "digits-small", "--json").stdout)
    assert (shown["kind"], shown["quantisation"]) == ("classifier", "int8")
    assert shown["classifier"]["inputs"] == [
        {"name": "pixels", "dtype": "uint8", "shape": ["batch", 8, 8]}
    ]
    assert shown["classifier"]["labels"] == list(LABELS)
    assert cascade("bundle", "verify", "digits-small").returncode == 0


def test_classifying_offline_answers_and_says_what_it_is_worth(cascade, built):
    done = classify(cascade, built)
    assert (done.returncode, done.stdout) == (0, "0\n")
    assert "unverified" in done.stderr
    assert "uncertified_task" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["pixels"], 2, "is not NAME=FILE.npy"),
        (["pixels=nothing.npy"], 3, "no file nothing.npy"),
        (["pixels={files}/labels.txt"], 2, "no .npy file"),
        (["pixels={files}/wide.npy"], 2, "has the shape [8, 9]; digits-small takes [8, 8]"),
        (["image={files}/image.npy"], 2, "lack 'pixels'"),
    ],
)
def test_a_wrong_input_gets_one_line(built, capsys, words, code, message):
    given = [word.format(files=built) for word in words]
    assert main(["classify", *given, "--bundle", "digits-small"]) == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--classifier", "{files}/digits-small.onnx"], 2, "--labels: is missing"),
        (["--labels", "{files}/labels.txt"], 2, "--labels: is for classifiers"),
        (["--classifier", "nothing.onnx", "--labels", "{files}/labels.txt"], 3, "no file"),
        (["--classifier", "{files}/labels.txt", "--labels", "{files}/labels.txt"], 2, "no whole"),
        (
            ["--classifier", "{files}/digits-small.onnx", "--labels", "{files}/image.npy"],
            2,
            "not a text file",
        ),
        (
            ["--classifier", "{files}/digits-small.onnx", "--labels", "{files}/labels.txt"],
            2,
            "exists",
        ),
    ],
)
def test_a_bundle_that_cannot_be_made_gets_one_line(built, capsys, words, code, message):
    assert main(["bundle", "build", *(word.format(files=built) for word in words)]) == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


def test_a_tier_without_its_bundle_is_named(built, capsys):
    config = built / "missing.yaml"
    config.write_text("tiers: [{name: digits, engine: onnx_classifier, model: nowhere}]")
    assert main(["cluster", "up", "--config", str(config)]) == 7
    assert "tier digits: there is no bundle at" in capsys.readouterr().err


def test_tensors_reach_the_classifier_and_text_the_text_model(cascade, cluster, built):
    done = classify(cascade, built, "--cloud", "--json")
    answer = json.loads(done.stdout)
    assert (answer["text"], answer["source"], answer["model"]) == ("0", "digits", "digits-large")
    assert answer["reasons"] == [
        "uncertified_task",
        "text:reads_text",
        "lowest_allowed_tier",
    ]
    # This device's own model reads no text; the cluster has one that does.
    question = ("choose", "Is fire hot or cold?", "--options", "hot,cold")
    done = cascade(*question, "--bundle", "digits-small", "--cloud", "--json")
    answer = json.loads(done.stdout)
    assert (answer["text"] in ("hot", "cold"), answer["source"]) == (True, "text")
    assert answer["reasons"] == ["local_failed", "lowest_tier"]


def test_a_tier_refuses_what_it_cannot_read_and_the_device_answers(cascade, cluster, built):
    done = classify(cascade, built, "--cloud", "--tier", "text", "--json")
    answer = json.loads(done.stdout)
    assert (answer["source"], answer["verified"]) == ("device", False)
    assert answer["remote_status"] == "FAILED_PRECONDITION"
    assert "text:reads_text, digits:not_allowed" in answer["remote_error"]
    assert done.returncode == 8


def test_the_access_log_holds_no_pixels(cascade, cluster, built):
    classify(cascade, built, "--cloud", "--json")
    lines = (home.cluster_dir() / "requests.jsonl").read_text().splitlines()
    record = json.loads(lines[-1])
    assert (record["tier"], record["status"], record["completion_tokens"]) == ("digits", "OK", 1)
    assert "pixels" not in "".join(lines)

"""The device's side of the gradient figures, on the tiny bundle."""

from __future__ import annotations

import socket

import numpy as np
import pytest

from benchmarks.federated import batches
from benchmarks.federated.__main__ import GROUPS
from benchmarks.peers import Child


def test_gradients_have_a_group() -> None:
    assert "gradients" in GROUPS


def test_both_sides_draw_the_same(tmp_path) -> None:
    assert [a.digest for a in batches.lessons(3, 100)] == [
        b.digest for b in batches.lessons(3, 100)
    ]
    linears = [("layers.0.q_proj", 8, 8), ("layers.0.v_proj", 8, 4)]
    one, two = batches.pairs(3, linears), batches.pairs(3, reversed(linears))
    assert all(np.array_equal(one[name].b, two[name].b) for name in one)


@pytest.mark.processes
def test_a_training_device_has_no_torch_and_tells_its_peak(tiny, tmp_path) -> None:
    with Child("benchmarks.federated.device_side", tiny.path, tiny.path.parent / "trust") as child:
        out = tmp_path / "gradient.npy"
        child.ask("gradient", seed=1, modules=["q_proj"], out=str(out))
        assert np.abs(np.load(out)).max() > 0
        assert child.time("step", tokens=25, modules=["q_proj"]).cpu_s > 0
        reply = child.ask("train")
        assert reply["torch"] is False
        assert reply["peak"] > 30e6


@pytest.mark.processes
def test_a_relay_counts_what_passes_both_ways() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        Child("benchmarks.federated.relay") as it,
    ):
        port = it.ask("open", port=server.getsockname()[1])["port"]
        with socket.create_connection(("127.0.0.1", port)) as device:
            theirs, _ = server.accept()
            device.sendall(b"x" * 100_000)
            got = 0
            while got < 100_000:
                got += len(theirs.recv(65536))
            theirs.sendall(b"yes")
            assert device.recv(3) == b"yes"
            theirs.close()
        assert it.ask("passed") == {"up": 100_000, "down": 3}

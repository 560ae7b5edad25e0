"""What a head sees against torch, on tiny models of every kind."""

from __future__ import annotations

import numpy as np
import torch

from edge.build.graph import hidden_layer
from edge.head import pooled
from edge.model import open_decoder

PROMPT = [1, 77, 30, 259, 4, 200, 131, 77, 2, 58, 99, 12]
OWN = 5  # tokens that are the task's


def test_hidden_states_are_those_of_torch(pair) -> None:
    bundle, model = pair
    decoder = open_decoder(bundle)
    with torch.no_grad():
        out = model(torch.tensor([PROMPT]), output_hidden_states=True)
    layer = hidden_layer(bundle.manifest.layers)
    assert decoder.hidden.layer == layer
    expected = out.hidden_states[layer][0].numpy()
    for before in ([], PROMPT[:3], PROMPT[:8], PROMPT):
        decoder.forget()
        if before:
            decoder.read(before)
        row, states = decoder.read_hidden(PROMPT, OWN)
        scale = np.abs(expected).max()
        assert np.abs(states - expected[OWN:]).max() < 2e-4 * scale
        mean, last = np.split(pooled(states), 2)
        assert np.abs(mean - expected[OWN:].mean(axis=0)).max() < 2e-4 * scale
        assert np.abs(last - expected[-1]).max() < 2e-4 * scale
        logits = out.logits[0, -1].numpy()
        assert np.abs(row - logits).max() < 2e-3 * np.abs(logits).max()


def test_asking_for_hidden_states_changes_no_logit(pair) -> None:
    decoder = open_decoder(pair[0])
    plain = decoder.read(PROMPT).copy()
    steps = [decoder.push(token).copy() for token in (7, 8, 9)]
    decoder.forget()
    row, _ = decoder.read_hidden(PROMPT, 0)
    assert np.array_equal(row, plain)
    for token, step in zip((7, 8, 9), steps, strict=True):
        assert np.array_equal(decoder.push(token), step)

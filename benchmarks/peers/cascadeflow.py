"""cascadeflow on drafts that were made elsewhere: ``python -m benchmarks.peers.cascadeflow``.

Its estimator and its validator are called as its own providers and cascade call them, and its
whole agent runs against a server on this machine that speaks OpenAI's protocol and replays the
drafts with their token log probabilities. Everything is at its defaults, except the temperature:
the drafts are greedy, and it is told so.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from typing import TypedDict

from cascadeflow import CascadeAgent, ModelConfig
from cascadeflow.quality import ProductionConfidenceEstimator, QualityConfig, QualityValidator

from benchmarks.child import Fields, serve

_DRAFTER, _VERIFIER = "drafter", "verifier"
_PROVIDER = "vllm"  # its provider for endpoints of one's own; it reads token log probabilities


class Draft(TypedDict):
    """One answer of the small model.

    Arguments:
        prompt: what was asked, as a larger model would be asked it.
        input: what the prompt is about, without instructions.
        answer: the draft.
        logprobs: natural log probabilities of its tokens.
        finish: ``"stop"`` or ``"length"``.
    """

    prompt: str
    input: str
    answer: str
    logprobs: list[float]
    finish: str


def open_handlers() -> dict[str, Callable[..., Fields]]:
    """What can be asked of it."""
    logging.disable(logging.CRITICAL)  # it reports every draft
    return {
        "about": lambda: {"version": version("cascadeflow")},
        "estimate": lambda drafts: {"scores": [_estimate(draft) for draft in drafts]},
        "run": lambda drafts: {"decisions": asyncio.run(_run(drafts))},
    }


_estimator = ProductionConfidenceEstimator(_PROVIDER)
_validator = QualityValidator(QualityConfig.for_cascade())


def _estimate(draft: Draft) -> Fields:
    """Every number that it has for a draft, in [0, 1]; the larger, the surer."""

    def confidence(**given: object) -> Fields:
        analysis = _estimator.estimate(
            draft["answer"], temperature=0.0, finish_reason=draft["finish"], **given
        )
        return {"whole": analysis.final_confidence, "logprobs": analysis.logprobs_confidence}

    prompt, logprobs = draft["prompt"], draft["logprobs"]
    as_agent = confidence(query=prompt, logprobs=logprobs)
    checked = _validator.validate(draft["answer"], prompt, as_agent["whole"])
    return {
        "estimator": as_agent["whole"],
        "estimator, bare input": confidence(query=draft["input"], logprobs=logprobs)["whole"],
        "estimator, no query": confidence(logprobs=logprobs)["whole"],
        "estimator, no logprobs": confidence(query=prompt)["whole"],
        "logprobs component": as_agent["logprobs"],
        "validator": checked.score,
        "query difficulty": 1 - _estimator.query_estimator.estimate(prompt),
    }


async def _run(drafts: Sequence[Draft]) -> list[Fields]:
    """What its agent does with each draft, in this order: its thresholds adapt as it goes."""
    with _replay({draft["prompt"]: draft for draft in drafts}) as url:
        agent = CascadeAgent(
            [
                ModelConfig(_DRAFTER, provider=_PROVIDER, base_url=url, cost=0.0001),
                ModelConfig(_VERIFIER, provider=_PROVIDER, base_url=url, cost=0.01),
            ]
        )
        return [await _decide(agent, draft) for draft in drafts]


async def _decide(agent: CascadeAgent, draft: Draft) -> Fields:
    result = await agent.run(draft["prompt"], temperature=0.0)
    return {
        "accepted": bool(result.draft_accepted),
        "direct": result.routing_strategy == "direct",
        "confidence": result.draft_confidence,
    }


@contextmanager
def _replay(drafts: dict[str, Draft]) -> Iterator[str]:
    """A server that answers as the drafter with the draft, and as the verifier with a word."""

    class Replay(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            draft = drafts[asked["messages"][-1]["content"]]
            reply = (
                _completion(draft["answer"], draft["finish"], draft["logprobs"])
                if asked["model"] == _DRAFTER
                else _completion("verified", "stop")
            )
            body = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Replay)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()


def _completion(text: str, finish: str, logprobs: Sequence[float] | None = None) -> Fields:
    choice: Fields = {
        "index": 0,
        "finish_reason": finish,
        "message": {"role": "assistant", "content": text},
    }
    if logprobs is not None:
        # Of the tokens' texts it makes nothing.
        choice["logprobs"] = {"content": [{"token": "", "logprob": each} for each in logprobs]}
    return {
        "object": "chat.completion",
        "choices": [choice],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


if __name__ == "__main__":
    serve(open_handlers)

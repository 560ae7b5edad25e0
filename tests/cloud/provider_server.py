"""Local servers that speak the providers' published protocols, and break in the ways that they do.

The model's name says what happens: ``good`` answers, anything else is a fault.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

KEY = "sk-local-0123456789"
WORDS = ("Green", " is", " a", " colour.")


class ProviderServer:
    """What was asked, and where."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[dict[str, Any]] = []
        self.left: list[str] = []
        """Models whose stream the client left before its end."""


@contextlib.contextmanager
def serving() -> Iterator[ProviderServer]:
    """A server of both protocols on the loopback."""
    state = ProviderServer()
    app = Starlette(
        routes=[
            Route("/v1/chat/completions", _Openai(state), methods=["POST"]),
            Route("/v1/messages", _Anthropic(state), methods=["POST"]),
        ]
    )
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        threading.Event().wait(0.01)
    state.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield state
    server.should_exit = True
    thread.join()


class _Protocol:
    def __init__(self, state: ProviderServer) -> None:
        self._state = state

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        body = await request.json()
        self._state.asked.append({**body, "headers": dict(request.headers)})
        response = self.fault(body, request) or self.stream(body)
        await response(scope, receive, send)

    def fault(self, body: dict[str, Any], request: Request) -> Response | None:
        if self.key(request) != KEY:
            return self.error(401, "authentication_error", "invalid_api_key", f"no {KEY[:5]}")
        match body["model"]:
            case "busy":
                reply = self.error(429, "rate_limit_error", "rate_limit_exceeded", "slow down")
                reply.headers["retry-after"] = "7"
                # Tells the SDK not to wait those seconds and ask again.
                reply.headers["x-should-retry"] = "false"
                return reply
            case "poor":
                return self.error(429, "insufficient_quota", "insufficient_quota", "pay first")
            case "unknown":
                return self.error(404, "not_found_error", "model_not_found", "no such model")
            case "long":
                return self.error(
                    400, "invalid_request_error", "context_length_exceeded", "too long"
                )
            case "strict":
                return self.error(400, "invalid_request_error", "unsupported_value", "temperature")
            case "broken":
                return self.error(500, "api_error", "server_error", "Traceback: secret")
            case "html":
                return HTMLResponse("<html><body>Welcome to the proxy</body></html>")
            case "html502":
                return HTMLResponse("<html>bad gateway</html>", status_code=502)
        return None

    def stream(self, body: dict[str, Any]) -> Response:
        return StreamingResponse(self._watched(body), media_type="text/event-stream")

    async def _watched(self, body: dict[str, Any]) -> AsyncIterator[str]:
        model = body["model"]
        done = False
        try:
            async for event in self.events(body):
                yield event
            done = True
        finally:
            if not done:
                self._state.left.append(model)

    def key(self, request: Request) -> str:
        raise NotImplementedError

    def error(self, status: int, kind: str, code: str, text: str) -> Response:
        raise NotImplementedError

    def events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        raise NotImplementedError


class _Openai(_Protocol):
    def key(self, request: Request) -> str:
        return request.headers.get("authorization", "").removeprefix("Bearer ")

    def error(self, status: int, kind: str, code: str, text: str) -> Response:
        error = {"message": text, "type": kind, "code": code, "param": None}
        return JSONResponse({"error": error}, status_code=status)

    async def events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        def event(**fields: Any) -> str:
            base = {"id": "c1", "object": "chat.completion.chunk", "created": 1}
            return f"data: {json.dumps({**base, 'model': body['model'], **fields})}\n\n"

        def piece(text: str, reason: str | None = None) -> str:
            delta = {"content": text} if text else {}
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            if body.get("logprobs") and text:
                token = {"token": text, "logprob": -0.5, "bytes": [1], "top_logprobs": []}
                choice["logprobs"] = {"content": [token]}
            return event(choices=[choice])

        model = body["model"]
        for word in _words(body):
            yield piece(word)
            if model == "slow":
                await asyncio.sleep(30)
            if model == "inside":
                yield f"data: {json.dumps({'error': {'message': 'x', 'type': 'api_error'}})}\n\n"
            if model == "half":
                yield 'data: {"id": "c1", "choi\n\n'
            if model == "cut":
                return
        yield piece("", {"filtered": "content_filter", "short": "length"}.get(model, "stop"))
        if model != "uncounted":
            details = {"cached_tokens": 3}
            usage = {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15}
            yield event(choices=[], usage={**usage, "prompt_tokens_details": details})
        yield "data: [DONE]\n\n"


class _Anthropic(_Protocol):
    def key(self, request: Request) -> str:
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        return request.headers.get("x-api-key", bearer)

    def error(self, status: int, kind: str, code: str, text: str) -> Response:
        if kind == "insufficient_quota":
            kind = "billing_error"
        if code == "context_length_exceeded":
            status, kind = 413, "request_too_large"
        error = {"type": kind, "message": text}
        return JSONResponse({"type": "error", "error": error}, status_code=status)

    async def events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        def event(kind: str, **fields: Any) -> str:
            return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n"

        model = body["model"]
        usage = {"input_tokens": 8, "output_tokens": 1, "cache_read_input_tokens": 3}
        message = {"id": "m1", "type": "message", "role": "assistant", "content": []}
        yield event("message_start", message={**message, "model": model, "usage": usage})
        block = {"type": "text", "text": ""}
        yield event("content_block_start", index=0, content_block=block)
        for word in _words(body):
            delta = {"type": "text_delta", "text": word}
            yield event("content_block_delta", index=0, delta=delta)
            if model == "slow":
                await asyncio.sleep(30)
            if model == "inside":
                yield event("error", error={"type": "overloaded_error", "message": "x"})
            if model == "half":
                yield 'event: content_block_delta\ndata: {"type": "content_bl\n\n'
            if model == "cut":
                return
        yield event("content_block_stop", index=0)
        reason = {"filtered": "refusal", "short": "max_tokens"}.get(model, "end_turn")
        yield event("message_delta", delta={"stop_reason": reason}, usage={"output_tokens": 4})
        yield event("message_stop")


def _words(body: dict[str, Any]) -> tuple[str, ...]:
    wanted = body.get("response_format") or body.get("output_config")
    if not wanted or body["model"] == "ignores":
        return ("Positive.",) if body["model"] == "ignores" else WORDS
    schema = wanted.get("json_schema", wanted.get("format", {}))["schema"]
    if body["model"] == "wrong":
        return ('{"answer": ', '"maybe"}')
    options = schema.get("properties", {}).get("answer", {}).get("enum")
    return ('{"answer": "', options[0], '"}') if options else ('{"colour": ', '"green"}')

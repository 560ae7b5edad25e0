"""On a redeploy the old gateway goes on listening until the new one does, and no longer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from ray import serve
from ray.exceptions import RayError
from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    DeploymentStatusTrigger,
    ReplicaState,
    ServeStatus,
)

import cloud.gateway
from cloud.gateway import APP_NAME, GATEWAY, Gateway


def status(app: ApplicationStatus, **replicas: int) -> ServeStatus:
    """What Serve says while so many of the new gateway's replicas are in each state."""
    states = {ReplicaState[name]: count for name, count in replicas.items()}
    trigger = DeploymentStatusTrigger.CONFIG_UPDATE_STARTED
    gateway = DeploymentStatusOverview(DeploymentStatus.UPDATING, trigger, states, "")
    return ServeStatus(
        applications={APP_NAME: ApplicationStatusOverview(app, "", 0.0, {GATEWAY: gateway})}
    )


STARTS = status(ApplicationStatus.DEPLOYING, STARTING=1, STOPPING=1)
LISTENS = status(ApplicationStatus.DEPLOYING, RUNNING=1, STOPPING=1)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Has Serve say one thing after the other, the last one for ever; the list counts questions."""
    monkeypatch.setattr(cloud.gateway, "_REPLACEMENT_POLL_S", 0.001)

    def tell(*answers: ServeStatus | Exception) -> list[int]:
        asked: list[int] = []

        def answer() -> ServeStatus:
            asked.append(len(asked))
            found = answers[min(asked[-1], len(answers) - 1)]
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(serve, "status", answer)
        return asked

    return tell


class Retired:
    """What ``Gateway.__del__`` sees of a replica that Serve is about to end. Not a ``Gateway``: the
    collector would begin that method too, and nobody awaits it then."""

    def __init__(self) -> None:
        self.drained = 0
        self._watching = asyncio.create_task(asyncio.sleep(60))

    async def drain(self) -> None:
        self._watching.cancel()
        self.drained += 1

    async def end(self) -> None:
        await Gateway.__del__(self)  # type: ignore[arg-type]


async def test_it_listens_until_the_new_one_runs_and_then_drains(
    told: Callable[..., list[int]],
) -> None:
    asked, gateway = told(STARTS, STARTS, STARTS, LISTENS), Retired()
    ending = asyncio.create_task(gateway.end())
    while len(asked) < 3:
        assert gateway.drained == 0
        await asyncio.sleep(0.001)
    await ending
    assert (len(asked), gateway.drained) == (4, 1)
    # The collector calls it once more: what is drained is not waited for again.
    await gateway.end()
    assert len(asked) == 4


@pytest.mark.parametrize(
    "answer",
    [
        status(ApplicationStatus.DELETING, STOPPING=1),
        status(ApplicationStatus.RUNNING, RUNNING=1),
        ServeStatus(),
        RayError("the controller is gone"),
    ],
)
async def test_where_nothing_is_being_deployed_nobody_waits(
    told: Callable[..., list[int]], answer: ServeStatus | Exception
) -> None:
    asked, gateway = told(answer), Retired()
    await gateway.end()
    assert (len(asked), gateway.drained) == (1, 1)


async def test_a_replacement_that_never_comes_is_not_waited_for_for_ever(
    told: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud.gateway, "REPLACEMENT_S", 0.05)
    asked, gateway = told(STARTS), Retired()
    await gateway.end()
    assert len(asked) > 1
    assert gateway.drained == 1

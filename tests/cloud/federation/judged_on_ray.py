"""A gate over Ray in a process of its own: its first examiner is killed. Prints what it said."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from cascade.testing.tiny import tiny_bundle
from cloud.federation.database import Database
from cloud.federation.gate.gate import BehaviourGate
from cloud.federation.gate.judgements import of
from cloud.federation.schema import migrate
from cloud.local_ray import start_ray
from tests.cloud.federation.gated import Gated
from tests.cloud.federation.test_gate import waiting


def examiners() -> list[int]:
    """Processes of Ray that examine now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"ray::_examine" in path.read_bytes() and _ours(int(path.parent.name)):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def _ours(process: int) -> bool:
    """Whether it descends from this one: others may run Ray on this machine, too."""
    while process > 1:
        if process == os.getpid():
            return True
        status = Path(f"/proc/{process}/stat").read_text()
        process = int(status.rpartition(")")[2].split()[1])
    return False


async def judge(folder: Path) -> dict[str, object]:
    """What the gate says until it has decided."""
    gated = Gated.made(folder, tiny_bundle(folder / "tiny"), share=0.6)
    database = Database(folder / "rounds.sqlite3")
    clock = [0.0]
    gate = BehaviourGate(
        gated.config,
        database,
        gated.registry,
        gated.key,
        first=gated.first,
        folder=folder / "gate",
        trust=folder / "trust",
        now=lambda: clock[0],
    )
    killed, said = False, list[str]()
    try:
        await database.do(migrate)
        candidate = gated.candidate(1e-4)
        verdict = "undecided"
        while verdict == "undecided" and not (said and "operator" in said[-1]):
            verdict, why = await gate.judge(waiting(gated, candidate))
            if not said or said[-1] != why:
                said.append(why)
            if not killed and (processes := examiners()):
                os.kill(processes[0], signal.SIGKILL)
                killed = True
            clock[0] += 1000.0 if "could not be examined" in why else 0.0
            await asyncio.sleep(0.05)
        judgement = await database.do(lambda tx: of(tx, candidate))
        policies = len(judgement.policies) if judgement else 0
        return {"verdict": verdict, "said": said, "killed": killed, "policies": policies}
    finally:
        await gate.close()
        database.close()


if __name__ == "__main__":
    start_ray(Path(sys.argv[2]), num_cpus=1)
    print(json.dumps(asyncio.run(judge(Path(sys.argv[1])))))

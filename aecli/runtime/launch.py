"""The environment that torchrun gives each process. Without it there is one process.

Only the standard library is imported here, because the command line needs this before anything else.
"""

import os
from dataclasses import dataclass
from functools import cache

_REQUIRED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """Place of this process: `rank` of `size`, and `local_rank` of its machine's `local_size`.

    `attempt` is torchrun's restart count, from 0. `address` is the host and port of the rendezvous store; with
    `is_served` torchrun's agent hosts it, else rank 0 must.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    attempt: int = 0
    address: tuple[str, int] = ("", 0)
    is_served: bool = False


@cache
def launch() -> Launch:
    """Read torchrun's environment variables; a single process where one is missing or invalid."""
    found = {name: os.environ.get(name, "") for name in _REQUIRED}
    if not all(value.isdecimal() for name, value in found.items() if name != "MASTER_ADDR") or not found["MASTER_ADDR"]:
        return Launch()
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
    local_size = os.environ.get("LOCAL_WORLD_SIZE", "")
    return Launch(
        rank=int(found["RANK"]),
        size=int(found["WORLD_SIZE"]),
        local_rank=int(found["LOCAL_RANK"]),
        local_size=max(1, int(local_size)) if local_size.isdecimal() else 1,
        attempt=int(attempt) if attempt.isdecimal() else 0,
        address=(found["MASTER_ADDR"], int(found["MASTER_PORT"])),
        is_served=os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


class _Reporting:
    """Whether this process reports to the user; None until a failure decides it: then rank 0 does."""

    is_ours: bool | None = None


def is_reporting_rank() -> bool:
    """Whether this process's output is for the user: rank 0's, or that of the first process to fail."""
    return launch().rank == 0 if _Reporting.is_ours is None else _Reporting.is_ours


def set_reporting_rank(is_ours: bool) -> None:
    """Decide whether this process reports the failure, or another one does."""
    _Reporting.is_ours = is_ours

"""What torchrun says to each process that it starts. Without it, there is one process.

Only the standard library is imported here: the command line asks before anything else is.
"""

import os
from dataclasses import dataclass
from functools import cache

_REQUIRED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Launch:
    """Which of how many processes this is: `rank` of `size`, the `local_rank`-th of its machine's `local_size`.

    `attempt` counts from 0 how often torchrun has started them again; they meet at `address`, a host and a port, which
    torchrun itself serves where `is_served`.
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
    """What the environment says, by the names that torchrun and its like agree on; alone where one is missing."""
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


class _Voice:
    """Who tells the user: the first process, until another one is the first to fail."""

    is_ours: bool | None = None


def speaks() -> bool:
    """Whether what this process says is for the user; what the others would say is the same, or follows from it."""
    return launch().rank == 0 if _Voice.is_ours is None else _Voice.is_ours


def give_voice(is_ours: bool) -> None:
    """Decide who tells of a failure: this process, or another."""
    _Voice.is_ours = is_ours

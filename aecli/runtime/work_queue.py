"""Work that is dealt out: each batch to whichever thread of whichever process is free."""

from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import closing
from typing import TypeVar

from aecli.errors import AecliError
from aecli.progress import Listener, Progress
from aecli.runtime.distributed import Distributed
from aecli.runtime.threads import ordered_map, sharing_threads, worker_count

Batch = TypeVar("Batch", bound=Sized)
Result = TypeVar("Result")


def map_shared(
    function: Callable[[Batch], Result],
    batches: Sequence[Batch],
    task: str,
    workers: int | None,
    distributed: Distributed,
    listen: Listener,
) -> list[tuple[int, Result]]:
    """Have `function` work on each of `batches`; return the numbers and results of those that fell to this process.

    All processes call this with the same batches, and take the next one that nobody has begun. So whoever is slow gets
    less to do, and when one batch fails, all before it have been begun: the first failure is the one that a process
    alone would have met.

    Args:
        function: is called in several threads at once.
        batches: what is worked on at a time; their lengths are what is counted.
        task: what the work is called, once in a `distributed`.
        workers: threads; None for as many as fit this machine.
        distributed: who shares the work.
        listen: hears how much all processes together have done.

    Raises:
        AecliError: what `function` raised for the first batch that failed, in the process that it fell to.
        PeerError: in the others.
    """
    share = -(-len(batches) // distributed.world_size)
    workers = max(1, min(worker_count(workers), share))
    total = sum(map(len, batches))
    done: list[tuple[int, Result]] = []
    failure: tuple[int, AecliError] | None = None

    def begun() -> Iterator[int]:
        while (number := distributed.count(f"{task}: begun", 1) - 1) < len(batches):
            yield number

    def work(number: int) -> tuple[int, Result | AecliError]:
        try:
            return number, function(batches[number])
        except AecliError as error:
            return number, error

    # No process begins more than its share before the others have come.
    with sharing_threads(workers), closing(ordered_map(work, begun(), workers, min(2 * workers, share))) as results:
        for number, result in results:
            if isinstance(result, AecliError):
                distributed.count(f"{task}: begun", len(batches))  # so that nobody begins another
                failure = number, result
                break
            done.append((number, result))
            listen(Progress(task, distributed.count(f"{task}: done", len(batches[number])), total))
    distributed.raise_first_failure(failure)
    return done

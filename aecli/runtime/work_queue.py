"""A work queue shared by all processes: each batch goes to the next free thread of any process."""

from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import closing
from typing import TypeVar

from aecli.errors import AecliError
from aecli.progress import Listener, Progress
from aecli.runtime.distributed import Distributed
from aecli.runtime.threads import limit_torch_threads, ordered_map, worker_count

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
    """Map `function` over `batches`; return the numbers and results of the batches that this process took.

    All processes call this with the same batches, and each takes the next one that none has taken. So slow processes
    take fewer; and when a batch fails, all before it have been taken, so that the failure reported is the one that a
    single process would have met first.

    Args:
        function: called in several threads at once.
        batches: their lengths are what progress counts.
        task: a name, used once per `distributed`.
        workers: threads; None for as many as suit this machine.
        distributed: the processes that share the work.
        listen: gets the progress of all processes together.

    Raises:
        AecliError: the failure of `function` for the first batch that failed, in the process that took it.
        PeerError: the same, in the other processes.
    """
    even_part = -(-len(batches) // distributed.world_size)
    workers = max(1, min(worker_count(workers), even_part))
    total = sum(map(len, batches))
    done: list[tuple[int, Result]] = []
    failure: tuple[int, AecliError] | None = None

    def take() -> Iterator[int]:
        while (number := distributed.add_to_counter(f"{task}: taken", 1) - 1) < len(batches):
            yield number

    def work(number: int) -> tuple[int, Result | AecliError]:
        try:
            return number, function(batches[number])
        except AecliError as error:
            return number, error

    # No process takes more than an even part in advance, for those that arrive later.
    ahead = min(2 * workers, even_part)
    with limit_torch_threads(workers), closing(ordered_map(work, take(), workers, ahead)) as results:
        for number, result in results:
            if isinstance(result, AecliError):
                distributed.add_to_counter(f"{task}: taken", len(batches))  # so that no process takes another
                failure = number, result
                break
            done.append((number, result))
            listen(Progress(task, distributed.add_to_counter(f"{task}: done", len(batches[number])), total))
    distributed.raise_first_failure(failure)
    return done

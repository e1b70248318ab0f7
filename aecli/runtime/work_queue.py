"""A work queue shared by all processes: each batch goes to the next free thread of any process."""

from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import closing
from itertools import chain
from operator import itemgetter
from typing import TypeVar

from aecli.errors import AecliError
from aecli.progress import Listener, Progress
from aecli.runtime.distributed import Distributed
from aecli.runtime.threads import limit_threads, ordered_map, worker_count

Batch = TypeVar("Batch", bound=Sized)
Result = TypeVar("Result")


def map_shared(
    function: Callable[[Batch], Result],
    batches: Sequence[Batch],
    task: str,
    workers: int | None,
    distributed: Distributed,
    listen: Listener,
) -> list[Result]:
    """Return `function` of each batch, in order and the same in every process.

    All processes call this with the same batches, and each claims the next one that is free. So slow processes do
    fewer; and when a batch fails, all before it are claimed, so that the failure reported is the one that a single
    process would have met first.

    Args:
        function: called in several threads at once; its results are pickled if there are several processes.
        batches: their lengths are what progress counts.
        task: a name, used once per `distributed`.
        workers: threads; None for as many as suit this machine.
        distributed: the processes that share the work.
        listen: gets the progress of all processes together.

    Raises:
        AecliError: the failure of `function` for the first batch that failed, in the process that claimed it.
        PeerError: the same, in the other processes.
    """
    even_part = -(-len(batches) // distributed.world_size)
    workers = max(1, min(worker_count(workers), even_part))
    total = sum(map(len, batches))
    done: list[tuple[int, Result]] = []
    failure: tuple[int, AecliError] | None = None

    def claim() -> Iterator[int]:
        while (number := distributed.add_to_counter(f"{task}: claimed", 1) - 1) < len(batches):
            yield number

    def work(number: int) -> tuple[int, Result | AecliError]:
        try:
            return number, function(batches[number])
        except AecliError as error:
            return number, error

    # No process claims more than an even part in advance, for those that arrive later.
    ahead = min(2 * workers, even_part)
    with limit_threads(workers), closing(ordered_map(work, claim(), workers, ahead)) as results:
        for number, result in results:
            if isinstance(result, AecliError):
                distributed.add_to_counter(f"{task}: claimed", len(batches))  # so that no process claims another
                failure = number, result
                break
            done.append((number, result))
            listen(Progress(task, distributed.add_to_counter(f"{task}: done", len(batches[number])), total))
    distributed.raise_first_failure(failure)
    everyone = sorted(chain.from_iterable(distributed.all_gather_object(done)), key=itemgetter(0))
    return [result for _, result in everyone]

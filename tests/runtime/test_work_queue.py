"""The shared work queue: each batch is done once, by several processes, and the first failure is raised in all."""

import json
import os
import time
from pathlib import Path

import pytest

from aecli.errors import DataError, PeerError
from aecli.progress import Progress, ignore
from aecli.runtime.distributed import Distributed
from aecli.runtime.work_queue import map_shared
from tests.support.ranks import run_ranks

BATCHES = [range(number, number + 1 + number % 3) for number in range(20)]
TOTAL = sum(map(len, BATCHES))


def test_alone_all_is_done_in_order_with_progress():
    heard = []
    with Distributed() as distributed:
        done = map_shared(list, BATCHES, "counting", 3, distributed, heard.append)
    assert done == [list(batch) for batch in BATCHES]
    assert heard[-1] == Progress("counting", TOTAL, TOTAL) and len(heard) == len(BATCHES)


def test_alone_the_first_failure_ends_it():
    done = []

    def work(batch):
        done.append(batch.start)
        if batch.start in (3, 4):
            time.sleep(0.2 if batch.start == 3 else 0)
            raise DataError(f"batch {batch.start}")

    with Distributed() as distributed, pytest.raises(DataError, match="batch 3"):
        map_shared(work, BATCHES, "counting", 2, distributed, ignore)
    assert max(done) < 10


def test_no_batches_give_no_results():
    with Distributed() as distributed:
        assert map_shared(len, [], "counting", None, distributed, ignore) == []


@pytest.mark.parametrize("size", [2, 3])
def test_each_batch_is_done_by_one_of_several(tmp_path, size):
    assert run_ranks(tmp_path, ["--version"], size, before=_share)[0] == [0] * size
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(size)]
    mine = [one["mine"] for one in found]
    assert all(mine) and sorted(sum(mine, [])) == [batch.start for batch in BATCHES]
    assert sum(mine, []) != sorted(sum(mine, [])), "else it would show nothing that the results are in order"
    assert [one["results"] for one in found] == [[[batch.start, sum(batch)] for batch in BATCHES]] * size
    assert max(one["heard"] for one in found) == TOTAL


def _share():
    mine = []

    def work(batch):
        time.sleep(0.05)
        mine.append(batch.start)
        return batch.start, sum(batch)

    heard = []
    with Distributed() as distributed:
        results = map_shared(work, BATCHES, "counting", 1, distributed, heard.append)
    record = {"mine": mine, "results": results, "heard": heard[-1].done}
    Path(f"{os.environ['RANK']}.json").write_text(json.dumps(record))


def test_of_several_failures_the_first_in_order_is_raised(tmp_path):
    assert run_ranks(tmp_path, ["--version"], 3, before=_fail)[0] == [0] * 3
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(3)] == ["PeerError", "DataError at 4", "PeerError"]


def _fail():
    rank = int(os.environ["RANK"])
    try:
        with Distributed() as distributed:
            distributed.raise_first_failure(None)
            number = [7, 4, 5][rank]
            distributed.raise_first_failure((number, DataError(f"at {number}")))
    except DataError as error:
        Path(f"{rank}.txt").write_text(f"DataError {error}")
    except PeerError:
        Path(f"{rank}.txt").write_text("PeerError")

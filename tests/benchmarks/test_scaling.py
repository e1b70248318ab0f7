"""The arithmetic of the scaling benchmark's model: against sums done by hand, and PyTorch's own buckets."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from aecli.models import registry
from tests.benchmarks.scaling_model import Load, Machines, fit, images_for, load_of, most_processes, predict
from tests.benchmarks.scaling_predictions import COUNTS, LINKS, gpu_step, report_load

# Round figures: 1 ms an image, machines of 2 that add up 1 GB/s inside and 100 MB/s between, and nothing else.
MACHINES = Machines(
    image_s=1e-3, fixed_s=0.0, inside=1e9, between=1e8, inside_hop_s=0.0, between_hop_s=0.0, a_machine=2, hidden=1.0,
    noise_s=0.0, look_hop_s=0.0,
)  # fmt: skip
LOAD = Load(((10_000_000, 0.5), (10_000_000, 1.0)), 0, 10)


def test_gradients_are_summed_beside_what_is_left_of_backward():
    """10 MB over 2 processes of one machine take 10 ms; 30 images' backward takes 20, and half of it is a bucket's."""
    alone = predict(LOAD, MACHINES, 1, 30)
    assert (alone.seconds, alone.efficiency) == (pytest.approx(0.030), 1.0)
    step = predict(LOAD, MACHINES, 2, 30)
    assert step.exposed == pytest.approx(0.010)  # the first bucket is done at 20 ms, when the second is ready
    assert (step.seconds, step.images, step.efficiency) == (pytest.approx(0.040), 60, pytest.approx(0.75))
    paid = predict(LOAD, replace(MACHINES, hidden=0.0), 2, 30)
    assert paid.exposed == pytest.approx(0.020)  # where computing hides nothing, both count in full


def test_a_link_between_machines_is_the_slowest_and_bf16_halves_its_time():
    """2 (N-1) / N of 20 MB at 100 MB/s, none of it beside 3 images."""
    times = [predict(LOAD, MACHINES, 4, 3, bits).exposed for bits in (32, 16)]
    assert times == [pytest.approx(0.300, abs=0.002), pytest.approx(0.150, abs=0.002)]


def test_latencies_grow_as_trees_or_as_rings():
    """8 processes on 4 machines: 1 hop inside and 2 between along a tree; 4 and 3 along a ring."""
    machines = replace(MACHINES, inside_hop_s=1e-3, between_hop_s=10e-3)
    assert machines.hops_s(8, in_trees=True) == pytest.approx(0.021)
    assert machines.hops_s(8, in_trees=False) == pytest.approx(0.034)
    step = predict(LOAD, replace(machines, look_hop_s=1e-3, noise_s=1e-3), 8, 100)
    assert step.statistics == pytest.approx(10 * (0.034 + 2 * 0.021))
    assert step.noise == pytest.approx(0.510)
    assert step.looks == pytest.approx(2 * 7 * 1e-3)  # this step is longer than the time between looks
    assert predict(LOAD, replace(machines, syncs_batchnorm=False), 8, 100).statistics == 0.0


def test_where_scaling_stops_is_where_the_efficiency_is_no_more():
    for share in (0.8, 0.5):
        images = images_for(LOAD, MACHINES, 4, share)
        assert (
            predict(LOAD, MACHINES, 4, images).efficiency >= share > predict(LOAD, MACHINES, 4, images // 2).efficiency
        )
    assert images_for(LOAD, replace(MACHINES, look_hop_s=1.0), 4, 0.8) is None
    count = most_processes(LOAD, MACHINES, 1024, 0.8)
    assert predict(LOAD, MACHINES, count, 1024 // count).efficiency >= 0.8
    assert predict(LOAD, MACHINES, 2 * count, 1024 // (2 * count)).efficiency < 0.8


def test_constants_that_made_the_measurements_are_found_again():
    rate, latency, paid = 2e9, 1e-3, 0.75
    measured = []
    for buckets in ([1_000_000], [3_000_000, 30_000_000], [2_000_000] * 5):
        seconds = sum(buckets) / rate + latency * len(buckets)
        step = 0.1 + paid * seconds + 0.004
        measured.append({"ranks": 2, "buckets": buckets, "all_reduce_s": seconds, "apart_s": 0.1, "broadcast_s": 0.004,
                         "step_s": step})  # fmt: skip
    found = fit(measured)
    assert (found.bytes_per_s, found.latency_s, found.paid) == (
        pytest.approx(rate),
        pytest.approx(latency),
        pytest.approx(paid),
    )
    assert found.exposed_s(2, [4_000_000]) == pytest.approx(0.75 * 0.003)


def test_buckets_are_pytorchs_and_hold_every_gradient():
    with torch.device("meta"):
        model = registry.build("vae", registry.resolve_options("vae", {"width": 32}))
    load = load_of(model, 64)
    order = list(reversed(list(model.parameters())))
    groups, _ = dist._compute_bucket_assignment_by_size(order, [2**20, 25 * 2**20])
    assert [size for size, _ in load.buckets] == [4 * sum(order[i].numel() for i in group) for group in groups]
    shares = [share for _, share in load.buckets]
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1.0) and shares[0] > 0
    assert (load.norms, load.buffer_bytes) == (10, sum(each.nbytes for each in model.buffers()))


def test_what_is_said_of_gpus_is_of_the_reports_model():
    assert report_load().gradient_bytes == 4 * 57_952_579
    for gigabits in LINKS:
        efficiencies = [gpu_step(count, gigabits, 32).efficiency for count in COUNTS]
        assert efficiencies == sorted(efficiencies, reverse=True)
    slow, fast = (gpu_step(64, gigabits, 32) for gigabits in LINKS)
    assert slow.exposed > 10 * fast.exposed
    # 231.8 MB, 2 · 63/64 times, at 90 % of 25 Gbit/s take 162 ms; 32 images of 79 GFLOP at 297 TFLOP/s take 8.5.
    assert 0.150 < slow.exposed < 0.163

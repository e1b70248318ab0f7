"""A model of a training step's time against the number of processes: what scaling.py fits and computes with.

A step of N processes, each with `images` images, takes

    compute + exposed + broadcast + batch statistics + noise + looks

- compute: `fixed_s` (optimiser, casts, launches) + images · `image_s`.
- exposed: DDP sums gradients in buckets, each as soon as backward has come past its layers, one after the other. A
  bucket takes 2(N-1)/N · bytes / the slowest link's rate + latency. What is not done when backward ends is waited for;
  of what went on meanwhile, `1 - hidden` is paid for as well (all of it where the processors that compute also send).
- broadcast: the buffers of batch normalisation, from the first process, once a step.
- batch statistics: on GPUs, for each layer a gathering in the forward pass and a sum in the backward pass.
- noise: each process draws that of whole chunks of 256 images, at most 510 more than its own.
- looks: every quarter of a second all processes gather a few bytes twice, in a ring over TCP.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from aecli.models.base import Autoencoder
from aecli.training.sync import SYNC_INTERVAL_SECONDS

BUCKET_BYTES = (2**20, 25 * 2**20)  # DDP's: of the first, and of those that follow
NOISE_BEYOND = 510  # images: 255 before the first of its own and 255 behind the last


@dataclass(frozen=True)
class Load:
    """What a step exchanges: gradients' `buckets`, each with the share of backward done when it is ready."""

    buckets: tuple[tuple[int, float], ...]
    buffer_bytes: int
    norms: int

    @property
    def gradient_bytes(self) -> int:
        """Bytes of all gradients."""
        return sum(size for size, _ in self.buckets)


@dataclass(frozen=True)
class Machines:
    """What processes run on. Rates in bytes/s and hops in seconds: `inside` a machine of `a_machine`, and `between`."""

    image_s: float
    fixed_s: float
    inside: float
    between: float
    inside_hop_s: float
    between_hop_s: float
    a_machine: int
    hidden: float
    noise_s: float
    look_hop_s: float
    look_seconds: float = SYNC_INTERVAL_SECONDS
    in_trees: bool = True  # latency grows with log2 of the processes, not with their number
    syncs_batchnorm: bool = True

    def hops_s(self, count: int, in_trees: bool) -> float:
        """Latency of passing something once along `count` processes."""
        machines = -(-count // self.a_machine)
        within = min(count, self.a_machine)
        if in_trees:
            return (
                math.ceil(math.log2(within)) * self.inside_hop_s + math.ceil(math.log2(machines)) * self.between_hop_s
            )
        return (count - machines) * self.inside_hop_s + (machines - 1) * self.between_hop_s

    def all_reduce_s(self, size: float, count: int) -> float:
        """Seconds to sum `size` bytes over `count` processes."""
        rate = self.inside if count <= self.a_machine else min(self.inside, self.between)
        return 2 * (count - 1) / count * size / rate + 2 * self.hops_s(count, self.in_trees)


@dataclass(frozen=True)
class Step:
    """A step's seconds, part by part, and how much of the time computes what one process alone would (0 to 1)."""

    compute: float
    exposed: float
    broadcast: float
    statistics: float
    noise: float
    looks: float
    images: int  # of all processes

    @property
    def seconds(self) -> float:
        """All parts."""
        return self.compute + self.exposed + self.broadcast + self.statistics + self.noise + self.looks

    @property
    def images_per_s(self) -> float:
        """Images a second, of all processes."""
        return self.images / self.seconds

    @property
    def efficiency(self) -> float:
        """Images a second against as many processes that share nothing."""
        return self.compute / self.seconds


def load_of(model: Autoencoder, side: int) -> Load:
    """What DDP exchanges for a model: its buckets are filled from the last layer to the first."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, side, side, device=next(model.parameters()).device))
    counts = {name: sum(found.values()) for name, found in counter.get_flop_counts().items()}
    whole, done, size = counter.get_total_flops(), 0, 0
    buckets: list[tuple[int, float]] = []
    layers = [(name, layer) for name, layer in model.named_modules() if next(layer.parameters(False), None) is not None]
    for name, layer in reversed(layers):
        done += counts.get(f"{type(model).__name__}.{name}", 0)
        for parameter in reversed(list(layer.parameters(False))):
            size += parameter.numel() * parameter.element_size()
            if size >= BUCKET_BYTES[min(1, len(buckets))]:
                buckets.append((size, done / whole))
                size = 0
    if size:
        buckets.append((size, 1.0))
    norms = sum(isinstance(layer, torch.nn.BatchNorm2d) for layer in model.modules())
    return Load(tuple(buckets), sum(each.numel() * each.element_size() for each in model.buffers()), norms)


def predict(
    load: Load, machines: Machines, count: int, images: int, gradient_bits: int = 32, accumulate: int = 1
) -> Step:
    """A step of `count` processes, each taking `accumulate` times `images` images."""
    compute = machines.fixed_s + accumulate * images * machines.image_s
    if count == 1:
        return Step(compute, 0.0, 0.0, 0.0, 0.0, 0.0, accumulate * images)
    times = [machines.all_reduce_s(size * gradient_bits / 32, count) for size, _ in load.buckets]
    waited = _waited(times, [share for _, share in load.buckets], 2 / 3 * images * machines.image_s)
    exposed = waited + (1 - machines.hidden) * (sum(times) - waited)
    rate = machines.inside if count <= machines.a_machine else min(machines.inside, machines.between)
    broadcast = load.buffer_bytes / rate + machines.hops_s(count, machines.in_trees)
    statistics = 0.0
    if machines.syncs_batchnorm:
        a_layer = machines.hops_s(count, False) + 2 * machines.hops_s(count, machines.in_trees)
        statistics = accumulate * load.norms * a_layer
    of_all = count * accumulate * images
    noise = accumulate * min(NOISE_BEYOND, of_all - images) * machines.noise_s
    without = compute + exposed + broadcast + statistics + noise
    look = 2 * (count - 1) * machines.look_hop_s
    return Step(
        compute, exposed, broadcast, statistics, noise, look * min(1.0, without / machines.look_seconds), of_all
    )


def _waited(times: Sequence[float], ready: Sequence[float], backward: float) -> float:
    """Seconds for which gradients are waited for after backward; buckets go one by one, each once it is ready."""
    end = 0.0
    for time, share in zip(times, ready, strict=True):
        end = max(end, share * backward) + time
    return max(0.0, end - backward)


def images_for(load: Load, machines: Machines, count: int, efficiency: float, bits: int = 32) -> int | None:
    """The fewest images a process, in powers of two up to 8,192, with which `count` processes are that efficient."""
    tried = (2**power for power in range(14))
    return next((n for n in tried if predict(load, machines, count, n, bits).efficiency >= efficiency), None)


def most_processes(load: Load, machines: Machines, batch: int, efficiency: float, bits: int = 32) -> int:
    """The most processes, in powers of two, that share a batch of `batch` and are that efficient.

    Against one process that takes the whole batch: what is fixed counts as lost too.
    """
    alone, found = machines.fixed_s + batch * machines.image_s, 1
    for count in (2**power for power in range(1, int(math.log2(batch)) + 1)):
        if alone / count / predict(load, machines, count, batch // count, bits).seconds >= efficiency:
            found = count
    return found


@dataclass(frozen=True)
class Fit:
    """Constants of all-reduces, fitted to what was measured on one machine.

    A second of an all-reduce makes a step `paid` seconds longer: 0 where computing hides it, more than 1 where
    processes wait for each other as well.
    """

    bytes_per_s: float
    latency_s: float
    paid: float

    def all_reduce_s(self, count: int, buckets: Sequence[int]) -> float:
        """Seconds to sum the buckets over `count` processes."""
        return 2 * (count - 1) / count * sum(buckets) / self.bytes_per_s + len(buckets) * self.latency_s

    def exposed_s(self, count: int, buckets: Sequence[int]) -> float:
        """Seconds by which summing them makes a step longer."""
        return self.paid * self.all_reduce_s(count, buckets)


def fit(measured: Sequence[dict[str, float | list[int]]]) -> Fit:
    """Fit rate and latency to the all-reduces measured alone, and then how much of them is paid for.

    By least squares on relative errors, so that small exchanges count as much as large ones.
    """
    rows, times, lengthened, sums = [], [], [], []
    for one in measured:
        count, sizes, seconds = one["ranks"], one["buckets"], one["all_reduce_s"]
        rows.append([2 * (count - 1) / count * sum(sizes) / seconds, len(sizes) / seconds])
        times.append(1.0)
        lengthened.append((one["step_s"] - one["apart_s"] - one["broadcast_s"]) / one["apart_s"])
        sums.append(seconds / one["apart_s"])
    (a_byte, latency), *_ = np.linalg.lstsq(np.array(rows), np.array(times), rcond=None)
    if latency < 0:
        latency, a_byte = 0.0, np.linalg.lstsq(np.array(rows)[:, :1], np.array(times), rcond=None)[0][0]
    paid = float(np.dot(lengthened, sums) / np.dot(sums, sums))
    return Fit(1 / float(a_byte), float(latency), max(0.0, paid))

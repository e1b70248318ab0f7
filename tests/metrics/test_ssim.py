import torch
from skimage.data import astronaut

from aecli.metrics.ssim import ssim
from tests.support.vectors import batch

PHOTO = astronaut()


def test_threads_do_not_change_a_bit():
    a, b = batch(*[PHOTO[:200, i : i + 150] for i in range(4)]), batch(*[PHOTO[1:201, i : i + 150] for i in range(4)])
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(ssim(a, b).tolist())
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]

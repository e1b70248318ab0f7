"""FSQ and the EMA codebook, against vector-quantize-pytorch and known answers."""

import math

import pytest
import torch
from torch import Tensor

from aecli.models import registry
from aecli.models.codes import CodeFrequencies, join_channels, split_channels
from aecli.models.ema_vq import DECAY, EMACodebook
from aecli.models.flops import forward_flops
from aecli.models.fsq import FSQ

LEVELS = [8, 5, 5, 5]


@pytest.fixture(scope="module")
def reference():
    return pytest.importorskip("vector_quantize_pytorch")  # seconds, which collecting the tests need not take


def hidden(count: int = 4, channels: int = 8, side: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, channels, side, side, generator=torch.Generator().manual_seed(seed))


def step(model, values, first=0, seed=0):
    """Train its averages on a batch, as training does."""
    torch.manual_seed(seed)
    model.after_step(model.step_sums(model(values).observed, first, len(values)))


class TestFSQ:
    @pytest.mark.parametrize("levels", [LEVELS, [7, 4], [3]])
    def test_codes_and_indices_are_the_reference_s(self, reference, levels):
        values = 2 * hidden(channels=len(levels))
        theirs, indices = reference.FSQ(levels)(values)
        model = FSQ(len(levels), levels)
        torch.testing.assert_close(model(values).latent, theirs)
        assert torch.equal(model.indices(theirs)[:, 0], indices.long())

    def test_gradients_are_the_reference_s(self, reference):
        values = hidden(channels=4).requires_grad_()
        reference.FSQ(LEVELS)(values)[0].square().sum().backward()
        expected, values.grad = values.grad, None
        FSQ(4, LEVELS)(values).latent.square().sum().backward()
        torch.testing.assert_close(values.grad, expected)

    def test_indices_lead_back_to_the_latents(self):
        model = FSQ(8, LEVELS)
        model.prepare([hidden(64)])
        latents = model(hidden()).latent
        assert torch.equal(model.latents(model.indices(latents)), latents)
        everything = torch.arange(1000).view(10, 1, 10, 10).repeat(1, 2, 1, 1)
        assert torch.equal(model.indices(model.latents(everything)), everything)
        assert model.bits == 2 * math.log2(1000)

    def test_normal_values_use_the_codes_evenly_and_lose_little(self):
        values = hidden(128, 4, 32)
        model = FSQ(4, LEVELS)
        model.prepare([values])
        encoded = model(values)
        assert encoded.stats["codebook_usage"] >= 0.9 and encoded.stats["perplexity"] > 900
        loss = (encoded.latent - values).square().mean((0, 2, 3))
        best = torch.tensor([0.0345, 0.0799, 0.0799, 0.0799])  # Lloyd (1982), Max (1960)
        assert (loss < 1.5 * best).all()

    def test_levels_that_no_value_has_are_fitted_by_the_line_of_the_others(self):
        model = FSQ(4, LEVELS)
        model.prepare([hidden(64, 4).clamp(-0.5, 0.5)])
        assert (model.values[:, :5].diff() > 0).all() and model.values.isfinite().all()
        model.prepare([torch.zeros(1, 4, 2, 2)])
        assert model.values.isfinite().all() and model.slope.isfinite().all()

    def test_what_is_no_number_stays_so(self):
        values = hidden()
        values[0, 0, 0, 0] = math.nan
        latents = FSQ(8, LEVELS)(values).latent
        assert latents.isnan().sum() == 1


@pytest.mark.parametrize("cosine", [False, True])
class TestEMACodebook:
    def pair(self, reference, cosine):
        """Ours and the reference, with the same codes."""
        torch.manual_seed(0)
        ours = EMACodebook(8, 16, 1, cosine, 0.25)
        ours.prepare([hidden(16, seed=1)])
        theirs = reference.VectorQuantize(
            8, 16, use_cosine_sim=cosine, decay=DECAY, eps=1e-5, commitment_weight=1.0, accept_image_fmap=True,
            rotation_trick=False, threshold_ema_dead_code=0,
        )  # fmt: skip
        codes = theirs._codebook
        codes.embed.data.copy_(ours.codebook)
        codes.cluster_size.data.copy_(ours.sizes)
        codes.embed_avg.data.copy_(ours.totals)
        return ours, theirs.train(), codes

    def test_codes_after_some_steps_and_the_commitment_loss_are_the_reference_s(self, reference, cosine):
        ours, theirs, codes = self.pair(reference, cosine)
        for number in range(5):
            values = hidden(8, seed=number)
            encoded = ours(values)
            latents, indices, loss = theirs(values)
            assert torch.equal(ours.indices(encoded.latent)[:, 0], indices)
            torch.testing.assert_close(encoded.terms["commitment"], loss.squeeze(), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(encoded.latent, latents * (math.sqrt(8) if cosine else 1), rtol=1e-4, atol=1e-5)
            step(ours, values)
            torch.testing.assert_close(ours.sizes, codes.cluster_size)
            torch.testing.assert_close(ours.totals, codes.embed_avg, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(ours.codebook, codes.embed, rtol=1e-4, atol=1e-5)

    def test_a_batch_may_be_cut_anywhere(self, cosine):
        model, values = EMACodebook(8, 16, 2, cosine, 0.25), hidden(6)
        torch.manual_seed(0)
        whole = model.step_sums(model(values).observed, 0, 6)
        parts = []
        for first, last in ((0, 1), (1, 6)):
            torch.manual_seed(0)
            parts.append(model.step_sums(model(values[first:last]).observed, first, 6))
        for expected, one, other in zip(whole, *parts, strict=True):
            torch.testing.assert_close(one + other, expected)

    def test_dead_codes_become_vectors_of_the_batch(self, cosine):
        model, values = EMACodebook(8, 16, 2, cosine, 0.25), hidden(6)
        model.prepare([values])
        model.codebook[0, 3], model.sizes[0, 3], model.totals[0, 3] = 100, 0, 0
        step(model, values)
        vectors = model(values).observed["vectors"]
        distances = (split_channels(vectors, 2)[0] - model.codebook[0, 3]).abs().amax(1)
        assert distances.min() < 1e-6
        once = model.codebook.clone()
        model.prepare([values])
        assert not torch.equal(model.codebook, once)

    def test_indices_lead_back_to_the_latents(self, cosine):
        model = EMACodebook(8, 16, 2, cosine, 0.25)
        model.prepare([hidden()], torch.arange(1.0, 9.0))
        latents = model(hidden()).latent
        torch.testing.assert_close(model.latents(model.indices(latents)), latents)
        assert model.bits == 8

    def test_k_means_finds_separate_clusters(self, cosine):
        places = torch.eye(8)[:4].repeat(16, 1)
        values = (places + 0.01 * torch.randn(64, 8)).T.reshape(1, 8, 8, 8)
        model = EMACodebook(8, 16, 1, cosine, 0.25)
        model.prepare([values])
        assert model(values).terms["commitment"] < 1e-3


def test_gradients_pass_straight_through_the_codes():
    values = hidden().requires_grad_()
    model = EMACodebook(8, 16, 2, False, 0.25)
    model(values).latent.sum().backward()
    torch.testing.assert_close(values.grad, torch.ones_like(values))


def test_important_channels_are_kept_better():
    importance = torch.tensor([8.0, 1, 1, 1, 1, 1, 1, 1])
    losses = []
    for given in (None, importance):
        model = EMACodebook(8, 64, 1, False, 0.25)
        model.prepare([hidden(32)], given)
        losses.append(((model(hidden(32)).latent - hidden(32)).square().mean((0, 2, 3)) * importance.square()).sum())
    assert losses[1] < 0.5 * losses[0]


def test_usage_and_perplexity_of_known_frequencies():
    frequencies = CodeFrequencies(2, 4)
    frequencies.start(torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0]]))
    stats = frequencies.stats()
    assert stats["codebook_usage"] == 0.75 and float(stats["perplexity"]) == pytest.approx(3)
    for _ in range(100):
        frequencies.update(torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0]]))
    assert float(frequencies.average[0, 1]) == pytest.approx(0.25 * 0.99**100)
    assert frequencies.stats()["codebook_usage"] == 0.75
    assert CodeFrequencies(1, 4).stats()["codebook_usage"] == 0


def test_channels_are_dealt_out_in_turn():
    values = torch.arange(6.0).view(1, 6, 1, 1)
    assert split_channels(values, 2).tolist() == [[[0, 2, 4]], [[1, 3, 5]]]
    assert torch.equal(join_channels(split_channels(hidden(channels=6), 3), hidden(channels=6)), hidden(channels=6))


@pytest.mark.parametrize("bottleneck", ["fsq", "vq"])
def test_flops_are_counted_without_memory(bottleneck):
    options = registry.resolve_options("resnet", {"bottleneck": bottleneck, "width": 4})
    counted = [forward_flops(build("resnet", options), 64) for build in (registry.build, registry.build_on_meta)]
    assert counted[0] == counted[1] > 0

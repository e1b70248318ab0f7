"""The prior over codes: its likelihoods, what it learns, and that sampling follows what it says."""

import itertools

import pytest
import torch

from aecli.errors import ConfigError, ModelError
from aecli.models import registry
from tests.support.objectives import losses


def build(**options):
    torch.manual_seed(0)
    given = {"width": 32, "depth": 2, "heads": 2, "levels": [3, 2], "codebooks": 2, "side": 2, "dropout": 0.0}
    return registry.build("autoregressive", registry.resolve_options("autoregressive", {**given, **options}))


def randomised(model):
    """Give the heads, which begin at 0, weights, so that every digit counts."""
    torch.manual_seed(1)
    for head in model.heads:
        torch.nn.init.normal_(head.weight)
    for block in model.blocks:
        torch.nn.init.normal_(block.attention_out.weight)
        torch.nn.init.normal_(block.mlp[-1].weight, std=0.2)
    torch.nn.init.normal_(model.embedding.weight)
    torch.nn.init.normal_(model.digit_embedding.weight)
    return model.eval()


def test_digits_are_those_of_mixed_radix_and_give_the_code_back():
    model = build(levels=[3, 2, 4], codebooks=2, side=1)
    codes = torch.cartesian_prod(torch.arange(24), torch.arange(24))[:, :, None, None]
    digits = model.whiten(codes)
    assert digits.dtype == torch.int32 and digits.shape == (576, 6, 1, 1)
    # 17 = 2 + 3·(1 + 2·2), 4 = 1 + 3·(1 + 2·0); both codebooks' first digits come first
    assert digits[17 * 24 + 4].flatten().tolist() == [2, 1, 1, 1, 2, 0]
    assert model.unwhiten(digits).equal(codes)


def test_probabilities_of_all_grids_sum_to_one():
    model = randomised(build(levels=[3, 2], codebooks=1, side=2))
    codes = torch.tensor(list(itertools.product(range(6), repeat=4))).view(-1, 1, 2, 2)
    with torch.no_grad():
        likelihoods = model(model.whiten(codes))
    assert likelihoods.shape == (6**4, 1, 2, 2)
    probabilities = likelihoods.double().sum((1, 2, 3)).exp()
    assert float(probabilities.sum()) == pytest.approx(1, abs=1e-5)
    assert float(probabilities.max()) > 4 / 6**4  # and they are not all the same


def test_samples_are_as_frequent_as_their_probabilities():
    model = randomised(build(levels=[3, 2], codebooks=1, side=1))
    every = torch.arange(6).view(-1, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        expected = model(model.whiten(every)).flatten().exp()
        drawn = model.unwhiten(model.sample(torch.randn(20000, 2, 1, 1, generator=generator), 1))
    frequencies = torch.bincount(drawn.flatten(), minlength=6) / 20000
    assert frequencies.tolist() == pytest.approx(expected.tolist(), abs=0.015)


def test_at_temperature_0_each_digit_is_the_likeliest_after_those_before_it():
    model = randomised(build(levels=[5], codebooks=2, side=2))
    with torch.no_grad():
        drawn = model.sample(torch.randn(3, 2, 2, 2), 1, 0.0)
        assert drawn[0].equal(drawn[1]) and drawn[1].equal(drawn[2])
        best = drawn[:1]
        likelihoods = model(best)
        for digit, row, column in itertools.product(range(2), range(2), range(2)):
            others = best.repeat(5, 1, 1, 1)
            others[:, digit, row, column] = torch.arange(5)
            assert (model(others)[:, digit, row, column] <= likelihoods[0, digit, row, column] + 1e-5).all()


def checkerboards(count):
    """Of two checkerboards of codes, with the first twice as often."""
    board = (torch.arange(16).view(4, 4) // 4 + torch.arange(16).view(4, 4)) % 2
    first, second = 3 + 8 * board, 17 - 6 * board  # codes below 20 = 5·4
    return torch.stack([first, second, first])[torch.arange(count) % 3].unsqueeze(1)


def test_it_learns_two_checkerboards_and_draws_nothing_else():
    model = build(levels=[5, 4], codebooks=1, side=4)
    codes = checkerboards(12)
    model.partial_fit(codes)
    model.fit()
    examples = model.whiten(codes)
    start = losses(model, examples).total.item()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, betas=model.betas)
    for _ in range(150):
        loss = losses(model, examples).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    entropy = -(2 / 3 * torch.tensor(2 / 3).log() + 1 / 3 * torch.tensor(1 / 3).log()) / 16  # a code: one choice in 16
    assert start > 1 and loss.item() == pytest.approx(entropy.item(), abs=0.01)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        drawn = model.eval().unwhiten(model.sample(torch.randn(300, 2, 4, 4, generator=generator), 1))
    is_first, is_second = ((drawn == board).flatten(1).all(1) for board in checkerboards(2))
    assert (is_first | is_second).float().mean() > 0.95
    assert 0.58 < float(is_first.float().mean()) < 0.75


def test_it_learns_classes_which_guidance_exaggerates():
    model = build(levels=[6], codebooks=1, side=1, classes=["a", "b"], dropout=0.0)
    # of class a mostly code 1, of b mostly 4, and of both a third of code 0
    codes = torch.tensor([1, 1, 0] * 10 + [4, 4, 0] * 10).view(-1, 1, 1, 1)
    labels = torch.tensor([0] * 30 + [1] * 30)
    model.partial_fit(codes)
    model.fit()
    examples = torch.cat([model.whiten(codes), labels.view(-1, 1, 1, 1).int()], 1)
    assert examples.shape[1:] == model.example_shape(64)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, betas=model.betas)
    for _ in range(120):
        loss = losses(model, examples, model.draw_noise(60, 64)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    every = model.eval().whiten(torch.arange(6).view(-1, 1, 1, 1))

    def probabilities(label):
        return model(every, None if label is None else torch.full((6,), label)).flatten().exp().tolist()

    with torch.no_grad():
        assert probabilities(0) == pytest.approx([1 / 3, 2 / 3, 0, 0, 0, 0], abs=0.12)
        assert probabilities(1) == pytest.approx([1 / 3, 0, 0, 0, 2 / 3, 0], abs=0.12)
        assert probabilities(None) == pytest.approx([1 / 3, 1 / 3, 0, 0, 1 / 3, 0], abs=0.12)
        noise = torch.randn(3000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
        label = torch.ones(3000, dtype=torch.int64)
        plain, guided = (model.sample(noise, 1, 1.0, label, guidance).flatten() for guidance in (1.0, 3.0))
        of_class, of_all = (torch.tensor(probabilities(each)) for each in (1, None))
    exaggerated = of_all * (of_class / of_all) ** 3
    for drawn, expected in ((plain, of_class), (guided, exaggerated / exaggerated.sum())):
        frequencies = torch.bincount(drawn, minlength=6) / 3000
        assert frequencies.tolist() == pytest.approx(expected.tolist(), abs=0.03)


def test_it_begins_with_the_frequencies_of_digits():
    model = build(levels=[4], codebooks=1, side=1)
    codes = torch.tensor([0] * 60 + [2] * 36).view(-1, 1, 1, 1)
    for batch in codes.split(40):
        model.partial_fit(batch)
    model.fit()
    with torch.no_grad():
        found = model.eval()(model.whiten(torch.arange(4).view(-1, 1, 1, 1))).exp().flatten()
    assert found.tolist() == pytest.approx([0.61, 0.01, 0.37, 0.01])  # (n + 1) / 100


def test_one_code_alone_is_refused():
    model = build()
    model.partial_fit(torch.ones(9, 2, 2, 2, dtype=torch.int64))
    with pytest.raises(ModelError, match="the same"):
        model.fit()


@pytest.mark.parametrize(
    "wrong, flag",
    [({"width": 30, "heads": 4}, "--width"), ({"codebooks": 0}, "--option codebooks"), ({"dropout": 1.0}, "dropout"),
     ({"levels": [0, 2]}, "--option levels")],
)  # fmt: skip
def test_options_out_of_range_are_refused(wrong, flag):
    with pytest.raises(ConfigError, match=flag):
        build(**wrong)

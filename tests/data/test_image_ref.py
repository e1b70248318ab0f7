import hashlib

from aecli.data.sources.registry import ImageRef, split_indices


def refs(groups):
    return [ImageRef(f"{index:05d}.png", group, "", bytes) for index, group in enumerate(groups)]


def test_split_follows_the_hash_and_stays_put_when_files_are_added():
    few, many = refs(f"g{i}" for i in range(500)), refs(f"g{i}" for i in range(5000))
    expected = [i for i in range(500) if int(hashlib.sha256(f"g{i}".encode()).hexdigest()[:16], 16) / 2**64 < 0.1]
    train, val = split_indices(few, 0.1)
    assert val == expected
    assert sorted(train + val) == list(range(500))
    assert [index for index in split_indices(many, 0.1)[1] if index < 500] == val
    assert 400 < len(split_indices(many, 0.1)[1]) < 600


def test_split_keeps_groups_whole():
    train, val = split_indices(refs(f"g{i // 7}" for i in range(700)), 0.3)
    assert not {index // 7 for index in train} & {index // 7 for index in val}
    assert len(val) % 7 == 0 and val


def test_split_never_empties_a_side_that_it_can_fill():
    by_hash = sorted("abcd", key=lambda name: hashlib.sha256(name.encode()).digest())
    assert split_indices(refs("abcd"), 1e-9)[1] == ["abcd".index(by_hash[0])]
    assert split_indices(refs("abcd"), 1 - 1e-9)[0] == ["abcd".index(by_hash[-1])]
    assert split_indices(refs("aaa"), 0.999) == ([0, 1, 2], [])
    assert split_indices(refs("aaa"), 1e-9) == ([0, 1, 2], [])
    assert split_indices(refs("abcd"), 0) == ([0, 1, 2, 3], [])
    assert split_indices([], 0.5) == ([], [])

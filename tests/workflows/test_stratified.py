"""GS² sampling: each labelled pixel once an epoch, classes by their quota, and the authors' draws."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from cubeloom.errors import ConfigError, InputError
from cubeloom.models.registry import create_model
from cubeloom.workflows.train.stratified import StratifiedBatches, draw_split, epoch_seed, minibatches


def scattered(sizes, shape=(24, 30), seed=0, dtype=np.uint8):
    """Labels with so many pixels of classes 1, 2, ..., anywhere."""
    labels = np.zeros(shape, dtype)
    where = np.random.default_rng(seed).permutation(labels.size)
    for value, pixels in enumerate(np.split(where, np.cumsum(sizes)[:-1]), 1):
        labels.flat[pixels[: sizes[value - 1]]] = value
    return labels


def counts(labels, batches):
    """Pixels of each class in each batch."""
    return [np.bincount(labels.flat[batch], minlength=labels.max() + 1)[1:].tolist() for batch in batches]


def slow_minibatches(labels, quota, seed):
    """The rule word by word, with lists."""
    draws, queues = np.random.RandomState(seed), []
    for value in sorted(set(labels.ravel().tolist()) - {0}):
        order = [index for index, label in enumerate(labels.ravel().tolist()) if label == value]
        draws.shuffle(order)
        queues.append(order)
    batches = []
    while any(queues):
        batches.append({index for queue in queues for index in queue[:quota]})
        queues = [queue[quota:] for queue in queues]
    return batches


def test_a_class_takes_part_until_its_pixels_are_used():
    labels = scattered((200, 55, 7))
    found = counts(labels, minibatches(labels, 20, 1))
    assert found == [[20, 20, 7], [20, 20, 0], [20, 15, 0], *[[20, 0, 0]] * 7]


@pytest.mark.parametrize("sizes", [(200, 55, 7), (40, 40, 40), (1,), (3, 0, 90, 21)])
@pytest.mark.parametrize("quota", [1, 20, 1000])
def test_an_epoch_holds_each_labelled_pixel_once(sizes, quota):
    labels = scattered(sizes)
    batches = minibatches(labels, quota, 5)
    assert sorted(np.concatenate(batches).tolist()) == np.flatnonzero(labels).tolist()
    assert len(batches) == -(-max(sizes) // quota)
    assert [set(batch.tolist()) for batch in batches] == slow_minibatches(labels, quota, 5)


def test_equal_classes_are_in_every_batch():
    labels = scattered((60, 90, 400))
    train, _ = draw_split(labels, 60)
    assert counts(labels, minibatches(np.where(train, labels, 0), 20, 3)) == [[20, 20, 20]] * 3


def test_padding_and_type_change_nothing():
    labels = scattered((60, 90, 33))
    padded = np.pad(labels, ((0, 8), (0, 2)))
    places = [
        {divmod(index, array.shape[1]) for index in minibatches(array, 20, 9)[1].tolist()}
        for array in (labels, padded, labels.astype(np.int64), np.asfortranarray(labels))
    ]
    assert places[0] == places[1] == places[2] == places[3]


def test_seeds_are_those_of_the_authors():
    """They take 1434242557 when the loader is made, and drop it."""
    assert epoch_seed(0) == 613358221
    assert len({epoch_seed(epoch) for epoch in range(50)}) == 50
    assert epoch_seed(9998) == epoch_seed(0) != epoch_seed(9997)
    assert epoch_seed(0, seed=1) != epoch_seed(0)


def test_an_epoch_is_its_mini_batches_in_another_order():
    labels = scattered((200, 55, 7))
    batches = StratifiedBatches(labels)
    for number in range(3):
        made = {tuple(batch) for batch in minibatches(labels, 20, epoch_seed(number))}
        assert {tuple(batch) for batch in batches.epoch(number)} == made
    assert len(batches) == 10
    orders = [[len(batch) for batch in batches.epoch(number)] for number in range(3)]
    assert orders[0] != orders[1] != orders[2]
    generator = torch.Generator().manual_seed(2333)
    sizes = [len(batch) for batch in minibatches(labels, 20, 0)]
    assert orders == [[sizes[index] for index in torch.randperm(10, generator=generator)] for _ in range(3)]


def test_steps_go_on_anywhere():
    batches = StratifiedBatches(scattered((70, 30)), quota=20)
    whole = [batch for number in range(3) for batch in batches.epoch(number)]
    assert len(batches) == 4
    for start in (0, 3, 4, 6):
        for step, batch in zip(range(start, 12), batches.steps(start), strict=False):
            assert np.array_equal(batch, whole[step])


def test_draws_follow_the_seed_alone():
    labels = scattered((200, 55, 7))
    for draw in (
        lambda seed: draw_split(labels, 20, seed)[0],
        lambda seed: np.concatenate(minibatches(labels, 20, seed)),
        lambda seed: np.concatenate(StratifiedBatches(labels, seed=seed).epoch(2)),
    ):
        np.random.seed(4)  # noqa: NPY002 - the global stream must not matter, nor be moved
        torch.manual_seed(4)
        first = draw(7)
        assert np.random.randint(2**30) == np.random.RandomState(4).randint(2**30)  # noqa: NPY002
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(4)))
        assert np.array_equal(first, draw(7))
        assert not np.array_equal(first, draw(8))


def test_split_caps_classes_and_small_ones_only_train():
    labels = scattered((300, 55, 200, 201), (30, 30))
    train, test = draw_split(labels)
    assert not (train & test).any()
    assert np.array_equal(train | test, labels > 0)
    assert np.bincount(labels[train], minlength=5).tolist() == [0, 200, 55, 200, 200]
    assert np.bincount(labels[test], minlength=5).tolist() == [0, 100, 0, 0, 1]
    assert set(np.flatnonzero(train).tolist()) == slow_minibatches(labels, 200, 2333)[0]


def test_labels_are_left_as_they_are():
    labels = scattered((60, 40))
    before = labels.copy()
    draw_split(labels, 10)
    StratifiedBatches(labels).epoch(0)
    assert np.array_equal(labels, before)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.zeros((4, 4), np.uint8), "values 0 to 0"),
        (np.full((4, 4), -1), "values -1 to -1"),
        (np.ones((4, 4)), r"float64 \(4, 4\)"),
        (np.ones(4, np.uint8), r"uint8 \(4,\)"),
        (np.ones((0, 4), np.uint8), r"\(0, 4\) pixels"),
    ],
)
def test_labels_of_another_kind_are_refused(labels, words):
    for use in (draw_split, StratifiedBatches):
        with pytest.raises(InputError, match=words):
            use(labels)


def test_numbers_below_one_are_refused():
    labels = scattered((10, 10))
    with pytest.raises(ConfigError, match="per_class is at least 1; found 0"):
        draw_split(labels, 0)
    with pytest.raises(ConfigError, match="quota is at least 1; found -3"):
        StratifiedBatches(labels, quota=-3)


def test_freenet_learns_from_the_batches():
    """Four stripes of their own spectra with noise; a tenth of the pixels train, the others are judged."""
    torch.manual_seed(0)
    height, width = 20, 28
    truth = torch.arange(1, 5).repeat_interleave(width // 4).expand(height, width)
    spectra = torch.randn(5, 6)
    x = (spectra[truth] + torch.randn(height, width, 6)).permute(2, 0, 1)[None]
    labels = truth.numpy()
    train, test = draw_split(labels, 15)
    network = create_model("freenet", in_channels=6, num_classes=4, width=0.25).train()
    optimiser = torch.optim.SGD(network.parameters(), 0.02, momentum=0.9, weight_decay=1e-3)
    target = torch.from_numpy(labels.ravel() - 1)
    for _, batch in zip(range(40), StratifiedBatches(np.where(train, labels, 0), quota=5).steps(), strict=False):
        pixels = torch.from_numpy(batch)
        loss = functional.cross_entropy(network(x)[0].flatten(1)[:, pixels].T, target[pixels])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.inference_mode():
        found = network.eval().for_inference()(x)[0].argmax(0).numpy() + 1
    assert (found == labels)[test].mean() > 0.9

"""Networks at work: one load a process, the same numbers in any batch, and a way down where memory runs out."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import torch

from cubeloom.errors import ConfigError, ModelError
from cubeloom.models.registry import create_model, model_card
from cubeloom.pipeline import inference
from cubeloom.pipeline.inference import ModelHandle, Rung, activation_bytes, climb_down, ladder, predict
from cubeloom.pipeline.passes import threads_of


@pytest.fixture
def handle(save_toy):
    """A factory of handles of toy networks."""

    def make(**settings):
        saved = save_toy("toy", settings)
        return ModelHandle(saved.model, saved.weights, model_card(saved.model, saved.weights).sha256)

    return make


def samples(count, seed=0, shape=(1, 5, 16, 12)):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)


def test_it_is_what_the_network_gives(handle):
    one = handle()
    x, valid = samples(3), np.ones((3, 16, 12), bool)
    valid[1, :5] = False
    made, how = predict(one, x, valid)
    with torch.inference_mode():
        expected = create_model(one.name, one.weights)(torch.from_numpy(x), torch.from_numpy(valid)).numpy()
    np.testing.assert_allclose(made, expected, atol=1e-6)
    assert (how.device, how.precision, how.wanted) == ("cpu", "float32", "")


@pytest.mark.parametrize("count", [1, 5])
def test_threads_change_no_bit(handle, count):
    one, x = handle(), samples(count)
    valid = np.random.default_rng(1).random((count, 16, 12)) > 0.2
    expected, how = predict(one, x, valid)
    shared, same = predict(one, x, valid, threads=3)
    np.testing.assert_array_equal(shared, expected)
    assert same == how


@pytest.mark.parametrize(("groups", "workers"), [(0, 2), (1, 1), (1, 4), (8, 4), (9, 2), (11, 4), (3, 16)])
def test_the_last_groups_of_tiles_share_all_workers(groups, workers):
    threads = threads_of(groups, workers)
    last = groups % workers
    assert len(threads) == groups
    assert threads[: groups - last] == [1] * (groups - last)
    assert workers - last < sum(threads[groups - last :]) <= workers or not last


def test_threads_share_one_network(handle):
    one = handle()
    barrier = threading.Barrier(4)

    def load(_):
        barrier.wait()
        return one.load("cpu")

    with ThreadPoolExecutor(4) as pool:
        networks = list(pool.map(load, range(4)))
    assert len({id(network) for network in networks}) == 1
    assert not any(parameter.requires_grad for parameter in networks[0].parameters())
    assert not networks[0].training


def test_a_handle_travels_light(handle):
    one = handle()
    one.load("cpu")
    packed = cloudpickle.dumps(one)
    assert len(packed) < 1000
    assert cloudpickle.loads(packed) == one


def test_few_networks_stay_loaded(handle):
    handles = [handle(shared=share / 10) for share in range(inference.MODELS_HELD + 2)]
    for one in handles:
        one.load("cpu")
    assert len(inference._LOADED) <= inference.MODELS_HELD


def test_weights_that_change_under_a_run_are_refused(handle, save_toy):
    one = handle()
    other = Path(save_toy("toy", {"in_channels": 2}).weights)
    Path(one.weights).with_suffix(".card.json").write_bytes(other.with_suffix(".card.json").read_bytes())
    Path(one.weights).write_bytes(other.read_bytes())
    with pytest.raises(ModelError, match="changed while the run was using them"):
        one.load("cpu")


def test_the_ladder_halves_and_then_takes_the_next_device(monkeypatch):
    monkeypatch.setattr(inference, "LARGEST_BATCH", {"cuda": 8, "cpu": 1})
    assert ladder(100, ("cuda", "cpu")) == [Rung("cuda", b) for b in (8, 4, 2, 1)] + [Rung("cpu", 1)]
    assert ladder(3, ("cuda", "cpu")) == [Rung("cuda", 3), Rung("cuda", 1), Rung("cpu", 1)]


def test_climbing_down_ends_where_memory_suffices():
    tried = []

    def run(rung):
        tried.append(rung)
        if rung.device == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return np.zeros(1, np.float32)

    rungs = [Rung("cuda", 2), Rung("cuda", 1), Rung("cpu", 1)]
    _, rung = climb_down(rungs, run)
    assert rung == Rung("cpu", 1)
    assert tried == rungs
    assert climb_down(rungs[:2], run)[0] is None


def test_errors_that_are_not_of_memory_are_not_swallowed():
    def run(rung):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        climb_down([Rung("cpu", 1)], run)


def test_a_smaller_batch_gives_the_same_and_is_remembered(handle, monkeypatch):
    monkeypatch.setattr(inference, "LARGEST_BATCH", {"cuda": 8, "cpu": 8})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    plenty, scarce = handle(), handle(most=2)
    x = samples(7)
    expected, how = predict(plenty, x, None)
    assert (how.batch, how.wanted) == (7, "")
    made, how = predict(scarce, x, None)
    assert (how.device, how.batch, how.wanted) == ("cpu", 1, "cpu x7")
    np.testing.assert_allclose(made, expected, atol=1e-6)
    sizes = []
    network = scarce.load("cpu")
    monkeypatch.setattr(network, "forward", lambda x, valid=None: sizes.append(len(x)) or x[:, :1])
    predict(scarce, x, None)
    assert sizes == [1] * 7, "what did not fit is not tried again for every tile"


def test_what_fits_nowhere_is_told_with_its_size(handle):
    with pytest.raises(ConfigError, match=r"one tile of 1 x 5 x 16 x 12 does not fit the memory, not even on cpu x1"):
        predict(handle(most=0), samples(2), None)


def test_a_network_that_gives_no_numbers_is_refused(handle):
    one = handle(shared=float("1e38"))
    with pytest.raises(ModelError, match="gives NaN or infinity for finite input, computed in float32"):
        predict(one, 1e10 * np.abs(samples(1)), None)


def test_each_thread_computes_on_one_thread_and_others_are_left_alone(handle):
    one = handle()
    before = torch.get_num_threads()

    def count():
        predict(one, samples(1), None)
        return torch.get_num_threads()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(count).result() == 1
    assert torch.get_num_threads() == before


def test_measured_memory_is_that_of_the_tensors(handle):
    """The convolution's output, 0.3 times it, the difference and the rest: some images of 5 bands, far from 100."""
    small = activation_bytes(handle(), (1, 5), 4)
    large = activation_bytes(handle(in_channels=2), (2, 50), 4)
    image = 4 * 5
    assert 2 * image < small < 8 * image
    assert 8 < large / small < 15


def test_large_tensors_ask_for_huge_pages(monkeypatch):
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "0")
    inference._ask_for_huge_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "0", "whoever has decided otherwise is heard"
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    inference._ask_for_huge_pages()
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"

"""The spectral adapter: keys and depths by their table, products beside convolutions, gradients beside float64."""

import copy

import pytest
import torch
from torch import nn

from cubeloom.errors import ModelError
from cubeloom.models import spectral_adapter, spectral_adapter_training
from cubeloom.models.spectral_adapter import LAYERS, SpectralAdapter, bands_seen, output_depth, products

DEPTHS = {202: (40, 8, 2), 235: (47, 9, 3), 198: (39, 7, 2), 150: (30, 6, 2)}
"""Bands after each convolution for EnMAP, DESIS, EO-1 and Intuition-1."""


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def lively():
    """An adapter in eval mode whose every weight and statistic matters, with normalisations of both signs and zero."""
    adapter = SpectralAdapter().eval()
    for name, values in adapter.state_dict().items():
        if name.endswith("running_var"):
            values.copy_(torch.rand_like(values) + 0.3)
        elif values.is_floating_point() and values.ndim == 1:
            values.copy_(torch.randn_like(values) * 0.5)
    adapter[1].weight.data[0] = 0
    return adapter


def convolved(adapter, x):
    """The adapter layer by layer, by three-dimensional convolutions."""
    return nn.Sequential.forward(adapter, x[:, None]).squeeze(2)


def gradients(adapter, x, forward, of_x=True):
    """Of a sum in which every value has another weight, by all parameters and the input, where it is asked for."""
    x = x.clone().requires_grad_(of_x)
    y = forward(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    found = {name: value.grad for name, value in adapter.named_parameters()}
    return found | {"x": x.grad} if of_x else found


def test_keys_are_those_of_the_published_checkpoints():
    adapter = SpectralAdapter()
    expected = {}
    for index, shape in ((0, (32, 1, 7, 1, 1)), (3, (64, 32, 7, 1, 1)), (6, (128, 64, 5, 1, 1))):
        expected |= {f"{index}.weight": shape, f"{index}.bias": shape[:1]}
        norm = ("weight", "bias", "running_mean", "running_var")
        expected |= {f"{index + 1}.{name}": shape[:1] for name in norm} | {f"{index + 1}.num_batches_tracked": ()}
    assert {key: tuple(value.shape) for key, value in adapter.state_dict().items()} == expected
    assert sum(value.numel() for value in adapter.parameters()) == 56_192


@pytest.mark.parametrize("bands", DEPTHS)
def test_depths_are_those_of_the_paper(bands):
    depths, y = [], torch.zeros(1, 1, bands, 1, 1)
    for index, (_, _, kernel, stride) in enumerate(LAYERS):
        y = SpectralAdapter()[3 * index](y)
        depths.append(output_depth(depths[-1] if depths else bands, kernel, stride))
        assert depths[-1] == y.shape[2]
    assert tuple(depths) == DEPTHS[bands]


@pytest.mark.parametrize("bands", [75, 76, 150, 198, 202, 224, 235])
def test_products_are_convolutions(bands):
    adapter, x = lively(), torch.randn(2, bands, 5, 7)
    with torch.inference_mode():
        expected = convolved(adapter, x)
        assert expected.shape == (2, 128, 5, 7)
        for form in (adapter, adapter.for_inference()):
            torch.testing.assert_close(form(x), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(adapter.train()(x), convolved(adapter, x), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("training", "of_x"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("piece", [5, 1024])
def test_gradients_are_those_of_convolutions_in_float64(monkeypatch, training, of_x, piece):
    """With the gradient of the cube and without, which go different ways."""
    monkeypatch.setattr(spectral_adapter_training, "PIECE", piece)
    adapter, x = lively().train(training), torch.randn(2, 202, 3, 4)
    slow, exact = copy.deepcopy(adapter).double(), copy.deepcopy(adapter).double()
    expected = gradients(slow, x.double(), lambda values: convolved(slow, values), of_x)
    for key, value in gradients(exact, x.double(), exact, of_x).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-9, atol=1e-11)
    for key, value in gradients(adapter, x, adapter, of_x).items():
        # Batch statistics cancel the biases of convolutions, so what is left of their gradients is rounding.
        largest = max(float(expected[one].abs().max()) for one in (key, key.replace("bias", "weight")))
        torch.testing.assert_close(value.double(), expected[key], rtol=0, atol=2e-5 * largest)
    for key, value in slow.state_dict().items():
        torch.testing.assert_close(exact.state_dict()[key], value)


@pytest.mark.parametrize("stride", [2, 3, 5])
def test_gradients_are_those_of_small_changes(stride):
    arrays = (torch.randn(2, 8, 2, 3), torch.randn(3, 2, 5), torch.randn(3))
    arrays = tuple(array.double().requires_grad_() for array in arrays)
    assert torch.autograd.gradcheck(lambda *of: products(*of, stride), arrays)


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("of_x", [True, False])
def test_running_statistics_are_those_of_the_normalisations(momentum, of_x):
    adapter = lively().train()
    for index in (1, 4, 7):
        adapter[index].momentum = momentum
    slow = copy.deepcopy(adapter)
    for _ in range(3):
        x = torch.randn(2, 90, 3, 5).requires_grad_(of_x)
        torch.testing.assert_close(adapter(x), convolved(slow, x), rtol=0, atol=1e-5)
    for key, value in slow.state_dict().items():
        torch.testing.assert_close(adapter.state_dict()[key], value)


def frozen(adapter):
    adapter[4].eval()


def untracked(adapter):
    adapter[4] = nn.BatchNorm3d(64, track_running_stats=False)


def unweighted(adapter):
    adapter[4] = nn.BatchNorm3d(64, affine=False)


@pytest.mark.parametrize("change", [frozen, untracked, unweighted])
def test_normalisations_that_were_changed_by_hand(change):
    adapter, x = lively().train(), torch.randn(2, 90, 3, 4)
    change(adapter)
    slow = copy.deepcopy(adapter)
    expected = gradients(slow, x, lambda values: convolved(slow, values), False)
    for key, value in gradients(adapter, x, adapter, False).items():
        torch.testing.assert_close(value, expected[key], rtol=0, atol=1e-3 * max(1, float(expected[key].abs().max())))
    for key, value in slow.state_dict().items():
        torch.testing.assert_close(adapter.state_dict()[key], value)


def test_weights_that_learn_nothing_may_stand_beside_others():
    adapter, x = lively().train(), torch.randn(1, 90, 3, 4)
    adapter[3].requires_grad_(False)
    slow = copy.deepcopy(adapter).requires_grad_(True)
    (adapter(x) ** 2).sum().backward()
    (convolved(slow, x) ** 2).sum().backward()
    assert adapter[3].weight.grad is None
    torch.testing.assert_close(adapter[0].weight.grad, slow[0].weight.grad, rtol=1e-3, atol=1e-3)


def test_data_have_no_gradient_unless_asked():
    x = torch.randn(1, 75, 2, 2)
    SpectralAdapter()(x).sum().backward()
    assert x.grad is None


def test_inference_reads_the_bands_that_reach_the_output():
    assert [bands_seen(bands) for bands in (75, 198, 202, 224, 235)] == [75, 181, 181, 181, 231]
    adapter, x = lively(), torch.randn(1, 202, 2, 3)
    beyond, last = x.clone(), x.clone()
    beyond[:, 181:] += 5
    last[:, 180] += 5
    with torch.inference_mode():
        assert torch.equal(convolved(adapter, beyond), convolved(adapter, x))
        assert not torch.equal(convolved(adapter, last), convolved(adapter, x))
        for form in (adapter, adapter.for_inference()):
            assert torch.equal(form(beyond), form(x))
            assert not torch.equal(form(last), form(x))
        assert not torch.equal(adapter.train()(beyond), adapter(x))


def test_pieces_do_not_show(monkeypatch):
    folded, x = lively().for_inference(), torch.randn(2, 202, 9, 11)
    with torch.inference_mode():
        whole = folded(x)
        for piece in (1, 7, 98):
            monkeypatch.setattr(spectral_adapter, "PIECE", piece)
            torch.testing.assert_close(folded(x), whole)


def test_folding_leaves_the_adapter_as_it_was():
    adapter, x = lively().train(), torch.randn(1, 90, 3, 3)
    before = {key: value.clone() for key, value in adapter.state_dict().items()}
    folded = adapter.for_inference()
    assert adapter.training
    with torch.inference_mode():
        first = folded(x)
        adapter[0].weight.add_(1)
        assert torch.equal(folded(x), first)
        adapter[0].weight.copy_(before["0.weight"])
    assert all(torch.equal(value, before[key]) for key, value in adapter.state_dict().items())


def test_pixels_do_not_meet():
    adapter, x = lively(), torch.randn(2, 202, 4, 5)
    order = torch.randperm(20)
    with torch.inference_mode():
        for form in (adapter, adapter.for_inference()):
            moved = form(x.flatten(2)[..., order].view(x.shape))
            torch.testing.assert_close(moved.flatten(2), form(x).flatten(2)[..., order])


def test_half_precision_is_near():
    adapter, x = lively(), torch.randn(1, 202, 4, 4)
    with torch.no_grad():
        expected = adapter(x)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = adapter(x)
        halves = copy.deepcopy(adapter).bfloat16()
        for found in (mixed, halves(x.bfloat16()), halves.for_inference()(x.bfloat16())):
            assert (found - expected).square().mean() < 1e-3 * expected.square().mean()


def test_autocast_trains_as_convolutions_do():
    adapter, x = lively().train(), torch.randn(2, 202, 4, 4)
    slow = copy.deepcopy(adapter)
    for forward in (adapter, lambda values: convolved(slow, values)):
        with torch.autocast("cpu", torch.bfloat16):
            y = forward(x)
        y.float().square().sum().backward()
    for index in (0, 3, 6):
        found, expected = adapter[index].weight.grad.flatten(), slow[index].weight.grad.flatten()
        assert torch.nn.functional.cosine_similarity(found, expected, 0) > 0.98


def test_synchronised_normalisation_keeps_keys_and_function():
    adapter, x = lively(), torch.randn(1, 202, 2, 2)
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(adapter)).eval()
    assert list(synchronised.state_dict()) == list(adapter.state_dict())
    assert isinstance(synchronised[1], nn.SyncBatchNorm)
    with torch.inference_mode():
        torch.testing.assert_close(synchronised(x), adapter(x))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.rand(202, 4, 4), r"\(N, bands, H, W\); found \(202, 4, 4\)"),
        (torch.ones(1, 202, 4, 4, dtype=torch.int16), "of int16"),
        (torch.rand(1, 74, 4, 4), "at least 75 bands; found 74"),
    ],
)
def test_input_that_does_not_fit_is_refused(x, words):
    for form in (SpectralAdapter(), SpectralAdapter().for_inference()):
        with pytest.raises(ModelError, match=words):
            form(x)

"""Harmonics are those of mathematics, at every degree; a head learns from where a tile lies."""

import math

import numpy as np
import pytest
import torch
from scipy.special import sph_harm_y, sph_legendre_p
from torch import nn

from cubeloom.models.location import LocatedHead, LocationEncoder, SirenNet, legendre, spherical_harmonics


def angles(n: int = 200) -> np.ndarray:
    """From pole to pole, both included."""
    return np.concatenate([[0, 1e-7, np.pi / 2, np.pi], np.random.default_rng(0).uniform(0, np.pi, n)])


def places(n: int, seed: int = 0) -> torch.Tensor:
    draw = np.random.default_rng(seed)
    return torch.tensor(np.stack([draw.uniform(-180, 180, n), np.degrees(np.arcsin(draw.uniform(-1, 1, n)))], 1))


def test_legendre_functions_are_those_of_scipy_up_to_degree_40():
    theta = angles()
    found = legendre(torch.tensor(np.cos(theta)), torch.tensor(np.sin(theta)).clamp(min=0), 41).numpy()
    for degree in range(41):
        for order in range(41):
            expected = sph_legendre_p(degree, order, theta)[0] if order <= degree else 0
            np.testing.assert_allclose(found[:, degree, order], expected, rtol=0, atol=1e-10)


def test_harmonics_are_those_of_scipy_in_the_authors_order():
    lonlat = places(60)
    phi, theta = np.radians(lonlat.numpy() + np.array([180, 90])).T
    found = spherical_harmonics(lonlat, 12).numpy()
    at = 0
    for degree in range(12):
        for order in range(-degree, degree + 1):
            complex_one = sph_harm_y(degree, abs(order), theta, phi)
            part = complex_one.imag if order < 0 else complex_one.real
            expected = part * (math.sqrt(2) if order else 1)
            np.testing.assert_allclose(found[:, at], expected, atol=1e-12, err_msg=f"{degree}, {order}")
            at += 1
    assert at == found.shape[1] == 144
    assert found[0, 0] == pytest.approx(0.28209479177)


@pytest.mark.parametrize("degrees", [8, 40])
def test_harmonics_are_orthonormal(degrees):
    """By Gauss-Legendre quadrature in latitude and equal steps in longitude, which is exact for these."""
    nodes, weights = np.polynomial.legendre.leggauss(degrees)
    longitude = np.arange(2 * degrees) * 180 / degrees - 180
    grid = np.stack(np.meshgrid(longitude, np.degrees(np.arcsin(nodes))), -1).reshape(-1, 2)
    values = spherical_harmonics(torch.tensor(grid), degrees).numpy()
    weight = np.repeat(weights, 2 * degrees) * np.pi / degrees
    np.testing.assert_allclose(values.T @ (values * weight[:, None]), np.eye(degrees**2), atol=1e-10)


def test_high_degrees_are_finite_everywhere():
    lonlat = torch.tensor([[0.0, 90.0], [0.0, -90.0], [180.0, 0.0], [-180.0, 0.0], [12.5, 89.9999]])
    values = spherical_harmonics(lonlat, 120)
    assert torch.isfinite(values).all()
    torch.testing.assert_close(values[2], values[3])  # the date line is no edge
    powers = (values.double() ** 2).sum(-1)  # Unsoeld's theorem
    torch.testing.assert_close(powers, torch.full_like(powers, 120**2 / (4 * math.pi)), rtol=1e-9, atol=0)


def test_keys_and_sizes_are_those_of_the_authors():
    encoder = LocationEncoder(7, degrees=10, hidden=64, layers=2)
    assert {key: tuple(value.shape) for key, value in encoder.state_dict().items()} == {
        "neural_network.layers.0.weight": (64, 100),
        "neural_network.layers.0.bias": (64,),
        "neural_network.layers.1.weight": (64, 64),
        "neural_network.layers.1.bias": (64,),
        "neural_network.last_layer.weight": (7, 64),
        "neural_network.last_layer.bias": (7,),
    }
    for number, bound in ((0, 1 / 100), (1, math.sqrt(6 / 64))):
        weight = encoder.neural_network.layers[number].weight
        assert 0.9 * bound < weight.abs().max() <= bound


def test_sines_follow_the_formula():
    network = SirenNet(3, 4, 2, 2)
    x = torch.randn(5, 3)
    first, second = network.layers
    hidden = torch.sin(30 * (x @ first.weight.T + first.bias))
    hidden = torch.sin(hidden @ second.weight.T + second.bias)
    last = network.last_layer
    torch.testing.assert_close(network(x), hidden @ last.weight.T + last.bias)


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3, 5)])
def test_a_located_head_adds_the_place_to_its_input(shape):
    head = nn.Linear(6, 3) if len(shape) == 2 else nn.Conv2d(6, 3, 1)
    located, features, lonlat = (
        LocatedHead(head, LocationEncoder(6, degrees=4, hidden=8)),
        torch.randn(shape),
        places(4),
    )
    torch.testing.assert_close(located(features, lonlat), head(features))  # before any training
    nn.init.normal_(located.encoder.neural_network.last_layer.weight)
    added = located.encoder(lonlat).reshape(4, 6, *[1] * (len(shape) - 2))
    torch.testing.assert_close(located(features, lonlat), head(features + added))
    assert not torch.allclose(located(features, lonlat), head(features))
    torch.testing.assert_close(located(features), head(features))


def test_it_learns_what_only_the_place_tells():
    torch.manual_seed(0)
    located = LocatedHead(nn.Identity(), LocationEncoder(2, degrees=6, hidden=32))
    lonlat = places(600)
    target = ((lonlat[:, 0] > 0) ^ (lonlat[:, 1] > 0)).long()  # quarters of the globe
    image = torch.zeros(600, 2)
    optimiser = torch.optim.Adam(located.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(located(image, lonlat), target)
        loss.backward()
        optimiser.step()
    fresh = places(500, seed=1)
    truth = ((fresh[:, 0] > 0) ^ (fresh[:, 1] > 0)).long()
    assert (located(torch.zeros(500, 2), fresh).argmax(1) == truth).float().mean() > 0.9


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        LocationEncoder(0)

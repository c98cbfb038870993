"""A network on component images: what the scene's bands share, strongest first, all with noise of variance 1.

The component images are those of the method `subspace`. Image k, of variance s_k**2, is given to the network as
u_k = z_k / s_k, and beside it, where the network takes a noise level, a map of what the noise is in u_k: strength /
s_k. A network whose correction is in units of the noise gives z_k + strength (f(u)_k - u_k), others s_k f(u)_k.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.scene import SceneSpec
from cubeloom.pipeline.tiles import FloatImages, Lattice, padded

from . import inpaint
from .base import Stats
from .components import SignalPasses, components, require_bands, restored, spread_of
from .denoise_network import NetworkMethod, Sample
from .spectra import known_pixels
from .subspace import MAX_RANK

_BY_COMPONENT = ("basis", "variance", "inflation")


@dataclass(frozen=True)
class EigenImages(NetworkMethod):
    """The method `network` for cards with the transform `eigenimages`."""

    @property
    def passes(self) -> int:
        """Those that find the subspace."""
        return self._signal.count

    def require(self, spec: SceneSpec) -> None:
        """Check wavelengths, units, and that the bands make a subspace.

        Raises:
            InputError: too few good bands, or a rank that they do not have.
            ModelError: the scene is not of the kind that the network was trained on.
        """
        super().require(spec)
        require_bands(spec, self.rank)

    def measure(self, block: Block, stats: Stats, number: int) -> Stats:
        """Sums that give the subspace."""
        return self._signal.measure(block, stats, number)

    def settle(self, sums: Stats, stats: Stats, number: int, spec: SceneSpec) -> Stats:
        """The subspace; of its directions as many of the strongest as the network takes.

        Raises:
            InputError: too few pixels have a value in every good band.
        """
        settled = self._signal.settle(sums, stats, number, spec)
        if "basis" not in settled:
            return settled
        kept = slice(self._most(spec))
        return {**settled, **{name: settled[name][..., kept] for name in _BY_COMPONENT if name in settled}}

    @property
    def _signal(self) -> SignalPasses:
        return SignalPasses(self.rank, self.outliers)

    def _most(self, spec: SceneSpec) -> int:
        return min(self.card.bands or MAX_RANK, int(spec.bands.good.sum()))

    def images(self, spec: SceneSpec, stats: Stats) -> int:
        """The components."""
        return int(stats["variance"].size) if stats else self._most(spec)

    def sample_shape(self, spec: SceneSpec) -> tuple[int, int, int]:
        """One sample, of all components."""
        return 1, 1 + self.card.sigma_input, self._most(spec)

    def sample(self, tile: Block, stats: Stats, lattice: Lattice) -> Sample | None:
        """The component images, filled under the mask, each of variance 1, and their noise."""
        images, known, _ = components(tile, stats)
        if not known.any():
            return None
        spread = _spread(stats)
        u = padded(inpaint.nearest(images, known), lattice.shape) / spread
        inputs = np.empty((1, 1 + self.card.sigma_input, *u.shape), np.float32)
        inputs[0, 0] = u
        if self.card.sigma_input:
            inputs[0, 1] = np.float32(self.strength) / spread
        return Sample(inputs, known)

    def result(self, sample: Sample, made: FloatImages, stats: Stats) -> FloatImages:
        """The denoised component images."""
        rows, cols = (slice(size) for size in sample.known.shape)
        u, answer = sample.inputs[0, 0, :, rows, cols], made[0, :, rows, cols]
        spread, strength = _spread(stats), np.float32(self.strength)
        change = answer - u
        if not self.card.residual_in_sigma:
            change *= spread
            return u * spread + (change if self.card.sigma_input else strength * change)
        return u * spread + strength * change

    def deviation(self, images: FloatImages, stats: Stats) -> FloatImages:
        """The bands' part in such a difference of component images."""
        mixing = (stats["basis"] * stats.get("inflation", 1.0) * stats["sigma"][:, None]).astype(np.float32)
        bands: FloatImages = (mixing @ images.reshape(len(images), -1)).reshape(-1, *images.shape[1:])
        return bands

    def spectra(self, block: Block, images: FloatImages, stats: Stats) -> FloatImages:
        """The spectra of the denoised components."""
        return restored(block, stats, images, block.window, known_pixels(block))


def _spread(stats: Stats) -> npt.NDArray[np.float32]:
    """Standard deviation of every component, noise included, `(K, 1, 1)`."""
    return spread_of(stats).astype(np.float32)[:, None, None]

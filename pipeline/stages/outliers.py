"""Outliers of a scene: dead and saturated elements, impulses, dead columns and stripes, told from noise.

What the noise of a band does not explain must not enter the scene's subspace, nor the fit of a pixel's spectrum. It is
found in turns, a kind of robust principal component analysis. Each turn has a reference for every value: first the
median of the neighbouring bands, then a fit of few components, then of all that rise above noise. The residuals of a
band are a mixture of its noise and of some values from anywhere, whose parameters expectation maximisation gives;
what is rather the latter is an outlier, and is left out of the next fit. A number that a band repeats far more often
than the numbers next to it is no measurement, and a column whose residuals have a mean that chance does not give is an
outlier as a whole. (For mixed noise in a subspace see also Zhuang and Ng, "Hyperspectral mixed noise removal by
l1-norm-based subspace representation", IEEE JSTARS 13, 2020.)
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cubeloom.errors import InputError
from cubeloom.pipeline.blocks import Block
from cubeloom.pipeline.scene import BoolArray, FloatArray, SceneSpec

from .base import Stats
from .histograms import bin_centres, quantiles, value_histograms
from .spectra import packing_noise, spectra_of
from .subspace import Rank, Subspace, estimate_subspace

FloatSpectra = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]

PASSES = 6
"""Repeated numbers; then, for each of the first two references, its residuals, and the covariance without outliers;
then the residuals of the last one."""

_TURNS = 3
_COARSE_RANK = 3
"""Components of the second reference: more of them would learn the outliers that so rough a first one lets pass."""

_SUBSPACE = ("mean", "sigma", "basis", "variance", "noise_basis", "noise_variance", "inflation")

_BUCKET_BITS = 10
_MULTIPLIERS = (np.uint32(0x9E3779B1), np.uint32(0x85EBCA77))
_REPEATED_SHARE = 0.005
_REPEATED_RATIO = 5
"""A number is no measurement that more than this share of a band's pixels has, and so many times more than the next."""

_COLUMN_SIGMA = 4.5
_COLUMN_SPREADS = 5.0
"""A column is out whose residuals lie to one side so many standard errors more often than to the other, and so many
times the spread of the columns from their median: a fit is never exact. Signs, since a few rare pixels move a mean."""

_EM_STEPS = 40
_FIRST_SHARE = 0.02
_NEAREST, _FARTHEST = 1.0, 8.0
"""In standard deviations: what is nearer to the reference is no outlier, what is farther is one."""

_STANDS_OUT = np.float32(1.5)
"""What differs from the median residual of the neighbouring bands by less than so many times it is of their kind."""

RIDGE = 1e-2
"""Prior of the fits: see `Subspace.project`. That of the scene would take rare materials for chance."""

_IN_CACHE = 512
"""Pixels whose bands are put in order together, so that they stay in a core's cache."""

_PATTERNS = 256
"""Patterns of missing bands that the growth of noise is averaged over."""

_SORT_OF_SIX = ((0, 5), (1, 3), (2, 4), (1, 2), (3, 4), (0, 3), (2, 5), (0, 1), (2, 3), (4, 5), (1, 2), (3, 4))
"""Pairs to put in order one after the other; then six rows stand in order."""


def measure_outliers(block: Block, stats: Stats, number: int) -> Stats:
    """Sums over the core of a block in pass `number`."""
    if number == 0:
        return _repetitions(block)
    if number % 2:
        return _residuals(block, stats)
    return _sums_without_outliers(block, stats, _of_pairs if number == 2 else _of_completed)


def settle_outliers(sums: Stats, stats: Stats, number: int, spec: SceneSpec, rank: Rank) -> Stats:
    """What the next pass knows of the scene, in the end also the signal's subspace as `denoise` has it.

    Beside `mean`, `sigma`, `basis`, `variance`, `noise_basis` and `noise_variance` that is `inflation`: how much the
    standard deviation of each component's noise has grown by what was left out, `(K,)`.

    Raises:
        InputError: too few pixels.
    """
    if number == 0:
        spread = quantiles(sums["values"], 0.999) - quantiles(sums["values"], 0.001)
        return {"repetitions": sums["repetitions"], "range": np.maximum(spread, np.finfo(np.float32).tiny)}
    turn = number // 2
    if number % 2 == 0:
        columns = {f"columns{turn}": _columns_out(sums)}
        space = _coarse_space(sums, stats) if turn == 1 else _full_space(sums, stats, spec, rank)
        return {**stats, **columns, **{f"{key}{turn}": part for key, part in space.items()}}
    floor = packing_noise(spec)
    noise, limit = _noise_and_limit(sums["residuals"], float(stats["range"][0]), floor)
    settled = {**stats, f"noise{turn}": noise, f"limit{turn}": limit}
    return {**settled, **{key: stats[f"{key}{turn}"] for key in _SUBSPACE}} if turn == _TURNS - 1 else settled


@dataclass(frozen=True)
class Outliers:
    """Tells outliers from what counts, by what has settled so far.

    Attributes:
        stats: of the scene.
        step: of the numbers that the values were packed in; None for floating point.
    """

    stats: Stats
    step: float | None

    @classmethod
    def of(cls, block: Block, stats: Stats) -> "Outliers":
        """For the spectra of a block."""
        return cls(stats, block.spec.variables[block.spec.subject].encoding.scale)

    @classmethod
    def settled(cls, block: Block, stats: Stats) -> "Outliers | None":
        """The same once all has settled; None for statistics that know nothing of outliers."""
        return cls.of(block, stats) if f"limit{_TURNS - 1}" in stats else None

    def look(
        self, spectra: FloatSpectra, present: BoolArray, columns: npt.NDArray[np.intp]
    ) -> tuple[FloatSpectra, BoolArray, BoolArray]:
        """The last reference there is, which values may count, and which of them do.

        Args:
            spectra: `(B, pixel)`.
            present: which hold a number.
            columns: of the scene, that each pixel lies in.
        """
        may = present & ~self._repeated(spectra)
        reference, counts = median_of_neighbours(spectra, may), may
        for turn in range(_TURNS):
            if turn:
                if f"basis{turn}" not in self.stats:
                    break
                may = may & ~self.stats[f"columns{turn}"][:, columns]
                reference = self._space(turn).fit(spectra, counts, RIDGE)
                counts = may
            if f"limit{turn}" not in self.stats:
                break
            counts = may & ~self._struck(spectra - reference, may, turn)
        return reference, may, counts

    def _struck(self, residual: FloatSpectra, may: BoolArray, turn: int) -> BoolArray:
        """Residuals that are too large for noise, and after a fit also stand out from those of the neighbouring bands.

        What neighbouring bands share is a material that the fit does not know yet, and must not be lost.
        """
        limit = self.stats[f"limit{turn}"].astype(np.float32)[:, None]
        with np.errstate(invalid="ignore"):
            struck = ~(np.abs(residual) <= limit)
        if turn:
            some = np.flatnonzero((struck & may).any(axis=0))
            residual, may = residual[:, some], may[:, some]
            shared = median_of_neighbours(residual, may)
            struck[:, some] &= np.abs(residual - shared) > np.maximum(limit, _STANDS_OUT * np.abs(shared))
        return struck

    def _space(self, turn: int) -> Subspace:
        return Subspace(*(self.stats[f"{key}{turn}"] for key in _SUBSPACE[:4]))

    def _repeated(self, spectra: FloatSpectra) -> BoolArray:
        """Numbers that their band repeats far more often than those next to them."""
        tables = self.stats["repetitions"]
        total = tables[0].sum(axis=1)
        often = _REPEATED_SHARE * total
        usual = np.maximum(np.median(tables[0], axis=1), 1)
        out = np.zeros(spectra.shape, bool)
        for band in np.flatnonzero(tables.max(axis=2).min(axis=0) > often + _REPEATED_RATIO * usual):
            numbers = _numbers(spectra[band], self.step)
            count = _count(tables[:, band], numbers)
            at = np.flatnonzero(count > often[band] + _REPEATED_RATIO * usual[band])
            near = np.zeros(at.size)
            if self.step is not None:
                near = np.maximum(*(_count(tables[:, band], numbers[at] + np.int32(by)) for by in (-1, 1)))
            out[band, at] = count[at] > often[band] + _REPEATED_RATIO * near
        return out


def _numbers(values: npt.NDArray[np.float32], step: float | None) -> npt.NDArray[np.int32]:
    """Values as whole numbers that are equal where they are: in packing steps, or by their bits."""
    if step is None:
        return np.ascontiguousarray(values + np.float32(0)).view(np.int32)
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nan_to_num(np.rint(values / np.float32(step))), np.int32)


def _buckets(numbers: npt.NDArray[np.int32], multiplier: np.uint32) -> npt.NDArray[np.intp]:
    return ((numbers.view(np.uint32) * multiplier) >> np.uint32(32 - _BUCKET_BITS)).astype(np.intp)


def _count(tables: IntArray, numbers: npt.NDArray[np.int32]) -> IntArray:
    """How often a band has some numbers; at most (a count-min sketch: Cormode and Muthukrishnan, 2005)."""
    found = (table[_buckets(numbers, by)] for table, by in zip(tables, _MULTIPLIERS, strict=True))
    return np.asarray(np.minimum(*found))


def _repetitions(block: Block) -> Stats:
    """Numbers of every band counted in two tables of hashes, and a histogram of all values."""
    size = int(block.bands.good.sum())
    tables = np.zeros((2, size, 2**_BUCKET_BITS), np.int64)
    step = Outliers.of(block, {}).step
    values: IntArray | int = 0
    for _, spectra, present in spectra_of(block, block.core):
        values = values + value_histograms([(spectra.reshape(1, -1), present.reshape(1, -1))])
        for band in range(size):
            numbers = _numbers(spectra[band, present[band]], step)
            for table, by in zip(tables, _MULTIPLIERS, strict=True):
                table[band] += np.bincount(_buckets(numbers, by), minlength=table.shape[1])
    return {"repetitions": tables, "values": np.asarray(values)}


def _looked_at(block: Block, stats: Stats) -> Iterator[tuple[FloatSpectra, FloatSpectra, BoolArray, BoolArray]]:
    """Spectra of a block's core, a few rows at a time, with what `Outliers.look` gives for them."""
    outliers, width = Outliers.of(block, stats), block.core.width
    columns = np.arange(block.core.col, block.core.col + width)
    for rows, spectra, present in spectra_of(block, block.core):
        yield spectra, *outliers.look(spectra, present, np.tile(columns, rows.stop - rows.start))


def _residuals(block: Block, stats: Stats) -> Stats:
    """Histograms of the residuals of every band."""
    looked = _looked_at(block, stats)
    parts = ((spectra - reference, may & np.isfinite(reference)) for spectra, reference, may, _ in looked)
    return {"residuals": value_histograms(parts)}


def _sums_without_outliers(block: Block, stats: Stats, products: "_Products") -> Stats:
    """Products of the spectra without outliers, and how many more residuals of a column are above 0 than below."""
    size, width = int(block.bands.good.sum()), block.spec.shape[1]
    above, counted = np.zeros((2, size, width), np.int64)
    inside = slice(block.core.col, block.core.col + block.core.width)
    sums: Stats = products(np.zeros((size, 0)), np.zeros((size, 0)), np.zeros((size, 0), bool))
    for spectra, reference, _, counts in _looked_at(block, stats):
        some = counts.any(axis=0)
        part = products(spectra[:, some].astype(np.float64), reference[:, some], counts[:, some])
        sums = {key: sums[key] + part[key] for key in sums}
        sides = np.where(counts, np.sign(spectra - reference), 0).astype(np.int64)
        above[:, inside] += sides.reshape(size, -1, block.core.width).sum(axis=1)
        counted[:, inside] += counts.reshape(size, -1, block.core.width).sum(axis=1)
    return {**sums, "column_above": above, "column_count": counted}


_Products = Callable[[FloatArray, npt.NDArray[np.floating], BoolArray], Stats]


def _of_pairs(spectra: FloatArray, _: npt.NDArray[np.floating], counts: BoolArray) -> Stats:
    """Of every pair of bands, over the pixels where both count: number, products, and the sum of the first."""
    ones, values = counts.astype(np.float64), np.where(counts, spectra, 0)
    return {"pairs": ones @ ones.T, "products": values @ values.T, "firsts": values @ ones.T}


def _of_completed(spectra: FloatArray, reference: npt.NDArray[np.floating], counts: BoolArray) -> Stats:
    """Of spectra whose outliers have given way to the reference, and how many of each band have."""
    whole = np.where(counts, spectra, reference)
    return {
        "count": np.int64(whole.shape[1]),
        "missing": np.count_nonzero(~counts, axis=1),
        "total": whole.sum(axis=1),
        "products": whole @ whole.T,
    }


def _coarse_space(sums: Stats, stats: Stats) -> Stats:
    """The strongest components of what is no outlier beside the median of its neighbours."""
    pairs = np.maximum(sums["pairs"], 1)
    covariance = (sums["products"] - sums["firsts"] * sums["firsts"].T / pairs) / pairs
    noise = stats["noise0"]
    variance, basis = np.linalg.eigh(covariance / np.outer(noise, noise))
    strongest = slice(None, -1 - min(_COARSE_RANK, noise.size), -1)
    mean = np.diag(sums["firsts"]) / np.diag(pairs)
    return {"mean": mean, "sigma": noise, "basis": basis[:, strongest], "variance": np.maximum(variance[strongest], 1)}


def _full_space(sums: Stats, stats: Stats, spec: SceneSpec, rank: Rank) -> Stats:
    """All components that rise above noise.

    What has given way to a fit has none of its band's noise, so that much is added to the covariance: the expected
    sums of a factor analysis with missing values (Dempster, Laird and Rubin, 1977).
    """
    count, size = int(sums["count"]), int(spec.bands.good.sum())
    if count < 2 * size:
        raise InputError(
            f"{spec.scene_id}, denoise: {count} pixels take part, at least {2 * size} are needed to tell outliers "
            f"from noise in {size} bands; check the mask, or set outliers to false"
        )
    products = sums["products"] + np.diag(sums["missing"] * stats["noise1"] ** 2)
    signal, rest = estimate_subspace(sums["total"], products, count, packing_noise(spec), rank)
    inflation = _inflation(signal, 1 - sums["missing"] / count)
    parts = (signal.mean, signal.sigma, signal.basis, signal.variance, rest.basis, rest.variance, inflation)
    return dict(zip(_SUBSPACE, parts, strict=True))


def _inflation(signal: Subspace, share: FloatArray) -> FloatArray:
    """By how much the standard deviation of each component's noise grows where bands count in `share` of the pixels.

    The mean over patterns of missing bands that are drawn as if they were independent.
    """
    counts = np.random.default_rng(0).random((_PATTERNS, share.size)) < share
    inner = np.einsum("pb,bk,bl->pkl", counts.astype(float), signal.basis, signal.basis, optimize=True)
    inner += RIDGE * np.eye(signal.basis.shape[1])
    variance = np.linalg.inv(inner).diagonal(axis1=1, axis2=2).mean(axis=0)
    return np.asarray(np.sqrt(np.maximum(variance, 1)))


def _columns_out(sums: Stats) -> BoolArray:
    """Columns `(B, x)` whose residuals lie to one side more often than chance or a fit's errors give (sign test)."""
    count = sums["column_count"]
    seen = count > 0
    score = np.abs(sums["column_above"]) / np.sqrt(np.maximum(count, 1))
    out = np.zeros(seen.shape, bool)
    for row, scores, where in zip(out, score, seen, strict=True):
        if where.any():
            middle = np.median(scores[where])
            spread = 1.4826 * np.median(np.abs(scores[where] - middle))
            row[where] = scores[where] > max(_COLUMN_SIGMA, middle + _COLUMN_SPREADS * spread)
    return out


def _noise_and_limit(histograms: IntArray, spread: float, floor: float) -> tuple[FloatArray, FloatArray]:
    """Standard deviation of each band's noise, and how far from the reference its outliers begin, `(B,)` each.

    Args:
        histograms: of the residuals, `(B, bin)`.
        spread: range that outliers come from.
        floor: least noise.
    """
    folded = _folded(histograms)
    used = folded.any(axis=0)
    counts, centres = folded[:, used].astype(np.float64), bin_centres()[used]
    total = np.maximum(counts.sum(axis=1), 1)
    least = max(floor, spread * 1e-6)
    noise = np.maximum(1.4826 * quantiles(folded, 0.5), least)
    noise = np.where(np.isfinite(noise), noise, least)
    share = np.full(len(counts), _FIRST_SHARE)
    for _ in range(_EM_STEPS):
        density = np.exp(-0.5 * (centres / noise[:, None]) ** 2) / (noise[:, None] * np.sqrt(2 * np.pi))
        likely = (1 - share)[:, None] * density
        weight = counts * likely / (likely + (share / spread)[:, None])
        noise = np.maximum(np.sqrt((weight @ centres**2) / np.maximum(weight.sum(axis=1), 1)), least)
        share = np.clip(1 - weight.sum(axis=1) / total, 1e-4, 0.95)
    even = share / spread * noise * np.sqrt(2 * np.pi) / (1 - share)
    limit = np.sqrt(-2 * np.log(np.minimum(even, 1)))
    return noise, noise * np.clip(limit, _NEAREST, _FARTHEST)


def _folded(histograms: IntArray) -> IntArray:
    """Histograms of the magnitudes."""
    side = histograms.shape[1] // 2
    folded = histograms.copy()
    folded[:, side + 1 :] += histograms[:, :side][:, ::-1]
    folded[:, :side] = 0
    return folded


def median_of_neighbours(spectra: FloatSpectra, seen: BoolArray) -> FloatSpectra:
    """Median of the three bands on either side of each, of those that are seen; NaN where none is."""
    medians = np.empty(spectra.shape, np.float32)
    for start in range(0, spectra.shape[1], _IN_CACHE):
        part = slice(start, start + _IN_CACHE)
        medians[:, part] = _median_of_six(np.where(seen[:, part], spectra[:, part], np.float32(np.inf)))
    return medians


def _median_of_six(spectra: FloatSpectra) -> FloatSpectra:
    """The same of a few spectra, infinite where they are not seen."""
    padded = np.pad(spectra, ((3, 3), (0, 0)), constant_values=np.inf)
    rows = [padded[start : start + len(spectra)] for start in (0, 1, 2, 4, 5, 6)]
    for low, high in _SORT_OF_SIX:
        rows[low], rows[high] = np.minimum(rows[low], rows[high]), np.maximum(rows[low], rows[high])
    first, second, third, fourth = rows[:4]
    seen = [row < np.inf for row in rows]
    lower = np.where(seen[4], third, np.where(seen[2], second, first))
    upper = np.where(seen[5], fourth, np.where(seen[3], third, np.where(seen[1], second, first)))
    return np.where(seen[0], lower * np.float32(0.5) + upper * np.float32(0.5), np.float32(np.nan))

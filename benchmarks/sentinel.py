"""What works on Sentinel-1 and -2 scenes, case by case beside what there was.

Run: python benchmarks/sentinel.py [--case NAME] [--quick] [--json FILE] [--rounds N] [--folder FOLDER] [--prepare]

`s2_tile`, from a Sentinel-2 product to a published store, beside rioxarray's bare write of the same four images: the
four 10 m bands of a whole tile, 10980 x 10980 px in JPEG 2000. Ours opens the product by its metadata, applies the
offset, folds SCL into flags, writes overviews, hashes and verifies every chunk, syncs the disk and renames: a finished
product. The peer opens the four images one by one and calls `to_zarr`: no offset, masks, overviews, hashes,
verification or sync. It stands for the faster of its two ways: as it comes (`open_rasterio(path)`), and on Dask
(`chunks=True`).

The tile is made of a simulated product of 2196 px, mirrored until it is full, with some more noise, and kept in FOLDER
(0.6 GB); it is lossless and tiled like ESA's own. Making it takes some minutes; `--prepare` does that and no more. Each
run is a process of its own, peer and ours in turn; the file cache is warm for both. Seconds are wall clock from the
open file to the end of the work, imports left out, and CPU seconds of the same part; peak memory is that of the whole
process. The ratio is ours over peer, median of the pairs. The content hash of the input is left out: a catalog's
checksum stands for it.

`croma_base`, the joint tokens of one image of 120 px, and `croma_base_240`, of 240 px by the same network: ours in its
form for inference, the peer the published graph written plainly over the same weights: products by `linear`, attention
by `einsum`, bias and `softmax` one after the other; its bias is made beforehand, without the authors' loops. It took
0.99 times the CPU seconds of the authors' class (120 px, medians of ten). Weights are random. Both run in one process,
in turn, on as many threads as torch takes by itself, in seconds of the clock; and once more on one thread, in CPU
seconds (`_1`). The ratio is ours over peer, median of the rounds, and `faster` its inverse. No more than 1e-5 of the
largest token may lie between the two, which the benchmark checks; `apart` is the largest share of that. On one thread
nine tenths of our time at 120 px are products, 83 GFLOP at 107 GFLOP/s, where a core of the AMD EPYC (Zen 4) that this
was measured on can do no more than 116: the peer reaches 91, so one core alone can hardly be 1.3 times as fast there.

`glcm`, grey-level co-occurrence texture of a band beside scikit-image's matrices, window by window. The band has 1000 x
1000 px of 32 levels, smooth ground under noise as radar shows it; windows are 5 x 5 px, the four directions are
averaged, and eight measures are taken: mean, variance, homogeneity, contrast, dissimilarity, entropy, angular second
moment and correlation. Ours is `texture_images`. The peer is a loop over pixels with `graycomatrix`, all four
directions in one call, and `graycoprops` for each measure, which is how scikit-image is used for maps of texture. It
takes the inner pixels of a crop, 20 x 20 of them, and 40 x 40 in the full run; its time for the band is that time by
the number of pixels. It does the same work at every one. Both run in one process on one thread, in turn, and once
before to warm up; the ratio is ours over peer, median of the rounds, and `faster` its inverse. No more than 1e-4 of its
size, or 1e-5, may lie between ours and the peer's measures of the crop, in float32, which the benchmark checks; `apart`
is the largest share of that.
"""

import argparse
import json
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

CELLS, PIECE, QUICK = 1830, 366, 183
"""Edge in cells of 60 m: of a tile, of the simulated piece that fills it, and of the piece of the short case."""
BANDS, CHECKED = ("B02", "B03", "B04", "B08"), ("B01", "B04", "B12")
NOISE = 8
"""Random numbers below this are added, so that no compressor finds the repeated rows again; sensor noise has 12."""
MEMORY = 2 * 2**30
SIZES = (120, 240)
"""Sides of CROMA's images, px; the short case has the first."""
HEADS, PATCH = 16, 8
SIDE, LEVELS, WINDOW = 1000, 32, 5
CROP, SHORT_CROP = 40, 20
WANTED = {"croma_base": 1.3, "glcm": 20}
"""How many times as fast ours is to be."""
CASES = ("s2_tile", "croma_base", "glcm")


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append", help="this one alone, or several; by default all")
    parser.add_argument("--quick", action="store_true", help="a small tile, small crop and image, one round")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, after one that is not counted")
    parser.add_argument("--folder", type=Path, help="keep the product here, for the next time")
    parser.add_argument("--prepare", action="store_true", help="make the product in the folder, measure nothing")
    parser.add_argument("--run", nargs=3, metavar=("SIDE", "PRODUCT", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        _one_run(*arguments.run)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        if arguments.prepare:
            print(_tile(folder, quick=arguments.quick))
            return
        rows = []
        for case in arguments.case or CASES:
            rows += _measured(case, folder, Path(scratch), arguments.rounds, quick=arguments.quick)
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=1))
    if any(row.get("apart", 0) > 1 for row in rows):
        raise SystemExit("the two differ by more than they may")


def _measured(case: str, folder: Path, scratch: Path, rounds: int, *, quick: bool) -> list[dict[str, Any]]:
    """The rows of a case."""
    if case == "s2_tile":
        return [_s2_tile(_tile(folder, quick=quick), 0 if quick else rounds, scratch)]
    rounds = 1 if quick else rounds
    made = _croma(rounds, quick=quick) if case == "croma_base" else [_glcm(rounds, quick=quick)]
    columns = {"ours_s": ".2f", "peer_s": ".2f", "ratio": ".4f", "faster": ".2f", "apart": ".1e"}
    print(f"{'case':16}" + "".join(f"{name:>11}" for name in columns))
    for row in made:
        print(f"{row['case']:16}" + "".join(f"{row[key]:>11{form}}" for key, form in columns.items()), flush=True)
    return made


def _compared(
    case: str,
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    clock: Callable[[], float],
    rounds: int,
    scale: float = 1,
) -> tuple[dict[str, Any], Any, Any]:
    """A row of both in turn, with what they gave at the last; `scale` multiplies the peer's seconds."""
    seconds: list[tuple[float, float]] = []
    for _ in range(rounds):
        start = clock()
        theirs = peer()
        between = clock()
        made = ours()
        seconds.append((clock() - between, (between - start) * scale))
    ratio = statistics.median(own / peer for own, peer in seconds)
    row = {
        "case": case,
        "ours_s": statistics.median(own for own, _ in seconds),
        "peer_s": statistics.median(peer for _, peer in seconds),
        "ratio": ratio,
        "faster": 1 / ratio,
        "rounds": rounds,
    }
    return row, made, theirs


def _tile(folder: Path, *, quick: bool) -> Path:
    return _product(folder / ("quick" if quick else "tile"), quick=quick)


def _product(folder: Path, *, quick: bool) -> Path:
    """A product in a folder, made once."""
    from cubeloom.pipeline.simulate.sentinel2 import simulate_sentinel2

    found = sorted(folder.glob("S2*.SAFE"))
    if found:
        return found[0]
    edge = 2 * (QUICK if quick else PIECE)
    with tempfile.TemporaryDirectory() as scratch:
        piece = simulate_sentinel2(Path(scratch), seed=11, height=edge + 4, width=edge + 4, place=(48.1, 11.6)).path
        cells = (edge if quick else CELLS * 2) // 2
        made = _enlarged(piece, Path(scratch) / "made", cells, edge // 2)
        folder.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(made, folder / piece.name))


def _enlarged(piece: Path, out: Path, cells: int, part: int) -> Path:
    """The product with tiles of `cells` x `cells` of 60 m, mirrored from its upper left `part` x `part` cells.

    Its documents are the piece's, with the numbers of rows and columns that it has now; it holds the images that the
    10 m grid needs.
    """
    shutil.copytree(piece, out, ignore=shutil.ignore_patterns("*.jp2"))
    document = next(out.glob("GRANULE/*/MTD_TL.xml"))
    text = document.read_text()
    for step in (10, 20, 60):
        edge = cells * 60 // step
        size = f'<Size resolution="{step}"><NROWS>{edge}</NROWS><NCOLS>{edge}</NCOLS>'
        text, count = re.subn(rf'<Size resolution="{step}">\s*<NROWS>\d+</NROWS>\s*<NCOLS>\d+</NCOLS>', size, text)
        assert count == 1, f"{document}: no size of the {step} m grid"
    document.write_text(text)
    for image in _images(piece):
        target = out / image.relative_to(piece)
        target.parent.mkdir(parents=True, exist_ok=True)
        _enlarge(image, target, cells, part)
    return out


def _images(product: Path) -> Iterator[Path]:
    """The 10 m bands, SCL, and the coarse images that the offset is checked by."""
    bands = [(band, 10) for band in BANDS] + [(band, 60) for band in CHECKED] + [("SCL", 20)]
    for pattern in (f"R{step}m/*_{band}_{step}m" for band, step in bands):
        yield from product.glob(f"GRANULE/*/IMG_DATA/{pattern}.jp2")


def _enlarge(image: Path, target: Path, cells: int, part: int) -> None:
    import numpy as np
    import rasterio

    with rasterio.open(image) as source:
        pixels, profile, step = source.read(1), source.profile, round(source.res[0])
    block = {10: 1024, 20: 640, 60: 192}[step]
    piece = pixels[: part * 60 // step, : part * 60 // step]
    edge, size = cells * 60 // step, piece.shape[0]
    at = np.arange(edge) % (2 * size)
    at = np.where(at < size, at, 2 * size - 1 - at)
    full = piece[at[:, None], at[None, :]]
    if piece.dtype == np.uint16:
        full += np.random.default_rng(step).integers(0, NOISE, full.shape, np.uint16)
    profile |= {"height": edge, "width": edge, "blockxsize": block, "blockysize": block}
    with rasterio.open(target, "w", **profile, QUALITY=100, REVERSIBLE="YES", YCBCR420="NO") as sink:
        sink.write(full, 1)


def _s2_tile(product: Path, rounds: int, scratch: Path) -> dict[str, Any]:
    case = "s2_tile"
    peers = {"as it comes": "peer", "on Dask": "peer-dask"}
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in ("ours", *peers.values())}
    for number in range(rounds + 1):
        for side in runs:
            measured = _in_process(side, product, scratch / "out.zarr")
            if number or not rounds:  # the first of several rounds fills the file cache
                runs[side].append(measured)
    way = min(peers, key=lambda name: statistics.median(run["seconds"] for run in runs[peers[name]]))
    ours, peer = runs["ours"], runs[peers[way]]
    row: dict[str, Any] = {
        "case": case,
        "ours_s": statistics.median(run["seconds"] for run in ours),
        "peer_s": statistics.median(run["seconds"] for run in peer),
        "ratio": statistics.median(a["seconds"] / b["seconds"] for a, b in zip(ours, peer, strict=True)),
        "peak_mib": max(run["peak_mib"] for run in ours),
        "peer_peak_mib": max(run["peak_mib"] for run in peer),
        "ours_cpu_s": statistics.median(run["cpu"] for run in ours),
        "peer_cpu_s": statistics.median(run["cpu"] for run in peer),
        "peer": way,
        "ours_mib": ours[0]["store_mib"],
        "peer_mib": peer[0]["store_mib"],
    }
    columns = ("ours_s", "peer_s", "ratio", "peak_mib", "peer_peak_mib", "ours_cpu_s", "peer_cpu_s")
    print(f"{'case':10}" + "".join(f"{name:>15}" for name in columns))
    print(f"{case:10}" + "".join(f"{row[name]:15.2f}" for name in columns) + f"  {way}", flush=True)
    return row


def _in_process(side: str, product: Path, out: Path) -> dict[str, float]:
    """One run in a fresh process; what it printed."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, __file__, "--run", side, str(product), str(out)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(result.stdout))


def _one_run(side: str, product: str, out: str) -> None:
    warnings.simplefilter("ignore")
    seconds, cpu = _ours(product, out) if side == "ours" else _peer(product, out, side == "peer-dask")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    size = sum(file.stat().st_size for file in Path(out).rglob("*") if file.is_file()) / 2**20
    print(json.dumps({"seconds": seconds, "cpu": cpu, "peak_mib": peak, "store_mib": size}))


def _ours(product: str, out: str) -> tuple[float, float]:
    import rasterio.windows  # noqa: F401
    import scipy.ndimage  # noqa: F401

    from cubeloom.pipeline.engine import run_to_store
    from cubeloom.pipeline.readers import open_source, sentinel2  # noqa: F401 - imports are not timed

    start, cpu = time.perf_counter(), time.process_time()
    run_to_store(open_source(product), [], Path(out), workers=2, memory=MEMORY)
    return time.perf_counter() - start, time.process_time() - cpu


def _peer(product: str, out: str, on_dask: bool) -> tuple[float, float]:
    import dask.array  # noqa: F401
    import rioxarray
    import xarray as xr
    import zarr  # noqa: F401

    start, cpu = time.perf_counter(), time.process_time()
    bands = {}
    for name in BANDS:
        image = next(Path(product).glob(f"GRANULE/*/IMG_DATA/R10m/*_{name}_10m.jp2"))
        opened = rioxarray.open_rasterio(image, chunks=True) if on_dask else rioxarray.open_rasterio(image)
        bands[name] = opened.squeeze("band", drop=True)
    xr.Dataset(bands).to_zarr(out, mode="w", zarr_format=3, consolidated=False)
    return time.perf_counter() - start, time.process_time() - cpu


def _croma(rounds: int, *, quick: bool) -> list[dict[str, Any]]:
    import torch

    from cubeloom.models.registry import create_model

    torch.manual_seed(0)
    network = create_model("croma_base")
    rows = []
    for threads, clock in ((torch.get_num_threads(), time.perf_counter), (1, time.process_time)):
        torch.set_num_threads(threads)
        fast = network.for_inference()
        for side in SIZES[:1] if quick else SIZES:
            case = ("croma_base" if side == SIZES[0] else f"croma_base_{side}") + ("_1" if threads == 1 else "")
            plain = _PlainCroma(network.state_dict(), side // PATCH)
            radar, optical = torch.rand(1, 2, side, side), torch.rand(1, 12, side, side)
            calls = (
                (lambda r=radar, o=optical, f=fast: f.encode(r, o).joint),
                (lambda r=radar, o=optical, p=plain: p(r, o)),
            )
            with torch.inference_mode():
                for call in calls:
                    call()
                row, made, theirs = _compared(case, *calls, clock, rounds)
                apart = (made - theirs).abs().max() / (1e-5 * theirs.abs().max())
            rows.append(row | {"threads": threads, "wanted": WANTED["croma_base"], "apart": float(apart)})
    return rows


class _PlainCroma:
    """The published graph from a state dict: every product, sum and softmax by itself."""

    def __init__(self, state: "dict[str, Tensor]", cells: int) -> None:
        import torch

        self.state = state
        place = torch.arange(cells).repeat_interleave(cells), torch.arange(cells).repeat(cells)
        apart = sum((one[:, None] - one).square() for one in place).sqrt()
        self.bias = -(2 ** (-(torch.arange(HEADS) + 1) / 2))[:, None, None] * apart

    def __call__(self, radar: "Tensor", optical: "Tensor") -> "Tensor":
        of_radar, of_optical = self._encoded(radar, "s1_encoder"), self._encoded(optical, "s2_encoder")
        return self._blocks(of_radar, "joint_encoder.", of_optical)

    def _encoded(self, image: "Tensor", part: str) -> "Tensor":
        n, channels, height, width = image.shape
        cut = image.reshape(n, channels, height // PATCH, PATCH, width // PATCH, PATCH).permute(0, 2, 4, 1, 3, 5)
        return self._blocks(self._linear(cut.flatten(3).flatten(1, 2), f"{part}.linear_input"), f"{part}.transformer.")

    def _blocks(self, x: "Tensor", part: str, context: "Tensor | None" = None) -> "Tensor":
        import torch.nn.functional as nn

        for at in range(sum(key.startswith(part) and key.endswith(".0.to_qkv.weight") for key in self.state)):
            first, second, third = (f"{part}layers.{at}.{place}" for place in range(3))
            x = self._attended(self._linear(self._norm(x, first), f"{first}.to_qkv").chunk(3, -1), first) + x
            if context is not None:
                seen = self._norm(context, second)
                streams = {"to_q": self._norm(x, second), "to_k": seen, "to_v": seen}
                x = self._attended([self._linear(one, f"{second}.{to}") for to, one in streams.items()], second) + x
            last = second if context is None else third
            wide = nn.gelu(self._linear(self._norm(x, last), f"{last}.net.0"))
            x = self._linear(wide, f"{last}.net.3") + x
        return self._norm(x, part, "norm_out")

    def _attended(self, streams: "Iterable[Tensor]", layer: str) -> "Tensor":
        import torch

        q, k, v = (one.unflatten(-1, (HEADS, -1)).permute(0, 2, 1, 3) for one in streams)
        scores = torch.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5
        scores = scores + self.bias
        seen = torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)
        return self._linear(seen.permute(0, 2, 1, 3).flatten(2), f"{layer}.to_out")

    def _linear(self, x: "Tensor", layer: str) -> "Tensor":
        import torch.nn.functional as nn

        return nn.linear(x, self.state[f"{layer}.weight"], self.state.get(f"{layer}.bias"))

    def _norm(self, x: "Tensor", part: str, name: str = ".input_norm") -> "Tensor":
        import torch.nn.functional as nn

        weight, bias = (self.state[f"{part}{name}.{one}"] for one in ("weight", "bias"))
        return nn.layer_norm(x, x.shape[-1:], weight, bias)


def _glcm(rounds: int, *, quick: bool) -> dict[str, Any]:
    import numpy as np

    from cubeloom.pipeline.stages.texture import HARALICK
    from cubeloom.pipeline.stages.texture_glcm import texture_images

    crop, band = SHORT_CROP if quick else CROP, _radar_band()
    texture_images(band[:64], HARALICK, WINDOW)
    _matrices(band[:6, :6])
    piece = band[: crop + WINDOW - 1, : crop + WINDOW - 1]
    row, made, theirs = _compared(
        "glcm",
        lambda: texture_images(band, HARALICK, WINDOW),
        lambda: _matrices(piece),
        time.perf_counter,
        rounds,
        SIDE**2 / crop**2,
    )
    inner = slice(WINDOW // 2, WINDOW // 2 + crop)
    apart = np.abs(made[:, inner, inner] - theirs) / (1e-5 + 1e-4 * np.abs(theirs))
    return row | {"wanted": WANTED["glcm"], "peer_pixels": crop**2, "apart": float(apart.max())}


def _radar_band() -> "npt.NDArray[np.uint8]":
    import numpy as np
    from scipy.ndimage import gaussian_filter

    from cubeloom.pipeline.stages.texture_glcm import quantise

    draw = np.random.default_rng(1)
    ground = gaussian_filter(draw.normal(size=(SIDE, SIDE)), 6) * 20
    decibel = 10 * np.log10(np.exp(ground / 4) * draw.gamma(4.4, 1 / 4.4, (SIDE, SIDE)))
    return quantise(decibel, *np.percentile(decibel, (1, 99)), LEVELS)


def _matrices(band: "npt.NDArray[np.uint8]") -> "npt.NDArray[np.float64]":
    """The measures of every whole window, `(measure, y, x)`."""
    import numpy as np
    from skimage.feature import graycomatrix, graycoprops

    from cubeloom.pipeline.stages.texture import HARALICK

    angles = (0, np.pi / 4, np.pi / 2, 3 * np.pi / 4)
    height, width = (size - WINDOW + 1 for size in band.shape)
    made = np.empty((len(HARALICK), height, width))
    for row, col in np.ndindex(height, width):
        window = band[row : row + WINDOW, col : col + WINDOW]
        matrices = graycomatrix(window, [1], angles, LEVELS, symmetric=True, normed=True)
        for at, measure in enumerate(HARALICK):
            made[at, row, col] = graycoprops(matrices, "ASM" if measure == "asm" else measure).mean()
    return made


if __name__ == "__main__":
    main()

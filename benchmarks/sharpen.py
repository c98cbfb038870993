"""The tables of docs/superres.md: refinement three times and twice, with and without a guide.

Run: python benchmarks/sharpen.py [--potsdam PRODUCT] [--out FOLDER] [--quick]

A thin caller of `cubeloom evaluate superres`, with the scenes that the tables stand on: four simulated places on which
nothing was trained or chosen, and, where it is at hand, the EnMAP product over Potsdam, whose guide is its own cube
through Sentinel-2's responses. `FOLDER/x3`, `FOLDER/potsdam_x3`, `FOLDER/x2` and `FOLDER/potsdam_x2` then hold
`table.md`, `results.json` and `figure.png`.
"""

import argparse
from pathlib import Path

from cubeloom.workflows.evaluate.superres_files import evaluate_superres_files
from cubeloom.workflows.evaluate.superres_methods import default_methods

PLACES = (("temperate", 103), ("coastal", 104), ("arid", 105), ("alpine", 106))
EDGE = 96
"""Of the places, px of 30 m."""
MORE = "bicubic+projected+denoised,gsa+guide=common,gsa+denoised"
"""Beside the methods that `evaluate superres` takes by default."""


def main() -> None:
    """Evaluate, and say where the tables are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("out/superres"))
    parser.add_argument("--potsdam", type=Path, help="an EnMAP L2A product, for Wald's protocol on real pixels")
    parser.add_argument("--quick", action="store_true", help="one small place, twice as fine")
    arguments = parser.parse_args()
    edge, places, scales = (48, PLACES[:1], (2,)) if arguments.quick else (EDGE, PLACES, (3, 2))
    sources = [f"simulated:{landscape}#seed={seed},edge={edge}" for landscape, seed in places]
    for scale in scales:
        methods = f"{default_methods(scale)},{MORE}"
        evaluate_superres_files(sources, arguments.out / f"x{scale}", methods=methods, scale=scale, tell=print)
        if arguments.potsdam:
            source, out = f"{arguments.potsdam}#guide=sentinel2a,name=Potsdam", arguments.out / f"potsdam_x{scale}"
            evaluate_superres_files([source], out, methods=methods, scale=scale, protocols="reduced", tell=print)
        print(f"tables in {arguments.out}")


if __name__ == "__main__":
    main()

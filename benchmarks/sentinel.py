"""What works on Sentinel-1 and -2 scenes, case by case beside what there was.

Run: python benchmarks/sentinel.py [--case NAME] [--quick] [--json FILE] [--rounds N] [--folder FOLDER] [--prepare]

`s2_tile`: from a Sentinel-2 product to a published store, in a whole tile's four bands of 10 m (`_s2_tile.py`).
`croma_base`: CROMA's forward pass, at 120 and 240 px, on all cores and on one (`_croma.py`).
`glcm`: grey-level co-occurrence texture of a band (`_glcm.py`).

What is measured, and against what, each of these files says.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import _croma
import _glcm
import _s2_tile

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
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.folder or Path(scratch)
        if arguments.prepare:
            print(_s2_tile.tile(folder, quick=arguments.quick))
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
        return [_s2_tile.measured(_s2_tile.tile(folder, quick=quick), 0 if quick else rounds, scratch)]
    rounds = 1 if quick else rounds
    made = _croma.measured(rounds, quick=quick) if case == "croma_base" else [_glcm.measured(rounds, quick=quick)]
    columns = {"ours_s": ".2f", "peer_s": ".2f", "ratio": ".4f", "faster": ".2f", "apart": ".1e"}
    print(f"{'case':16}" + "".join(f"{name:>11}" for name in columns))
    for row in made:
        print(f"{row['case']:16}" + "".join(f"{row[key]:>11{form}}" for key, form in columns.items()), flush=True)
    return made


if __name__ == "__main__":
    main()

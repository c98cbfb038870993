"""Fuzz every parser with atheris: `python tests/fuzz/run.py [--seconds 60] [TARGET ...]`.

Each target runs in a process of its own. A finding is printed with its traceback and kept below `--findings`; it is
reproduced by `python tests/fuzz/run.py --reproduce FILE TARGET`. The exit code is 1 where there was one, and 2 where
atheris cannot be imported.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random

MEGABYTES = 3072
"""Memory that a parser may take, beside what Python, GDAL and torch take."""
OWN_SHARE = 0.7
"""Share of the documents that are broken by our own mutations, which know the formats; the rest by libFuzzer's."""


def main() -> int:
    """Run all targets, or those named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--findings", type=Path, default=Path("out/fuzz"))
    parser.add_argument("--reproduce", type=Path, help="parse this one document and show what happens")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.reproduce:
        return reproduce(options.targets[0], options.reproduce)
    try:
        import atheris  # noqa: F401
    except ImportError as error:
        print(f"fuzzing needs atheris, which cannot be imported ({error}): pip install atheris", file=sys.stderr)
        return 2
    if options.in_process:
        fuzz(options.targets[0], options.seconds, options.findings)
        return 0
    return run_all(options.targets, options.seconds, options.findings.absolute())


def run_all(names: list[str], seconds: int, findings: Path) -> int:
    """Fuzz one target after the other; 1 where any has a finding."""
    from targets import TARGETS

    findings.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in names or TARGETS:
        start = time.monotonic()
        command = [sys.executable, __file__, "--in-process", name, f"--seconds={seconds}", f"--findings={findings}"]
        with tempfile.TemporaryDirectory(prefix="cubeloom-fuzz-") as scratch:  # libFuzzer ends without cleaning up
            ended = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={**os.environ, "TMPDIR": scratch},
            )
        done = [line for line in ended.stdout.splitlines() if "stat::number_of_executed_units" in line]
        count = done[0].split()[-1] if done else "?"
        print(
            f"{name}: {count} documents in {time.monotonic() - start:.0f} s, exit code {ended.returncode}", flush=True
        )
        if ended.returncode:
            print(ended.stdout[-6000:], flush=True)
            failed.append(name)
    print(f"findings in {', '.join(failed)}, kept in {findings}" if failed else "no findings")
    return 1 if failed else 0


def fuzz(name: str, seconds: int, findings: Path) -> None:
    """Fuzz one target in this process, which ends with it."""
    import atheris

    scratch = Path(tempfile.mkdtemp(prefix=f"cubeloom-fuzz-{name}-"))
    with atheris.instrument_imports(include=["cubeloom", "yaml", "defusedxml"]):
        from targets import TARGETS

        target = TARGETS[name]
        target.warm(scratch / "document")  # imports what is imported on first use, so that it is instrumented too
    corpus = scratch / "corpus"
    corpus.mkdir()
    for number, document in enumerate(target.documents()):
        (corpus / str(number)).write_bytes(document)

    def parse(document: bytes) -> None:
        target.check(document, scratch / "document")

    def mutate(document: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() > OWN_SHARE:
            return atheris.Mutate(document, len(document))
        broken = target.mutate(random, document if random.random() < OWN_SHARE else random.choice(target.documents()))
        return broken[:most]

    longest = 2 * max(len(document) for document in target.documents()) + 4096
    limits = [f"-max_total_time={seconds}", f"-max_len={longest}", f"-rss_limit_mb={MEGABYTES}", "-timeout=60"]
    out = [f"-artifact_prefix={findings}/{name}-", "-print_final_stats=1", "-verbosity=0"]
    atheris.Setup([sys.argv[0], *limits, *out, str(corpus)], parse, custom_mutator=mutate)
    atheris.Fuzz()


def reproduce(name: str, document: Path) -> int:
    """Parse one document; its exception shows as a traceback."""
    from targets import TARGETS

    with tempfile.TemporaryDirectory(prefix="cubeloom-fuzz-") as scratch:
        TARGETS[name].warm(Path(scratch) / "document")
        accepted = TARGETS[name].check(document.read_bytes(), Path(scratch) / "document")
    print("accepted" if accepted else "refused with an error of ours")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Convert the published ESSAformer checkpoint, once, to weights that are read without running code.

    python -m cubeloom.models.essaformer_convert CHECKPOINT OUT.safetensors [--sha256 DIGEST]

The authors' file holds a whole pickled module, and loading that runs whatever its author, or whoever changed it, put
there. `read_weights` therefore never takes it. Here it is unpickled in a process of its own that

- knows the classes of such a module alone, each an empty one of ours that keeps what it is given: no code of the file,
  of the authors or of torch.nn is run, and any other name ends the conversion;
- has no network (a namespace of its own, where the system lets one have it), an empty environment, no file that it can
  write but its output, and bounds on memory, time and size;
- gives back tensors by name, which are then checked like those of any file.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cubeloom.errors import CubeloomError, ModelError

from .checkpoints import load_strictly, read_weights, weights_digest
from .registry import create_model, model_card, save_model

if TYPE_CHECKING:
    from .cards import Card
    from .checkpoints import StateDict

SECONDS = 300
"""Time that unpickling may take."""


def convert(checkpoint: Path, out: Path, sha256: str | None = None) -> "Card":
    """Write the weights of a published checkpoint, with their card beside them.

    Args:
        checkpoint: the file as published: `torch.save` of a dict whose `model` is a whole module, or of the module.
        out: the `.safetensors` file to write, such as `essaformer_x4.chikusei.safetensors`.
        sha256: hex digest that the checkpoint must have, where one is known.

    Returns:
        The card that was written.

    Raises:
        ModelError: another digest, a file that holds anything but such a module, or weights of another architecture.
    """
    found = weights_digest(checkpoint)
    if sha256 is not None and found != sha256:
        raise ModelError(f"weights {checkpoint}: sha256 is {found}, expected {sha256}; fetch it again")
    with tempfile.TemporaryDirectory(prefix="cubeloom-convert-") as folder:
        plain = Path(folder) / "state.safetensors"
        _unpickle_apart(checkpoint, plain)
        state = read_weights(plain, weights_digest(plain))
    settings = _settings(state, checkpoint)
    family = f"essaformer_x{settings.pop('scale')}"
    network = create_model(family, **settings)
    load_strictly(network, state, str(checkpoint))
    tag = out.stem.removeprefix(f"{family}.") if out.stem.startswith(f"{family}.") else ""
    training = {"converted_from": checkpoint.name, "converted_from_sha256": found}
    named = {"name": f"{family}.{tag}" if tag else family, "tag": tag, "training": training}
    return save_model(network, out, model_card(family, **settings).model_copy(update=named))


def _unpickle_apart(checkpoint: Path, plain: Path) -> None:
    """Have another process read the module, and write its tensors to `plain`.

    Raises:
        ModelError: it refused, failed, or took too long.
    """
    command = [*_without_network(), sys.executable, "-I", "-m", f"{__package__}.essaformer_unpickle"]
    try:
        done = subprocess.run(  # noqa: S603 - our own module, the paths as arguments
            [*command, str(checkpoint.resolve()), str(plain)],
            env={},
            cwd=plain.parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ModelError(
            f"weights {checkpoint}: unpickling took more than {SECONDS} s, which no checkpoint does"
        ) from None
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"the process ended with {done.returncode}"]
        raise ModelError(f"weights {checkpoint}: {reason[0]}")


def _without_network() -> list[str]:
    """What puts a command in a network namespace of its own; nothing where the system does not let us."""
    wrapper = ["unshare", "--user", "--map-root-user", "--net", "--"]
    try:
        able = not subprocess.run([*wrapper, "true"], capture_output=True, timeout=10, check=False).returncode  # noqa: S603
    except (OSError, subprocess.TimeoutExpired):
        able = False
    return wrapper if able else []


def _settings(state: "StateDict", checkpoint: Path) -> dict[str, Any]:
    """Bands, width and scale of the network that such weights are of.

    Raises:
        ModelError: they are of another one.
    """
    first, up = state.get("conv_first.weight"), state.get("blockup.convupsample.0.weight")
    if first is None or up is None or first.ndim != 4 or up.ndim != 4:
        raise ModelError(f"weights {checkpoint}: no conv_first and convupsample, so this is no ESSAformer")
    steps = sum(key.startswith("blockup.convupsample.") and key.endswith(".weight") for key in state)
    scale = 3 if up.shape[0] == 9 * up.shape[1] else 2**steps
    return {"bands": first.shape[1], "width": first.shape[0], "scale": scale}


def main() -> None:
    """Convert the file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sha256")
    arguments = parser.parse_args()
    try:
        card = convert(arguments.checkpoint, arguments.out, arguments.sha256)
    except CubeloomError as error:
        raise SystemExit(f"error: {error}") from None
    sys.stdout.write(f"{arguments.out}: {card.family}, {card.settings}, sha256 {card.sha256}\n")


if __name__ == "__main__":
    main()

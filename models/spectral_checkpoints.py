"""Keys of SpectralEarth's published checkpoints (Braham et al. 2024), brought to those of our networks.

The released files hold a backbone's own keys. Those of the authors' training programs hold them behind a prefix, beside
what only the training needs; of MAE also several times, for its wrappers name the same layers again and again.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    StateDict = dict[str, Tensor]

MAE = "encoder.vit."
TASK = "model."
"""What stands before all keys after training for a task."""
ROOTS = (MAE, "student_backbone.", "backbone.", TASK)
"""What stands before the backbone's keys after MAE, DINO and MoCo, and after training for a task.

Of DINO the student is taken: the momentum of the authors' teacher reaches 1 after ten epochs, and it learns no more.
"""

TOLERATED = (
    "vit_core.head.",  # of MAE: timm's 1000 classes, which its training never used
    "encoder.mask_token",
    "decoder.",
    "teacher_backbone.",
    "teacher_head.",
    "student_head.",
    "backbone_momentum.",
    "projection_head.",
    "projection_head_momentum.",
    "criterion.",  # the queue of MoCo, the centre of DINO
)
"""Keys, or beginnings of keys, that a network without them leaves aside. Any other key it lacks is an error."""

_PARTS = ("spectral_adapter.", "vit_core.", "resnet.")
_ALIASES = {
    "vit_core.patch_embed.spectral_adapter.": "spectral_adapter.",
    "vit_core.patch_embed.original_patch_embed.": "vit_core.patch_embed.",
}
"""What MAE's wrapper of the patch embedding calls layers of other places."""


def official_keys(state: "StateDict") -> "StateDict":
    """The weights by our networks' keys; what is not the backbone's keeps its own.

    So does a second value under another name, where it differs from the first: strict loading then refuses the file.
    """
    root = next((root for root in ROOTS if any(key.startswith(root) for key in state)), "")
    found: StateDict = {}
    for key, value in state.items():
        ours = _renamed(key.removeprefix(root), root) if key.startswith(root) else key
        if ours in found and not found[ours].equal(value):
            ours = key
        found[ours] = value
    return found


def task_keys(state: "StateDict") -> "StateDict":
    """The weights of a segmentation network by our networks' keys."""
    return {key.removeprefix(TASK): value for key, value in state.items()}


def _renamed(key: str, root: str) -> str:
    """Our name of a key whose root is cut off."""
    if root == MAE:
        key = key.removeprefix("spec_vit.")
        key = key if key.startswith(_PARTS) else f"vit_core.{key}"
    for alias, ours in _ALIASES.items():
        if key.startswith(alias):
            return ours + key.removeprefix(alias)
    return key

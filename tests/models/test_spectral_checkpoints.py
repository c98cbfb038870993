"""Checkpoints of SpectralEarth's training programs load strictly, by the layouts that their code writes."""

import pytest
import torch
from torch import nn

from cubeloom.errors import ModelError
from cubeloom.models.registry import create_model
from cubeloom.models.spectral_checkpoints import TOLERATED, official_keys

VIT = {"image_size": 8}


def weights(family="spectral_vit_nano", seed=0, **settings):
    """A state dict of random values in which no two tensors are alike."""
    torch.manual_seed(seed)
    with torch.device("meta"):
        network = create_model(family, **settings)
    return {
        key: torch.rand(value.shape) if value.is_floating_point() else torch.zeros(value.shape, dtype=value.dtype)
        for key, value in network.state_dict().items()
    }


def behind(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def mae(state):
    """As the wrappers of MAE name the layers: the adapter moves into the patch embedding, and most stand thrice."""
    adapter = {key: value for key, value in state.items() if key.startswith("spectral_adapter.")}
    core = {}
    for key, value in state.items():
        if key.startswith("vit_core.patch_embed.proj."):
            name = key.rpartition(".")[2]
            core |= {f"patch_embed.{where}proj.{name}": value for where in ("original_patch_embed.", "")}
        elif key.startswith("vit_core."):
            core[key.removeprefix("vit_core.")] = value
    core |= behind("patch_embed.", adapter)
    core |= {"head.weight": torch.rand(1000, 128), "head.bias": torch.rand(1000)}
    named = {key: value for key, value in core.items() if not key.startswith("head.")}
    vit = behind("spec_vit.", adapter | behind("vit_core.", core)) | behind("vit_core.", core) | named
    others = {"encoder.mask_token": torch.rand(1, 1, 128), "decoder.mask_token": torch.rand(1, 1, 512)}
    return behind("encoder.vit.", vit) | others | {"decoder.decoder_blocks.0.attn.qkv.weight": torch.rand(3, 4)}


def dino(state):
    others = {f"{one}_head.layers.0.weight": torch.rand(2, 2) for one in ("student", "teacher")}
    teacher = {key: value + 1 for key, value in state.items()}
    return (
        behind("student_backbone.", state)
        | behind("teacher_backbone.", teacher)
        | others
        | {"criterion.center.center": torch.rand(1, 128)}
    )


def moco(state):
    others = {f"projection_head{one}.layers.0.weight": torch.rand(2, 2) for one in ("", "_momentum")}
    momentum = behind("backbone_momentum.", {key: value + 1 for key, value in state.items()})
    queue = {"criterion.memory_bank.bank": torch.rand(4, 3), "criterion.memory_bank.bank_ptr": torch.zeros(1).long()}
    return momentum | behind("backbone.", state) | others | queue


LAYOUTS = {
    "released": dict,
    "released, with the head of 1000 classes": lambda state: {
        **state,
        "vit_core.head.weight": torch.rand(1000, 128),
        "vit_core.head.bias": torch.rand(1000),
    },
    "MAE": mae,
    "MAE, the wrapped backbone alone": lambda state: {
        key.removeprefix("encoder.vit.spec_vit."): value
        for key, value in mae(state).items()
        if key.startswith("encoder.vit.spec_vit.")
    },
    "DINO": dino,
    "MoCo": moco,
    "MoCo, of several GPUs": lambda state: behind("module.", moco(state)),
}


@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "Lightning"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts_load_to_the_last_key(tmp_path, layout, wrapped):
    state = weights(**VIT)
    content = LAYOUTS[layout](state)
    if wrapped:
        content = {"state_dict": content, "epoch": 3, "pytorch-lightning_version": "2.1", "hyper_parameters": {"lr": 1}}
    torch.save(content, tmp_path / "last.ckpt")
    loaded = create_model("spectral_vit_nano", tmp_path / "last.ckpt", **VIT).state_dict()
    assert list(loaded) == list(state)
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


@pytest.mark.parametrize("layout", [dino, moco])
def test_so_do_those_of_the_resnet(tmp_path, layout):
    state = weights("spectral_resnet50")
    found = official_keys(layout(state))
    assert all(torch.equal(found[key], value) for key, value in state.items())
    assert all(key in state or key.startswith(TOLERATED) for key in found)


def test_a_head_of_ones_own_is_kept(tmp_path):
    for classes in (3, 1000):
        state = weights(num_classes=classes, **VIT)
        torch.save(state, tmp_path / "own.pth")
        loaded = create_model("spectral_vit_nano", tmp_path / "own.pth", num_classes=classes, **VIT)
        assert torch.equal(loaded.backbone.head.weight, state["vit_core.head.weight"])
    with pytest.raises(ModelError, match=r"vit_core\.head\.weight \(1000, 128\) instead of \(4, 128\)"):
        create_model("spectral_vit_nano", tmp_path / "own.pth", num_classes=4, **VIT)


def damaged(state, layout, key, value=None):
    content = layout(state)
    if value is None:
        del content[key]
    else:
        content[key] = value
    return content


@pytest.mark.parametrize(
    ("layout", "key", "value", "words"),
    [
        (dict, "vit_core.blocks.3.attn.qkv.weight", None, "1 missing: vit_core.blocks.3.attn.qkv.weight"),
        (moco, "backbone.spectral_adapter.3.bias", None, "1 missing: spectral_adapter.3.bias"),
        (dict, "vit_core.register_token", torch.rand(3), "1 unexpected: vit_core.register_token"),
        (dict, "encoder.extra", torch.rand(3), "1 unexpected: encoder.extra"),
        (moco, "backbone.head.weight", torch.rand(3), "1 unexpected: head.weight"),
        (mae, "encoder.vit.norm.bias", torch.rand(128), "1 unexpected: encoder.vit.norm.bias"),
        (dict, "vit_core.pos_embed", torch.rand(1, 1025, 128), "1 of another shape: vit_core.pos_embed"),
    ],
)
def test_anything_else_is_refused(tmp_path, layout, key, value, words):
    torch.save(damaged(weights(**VIT), layout, key, value), tmp_path / "odd.pth")
    with pytest.raises(ModelError, match=words.replace(".", r"\.")) as caught:
        create_model("spectral_vit_nano", tmp_path / "odd.pth", **VIT)
    assert "odd.pth" in str(caught.value)


def test_counters_of_normalisations_may_be_missing(tmp_path):
    state = weights(**VIT)
    torch.save({key: value for key, value in state.items() if "num_batches" not in key}, tmp_path / "old.pth")
    create_model("spectral_vit_nano", tmp_path / "old.pth", **VIT)


def test_another_backbone_is_refused(tmp_path):
    torch.save(weights(**VIT), tmp_path / "vit.pth")
    with pytest.raises(ModelError, match="another architecture"):
        create_model("spectral_vit_tiny", tmp_path / "vit.pth", **VIT)


def test_other_networks_keep_their_keys():
    state = nn.Linear(2, 2).state_dict()
    assert official_keys(state) == state

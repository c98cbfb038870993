"""The published checkpoint's format becomes plain weights, and a pickle that would run something does not."""

import os
import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from cubeloom.errors import ModelError
from cubeloom.models.checkpoints import weights_digest
from cubeloom.models.essaformer import ESSAformer
from cubeloom.models.essaformer_convert import convert
from cubeloom.models.registry import create_model, model_card


@pytest.fixture(scope="module")
def authors():
    """Classes of the authors' names in a module of their name, which is gone afterwards."""
    module = ModuleType("ESSA")
    for name in ("ESSA", "blockup", "Convup", "Convdown", "ESSAttn", "PatchEmbed", "PatchUnEmbed"):
        setattr(module, name, type(name, (nn.Module,), {"__module__": "ESSA"}))
    for name in ("Upsample", "Downsample"):
        setattr(module, name, type(name, (nn.Sequential,), {"__module__": "ESSA"}))
    sys.modules["ESSA"] = module
    yield module
    del sys.modules["ESSA"]


def as_published(module, network):
    """The same network made of the authors' classes."""

    def copy(part):
        plain = {"ESSAformer": "ESSA", "IterativeBlock": "blockup", "Attention": "ESSAttn"}
        if type(part).__name__ == "Refinement":
            name = "Convup" if part.convolutions == "convu" else "Convdown"
        elif type(part).__name__ == "Resampling":
            name = "Upsample" if isinstance(part[1], nn.PixelShuffle) else "Downsample"
        else:
            name = plain.get(type(part).__name__)
        if name is None and not isinstance(part, nn.Sequential):
            return part
        made = getattr(module, name)() if name else nn.Sequential()
        for key, child in part.named_children():
            made.add_module(key, copy(child))
        return made

    made = copy(network)
    made.blockup.convup.patch_embed = module.PatchEmbed()
    return made


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_published_format_is_converted(authors, tmp_path, wrapped):
    network = ESSAformer(7, 8, 4)
    module = as_published(authors, network)
    if wrapped:
        module = nn.DataParallel(module)
        module.device_ids, module.src_device_obj = [0], torch.device("cuda", 0)
    path, out = tmp_path / "chikusei.pth", tmp_path / "essaformer_x4.chikusei.safetensors"
    torch.save({"epoch": 40, "model": module}, path)
    card = convert(path, out, weights_digest(path))
    assert (card.name, card.bands, card.scale, card.reach) == ("essaformer_x4.chikusei", 7, 4, None)
    assert card.settings == {"bands": 7, "width": 8}
    assert card.training["converted_from_sha256"] == weights_digest(path)
    assert model_card(out) == card
    x = torch.rand(1, 7, 5, 6)
    with torch.no_grad():
        assert torch.equal(create_model("essaformer_x4", out)(x), network.eval()(x))
    with pytest.raises(ModelError, match=r"sha256 is .*, expected 0000"):
        convert(path, out, "0" * 64)


class Evil:
    """An object whose pickle calls something."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


@pytest.mark.parametrize("hidden", ["top", "in the module", "as a tensor"])
def test_a_pickle_that_would_run_something_is_refused(authors, tmp_path, hidden):
    mark, path = tmp_path / "was_here", tmp_path / "evil.pth"
    evil = Evil(os.system, f"touch {mark}")
    module = as_published(authors, ESSAformer(3, 4, 2))
    if hidden == "in the module":
        module.blockup.convup.extra = evil
    if hidden == "as a tensor":
        module.conv_first._buffers["more"] = evil
    torch.save({"model": module, **({"note": evil} if hidden == "top" else {})}, path)
    with pytest.raises(
        ModelError, match=r"holds (posix|nt).system, which is no part of a published checkpoint; nothing"
    ):
        convert(path, tmp_path / "essaformer_x2.safetensors")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["evil.pth"]


@pytest.mark.parametrize("call", [(eval, "1"), (getattr, "a", "upper"), (__import__, "socket"), (bytearray, 10)])
def test_names_of_python_itself_are_refused(tmp_path, call):
    path = tmp_path / "evil.pth"
    torch.save({"model": Evil(*call)}, path)
    with pytest.raises(ModelError, match=r"holds \w+\.\w+, which is no part"):
        convert(path, tmp_path / "a.safetensors")


def test_other_files_are_refused(tmp_path):
    path, out = tmp_path / "a.pth", tmp_path / "a.safetensors"
    torch.save({"model": {"weight": torch.zeros(3)}}, path)
    with pytest.raises(ModelError, match=r"no module at the top or under 'model'"):
        convert(path, out)
    path.write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ModelError, match=r"not a (whole )?zip|no zip|archive"):
        convert(path, out)
    torch.save(nn.Sequential(nn.Conv2d(2, 3, 1)), path)
    with pytest.raises(ModelError, match=r"no conv_first and convupsample, so this is no ESSAformer"):
        convert(path, out)
    whole = tmp_path / "whole.pth"
    torch.save(nn.Sequential(nn.Conv2d(2, 3, 1)), whole)
    path.write_bytes(whole.read_bytes()[:-400])
    with pytest.raises(ModelError):
        convert(path, out)

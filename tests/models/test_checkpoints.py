"""Weights on disk: what is read, and what is refused before it can do harm."""

import os
import pickle  # noqa: TID251 - what an attacker uses
import zipfile

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cubeloom.errors import ModelError
from cubeloom.models import checkpoints
from cubeloom.models.checkpoints import load_strictly, read_weights, weights_digest, write_weights


def read(path):
    return read_weights(path, weights_digest(path))


def equal(state, network) -> bool:
    expected = network.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(state[key], expected[key]) for key in expected)


class Runs:
    """When unpickled, makes a folder: what an attacker would do, but harmless."""

    def __init__(self, target) -> None:
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


class TestForms:
    def test_what_is_written_is_read(self, tiny, tmp_path):
        digest = write_weights(tiny, tmp_path / "new" / "a.safetensors")
        assert digest == weights_digest(tmp_path / "new" / "a.safetensors")
        assert equal(read_weights(tmp_path / "new" / "a.safetensors", digest), tiny)

    @pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
    @pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
    @pytest.mark.parametrize("key", [None, "net", "state_dict", "model"])
    @pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
    def test_every_wrapping_gives_the_same_weights(self, tiny, tmp_path, suffix, legacy, key, prefix):
        state = {prefix + name: value for name, value in tiny.state_dict().items()}
        content = state if key is None else {"epoch": 80, "optimizer": {"state": {}, "lr": 1e-3}, key: state}
        path = tmp_path / f"a{suffix}"
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        assert equal(read(path), tiny)

    def test_a_prefix_that_only_some_keys_have_is_part_of_their_names(self, tmp_path):
        torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "a.pt")
        assert set(read(tmp_path / "a.pt")) == {"module.a", "b"}

    def test_missing_batch_counters_are_let_pass(self, tiny, families):
        state = {key: value for key, value in tiny.state_dict().items() if not key.endswith("num_batches_tracked")}
        other = families(1, 4)
        load_strictly(other, state, "theirs")
        assert all(torch.equal(other.state_dict()[key], value) for key, value in state.items())

    def test_half_precision_is_widened(self, tiny, families):
        other = families(1, 4)
        load_strictly(other, {key: value.half() for key, value in tiny.state_dict().items()}, "halved")
        assert {value.dtype for value in other.parameters()} == {torch.float32}
        assert torch.equal(other.head.weight, tiny.head.weight.half().float())


class TestRefused:
    def test_a_wrong_hash_before_anything_is_parsed(self, tmp_path):
        path, target = tmp_path / "a.pt", tmp_path / "ran"
        path.write_bytes(pickle.dumps(Runs(target)))
        with pytest.raises(
            ModelError, match=rf"sha256 is {weights_digest(path)}, expected {'0' * 64}; .*fetch it again"
        ):
            read_weights(path, "0" * 64)
        assert not target.exists()

    @pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle", "under net"])
    def test_a_pickle_with_code_in_it_which_is_not_run(self, tmp_path, form):
        path, target = tmp_path / "a.pth", tmp_path / "ran"
        if form == "bare pickle":
            path.write_bytes(pickle.dumps(Runs(target)))
        else:
            content = {"net": Runs(target)} if form == "under net" else Runs(target)
            torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
        with pytest.raises(ModelError, match=r"a.pth: holds (the type posix.mkdir|more than tensors).*not loaded"):
            read(path)
        assert not target.exists()
        if form == "bare pickle":
            pickle.loads(path.read_bytes())
        else:
            torch.load(path, weights_only=False)  # noqa: TID251
        assert target.exists(), "the file was harmless, so the test showed nothing"

    def test_a_whole_module(self, tmp_path):
        torch.save(nn.Conv2d(1, 1, 1), tmp_path / "a.pt")
        with pytest.raises(ModelError, match=r"the type torch.nn.modules.conv.Conv2d.*state dict"):
            read(tmp_path / "a.pt")

    def test_a_torchscript_archive(self, tmp_path):
        torch.jit.save(torch.jit.trace(nn.Conv2d(1, 1, 1), torch.zeros(1, 1, 2, 2)), tmp_path / "a.pt")
        with pytest.raises(ModelError, match=r"a.pt: .*"):
            read(tmp_path / "a.pt")

    @pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
    @pytest.mark.parametrize("kept", [0, 7, 200, -30])
    def test_a_file_that_is_cut_short(self, tiny, tmp_path, name, kept):
        path = tmp_path / name
        if path.suffix == ".pth":
            torch.save(tiny.state_dict(), path)
        else:
            write_weights(tiny, path)
        path.write_bytes(path.read_bytes()[:kept])
        with pytest.raises(ModelError, match=rf"weights .*{name}: not a whole .*fetch it again"):
            read(path)

    def test_a_safetensors_header_that_points_elsewhere(self, tiny, tmp_path):
        path = tmp_path / "a.safetensors"
        write_weights(tiny, path)
        content = path.read_bytes()
        assert b'"data_offsets":[0,' in content
        path.write_bytes(content.replace(b'"data_offsets":[0,', b'"data_offsets":[9,', 1))
        with pytest.raises(ModelError, match="not a whole safetensors file"):
            read(path)

    def test_another_file_by_its_suffix(self, tmp_path):
        (tmp_path / "a.onnx").write_bytes(b"")
        with pytest.raises(ModelError, match=r"suffix '.onnx' is not known; expected .safetensors"):
            read(tmp_path / "a.onnx")

    def test_a_checkpoint_without_a_state_dict(self, tmp_path):
        torch.save({"weights_of_mine": {"a": torch.ones(1)}, "epoch": 3}, tmp_path / "a.pt")
        with pytest.raises(ModelError, match=r"under net or state_dict or model; found weights_of_mine, epoch"):
            read(tmp_path / "a.pt")
        torch.save([torch.ones(1)], tmp_path / "b.pt")
        with pytest.raises(ModelError, match=r"found list"):
            read(tmp_path / "b.pt")

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_weights_that_are_not_finite(self, tmp_path, value):
        save_file({"fine": torch.ones(2), "broken": torch.tensor([1.0, value])}, tmp_path / "a.safetensors")
        with pytest.raises(ModelError, match="NaN or infinity in broken; the training"):
            read(tmp_path / "a.safetensors")

    def test_tensors_that_are_not_dense(self, tmp_path):
        torch.save({"thin": torch.eye(3).to_sparse()}, tmp_path / "a.pt")
        with pytest.raises(ModelError, match="thin are not dense"):
            read(tmp_path / "a.pt")

    def test_a_tensor_larger_than_its_file(self, tmp_path):
        torch.save({"fine": torch.ones(2), "swollen": torch.ones(1).expand(10**6, 10**6)}, tmp_path / "a.pt")
        with pytest.raises(ModelError, match=r"a.pt: swollen have more bytes than the file's"):
            read(tmp_path / "a.pt")

    def test_numbers_of_a_type_that_no_network_has(self, tmp_path):
        save_file({"odd": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "a.safetensors")
        with pytest.raises(ModelError, match="odd are not dense"):
            read(tmp_path / "a.safetensors")

    def test_a_safetensors_shape_that_cannot_be(self, tmp_path):
        head = b'{"a":{"dtype":"F32","shape":[0,9223372036854775807,4],"data_offsets":[0,0]}}'
        (tmp_path / "a.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
        with pytest.raises(ModelError, match="not a whole safetensors file"):
            read(tmp_path / "a.safetensors")

    def test_an_archive_whose_size_cannot_be_told_is_not_handed_on(self, tiny, tmp_path):
        """Torch unpacks archives by other rules than Python: what one cannot list the other must not load."""
        torch.save(tiny.state_dict(), tmp_path / "a.pt")
        content = (tmp_path / "a.pt").read_bytes()
        (tmp_path / "a.pt").write_bytes(content[: content.rindex(b"PK\5\6")] + bytes(70_000))
        with pytest.raises(ModelError, match=r"not a whole PyTorch checkpoint \(its archive: not a readable ZIP"):
            read(tmp_path / "a.pt")

    def test_an_archive_that_unpacks_to_more_than_the_limit(self, tmp_path, monkeypatch):
        monkeypatch.setattr(checkpoints, "FILE_LIMIT", 10_000)
        with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/data.pkl", bytes(20_000))
        with pytest.raises(ModelError, match="unpacks to 20,000 bytes; at most 10,000"):
            read(tmp_path / "a.pt")
        (tmp_path / "b.pt").write_bytes(bytes(20_000))
        with pytest.raises(ModelError, match="more than 10,000 bytes"):
            read(tmp_path / "b.pt")

    def test_another_architecture_with_the_first_keys_of_each_kind(self, tiny, families):
        state = tiny.state_dict()
        state["head.weight"] = state["head.weight"][..., :1]
        state["bn.weight"] = state.pop("tail.weight")
        state |= {f"extra.{n}": torch.ones(1) for n in range(5)}
        with pytest.raises(ModelError) as caught:
            load_strictly(families(1, 4), state, "theirs.pth")
        assert "weights theirs.pth are of another architecture than Tiny" in str(caught.value)
        assert "1 missing: tail.weight" in str(caught.value)
        assert "5 unexpected: extra.0, extra.1, extra.2, ..." in str(caught.value)
        assert "2 of another shape: head.weight (4, 1, 3, 3, 1) instead of (4, 1, 3, 3, 3)" in str(caught.value)

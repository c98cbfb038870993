"""A workflow with a network: how its tiles were computed is on record, and a killed run computes none again."""

import json
import sqlite3

import numpy as np
import pytest
import torch

import cubeloom
from cubeloom.pipeline import inference
from cubeloom.pipeline.journal import TileRecord
from cubeloom.pipeline.tiles import How
from cubeloom.workflows.layout import Layout
from cubeloom.workflows.ledger import Ledger
from cubeloom.workflows.run import run


@pytest.fixture
def network_workflow(save_toy, workflow):
    """A workflow that denoises by a toy network which takes no more than `most` samples at once."""

    def make(most: int):
        saved = save_toy("toy", {"most": most}, bands=5, tile=64)
        step = {"method": "network", "model": saved.model, "weights": saved.weights}
        return workflow(f"[mask, {json.dumps({'denoise': step})}]")

    return make


def test_a_batch_that_did_not_fit_is_told_in_ledger_item_and_report(network_workflow, small, tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "LARGEST_BATCH", {"cpu": 8})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (result,) = run(network_workflow(2), small.items[:1], tmp_path).scenes
    assert result.state == "published"
    layout = Layout(tmp_path)
    item = json.loads(layout.item(result.item.id, "test").read_text())
    told = item["properties"]["cubeloom:inference"]
    assert told == result.inference
    assert [(one["step"], one["device"], one["precision"], one["batch"]) for one in told] == [(2, "cpu", "float32", 2)]
    assert told[0]["wanted"] == "cpu x8"
    assert told[0]["tiles"] > 0
    assert any("memory did not suffice for cpu x8" in warning for warning in result.warnings)
    rows = sqlite3.connect(layout.ledger).execute("SELECT device, batch, wanted, count(*) FROM tile").fetchall()
    assert rows == [("cpu", 2, "cpu x8", told[0]["tiles"])]
    (again,) = run(network_workflow(2), small.items[:1], tmp_path).scenes
    assert again.state == "unchanged"


def test_the_ladder_is_no_part_of_a_products_identity(network_workflow, small, tmp_path, monkeypatch):
    """The same product but for the last bits, in which sums over a batch differ; its item says how it came about."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    workflow = network_workflow(2)
    (alone,) = run(workflow, small.items[:1], tmp_path / "a").scenes
    monkeypatch.setattr(inference, "LARGEST_BATCH", {"cpu": 8})
    (cut,) = run(workflow, small.items[:1], tmp_path / "b").scenes
    assert alone.identity == cut.identity
    assert alone.inference != cut.inference
    first, second = (cubeloom.open_scene(one.product) for one in (alone, cut))
    assert first.attrs["subject"] == "denoised"
    np.testing.assert_allclose(first.denoised, second.denoised, atol=1.1e-4, equal_nan=True)


def test_a_network_is_named_on_the_command_line(cli, save_toy, small, tmp_path):
    saved = save_toy(bands=5, tile=64)
    source, out = small.items[0].product_path, tmp_path / "out.zarr"
    ended = cli("denoise", source, out, "--model", saved.model, "--weights", saved.weights, "--uncertainty")
    assert ended.code == 0, ended.err
    product = cubeloom.open_scene(out)
    assert "network toy" in product.attrs["history"]
    assert float(product.uncertainty.max()) > 0
    ended = cli("denoise", source, tmp_path / "default.zarr")
    assert ended.code == 0, ended.err
    assert "network hsdt_s.enmap" in cubeloom.open_scene(tmp_path / "default.zarr").attrs["history"]
    ended = cli("denoise", source, tmp_path / "no.zarr", "--method", "subspace", "--model", saved.model)
    assert ended.code == 2
    assert "belong to method network" in ended.err
    ended = cli("denoise", source, tmp_path / "no.zarr", "--model", saved.model)
    assert ended.code == 2
    assert "has no weights" in ended.err


def test_tiles_on_record_outlive_the_process_and_the_product(tmp_path):
    path = tmp_path / "ledger.sqlite"
    records = [TileRecord(0, 17, How("cuda", "bfloat16", 4, "cuda x8")), TileRecord(1, 2**32 - 1, How())]
    with Ledger(path) as ledger:
        ledger.begin("id1", "item", "flow")
        ledger.journal("id1").add_tiles(2, records)
        ledger.journal("id2").add_tiles(0, records[:1])
    with Ledger(path) as ledger:
        assert ledger.journal("id1").tiles() == {(2, 0): records[0], (2, 1): records[1]}
        ledger.end("item", "flow", "succeeded", product="p.zarr")
        assert len(ledger.journal("id1").tiles()) == 2, "how a product was computed stays on record"
        ledger.forget("id1")
        assert ledger.journal("id1").tiles() == {}
        assert len(ledger.journal("id2").tiles()) == 1

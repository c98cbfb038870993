"""Workflow files: what is wrong is named, with the nearest right word."""

import pytest

from cubeloom.errors import ConfigError
from cubeloom.workflows.schema import library, load_workflow


def written(tmp_path, text: str) -> str:
    path = tmp_path / "w.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nstep: [mask]", "unknown key 'step'; did you mean 'steps'"),
        ("name: a\nsteps: [mak]", "unknown stage 'mak'; did you mean 'mask'"),
        ("name: a\nsteps:\n  - mask: {dilat: 2}", r"step 1 \(mask\): unknown key 'dilat'; did you mean 'dilate'"),
        ("name: a\nsteps:\n  - mask: {dilate: many}", r"step 1 \(mask\): dilate: .*found 'many'"),
        ("name: a\nsteps:\n  - {mask: {}, denoise: {}}", "expected one stage, found mask, denoise"),
        ("name: ../evil", "name: .*found '../evil'"),
        ("[1, 2]", "expected a mapping"),
        ("name: &a x\ndescription: *a", "alias"),
        ("name: !!python/object/apply:os.system ['true']", "w.yaml"),
        ("name: a\nname: b", "twice|duplicate"),
    ],
)
def test_a_wrong_workflow_says_what_and_where(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load_workflow(written(tmp_path, text))


def test_an_unknown_name_gets_the_nearest_of_the_library():
    with pytest.raises(ConfigError, match="did you mean 'enmap_l2a'"):
        load_workflow("enmap_l2")


@pytest.mark.parametrize("name", library())
def test_the_library_loads(name):
    workflow = load_workflow(name)
    assert workflow.name == name
    assert workflow.description


def test_settings_change_parameters_and_the_digest(tmp_path):
    path = written(tmp_path, "name: a\nsteps:\n  - mask\n  - denoise: {rank: 5}")
    plain, changed = load_workflow(path), load_workflow(path, ["mask.dilate=3", "denoise.rank=7"])
    assert changed.stages()[0].dilate == 3
    assert changed.stages()[1].rank == 7
    assert changed.digest() != plain.digest()
    with pytest.raises(ConfigError, match="no step 'classify'"):
        load_workflow(path, ["classify.model=x"])
    with pytest.raises(ConfigError, match=r"STEP\.PARAMETER=VALUE"):
        load_workflow(path, ["mask"])


def test_a_renamed_workflow_makes_the_same_product(tmp_path):
    first = load_workflow(written(tmp_path, "name: a\nsteps: [mask]"))
    second = load_workflow(written(tmp_path, "name: b\ndescription: other\nsteps: [mask]"))
    assert first.digest() == second.digest()

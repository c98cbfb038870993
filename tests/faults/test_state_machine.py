"""Any order of beginning, writing, crashing, resuming, publishing, reading, collecting and damaging, against a model.

The ledger, the layout, the store, the engine and the sweep are the real ones; a crash lets go of the ledger without a
word, and may leave behind what a kill in the middle of a write leaves. The model knows which versions of every scene
stand, and which one its item points to; whatever a reader sees must agree with it.
"""

import hashlib
import shutil
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cubeloom.catalogs.items import CatalogItem, read_catalog
from cubeloom.catalogs.publish import publish_item, write_index
from cubeloom.errors import Stopped, StoreError
from cubeloom.pipeline import memory, store
from cubeloom.pipeline.engine import execute, quiet
from cubeloom.pipeline.executor import Threads
from cubeloom.pipeline.journal import MemoryJournal
from cubeloom.pipeline.plan import Plan
from cubeloom.pipeline.readers import open_source
from cubeloom.pipeline.simulate import simulate_scene
from cubeloom.workflows.describe import product_record
from cubeloom.workflows.inspect import validate_path
from cubeloom.workflows.layout import Layout
from cubeloom.workflows.ledger import Ledger
from cubeloom.workflows.scan import scan
from cubeloom.workflows.scene_task import plan_scene
from cubeloom.workflows.schema import load_workflow
from cubeloom.workflows.sweep import drop_versions, sweep

from .reader import breaches, leftovers, product_of, stamps

FLOW = "flow"
SCENES, VERSIONS = 2, 3


@dataclass(frozen=True)
class World:
    """Two scenes and three versions of a workflow: their plans, and the commit records of undisturbed runs."""

    items: list[CatalogItem]
    plans: dict[tuple[int, int], Plan]
    commits: dict[str, str]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    for seed in range(SCENES):
        simulate_scene(folder / "in", seed=seed, height=260, width=40, n_vnir=2, n_swir=2)
    items = read_catalog(scan(folder / "in", folder / "catalog").catalog)
    (folder / "flow.yaml").write_text(f"name: {FLOW}\nsteps: [mask, destripe]\n")
    plans, commits = {}, {}
    with pytest.MonkeyPatch.context() as patch, Threads(1) as threads:
        patch.setattr(memory, "LARGEST_BLOCK", 128)
        for number, item in enumerate(items):
            for version in range(VERSIONS):
                workflow = load_workflow(str(folder / "flow.yaml"), [f"mask.dilate={version}"])
                plan = plan_scene(workflow, open_source(item.product_path), 1, 4 * 10**9, content=item.content_key())
                staged = folder / "undisturbed" / f"{number}-{version}"
                execute(plan, staged, MemoryJournal(), threads, quiet)
                plans[number, version] = plan
                commits[plan.identity] = (staged / store.COMMIT).read_text()
    return World(items, plans, commits)


@dataclass
class Work:
    """A scene that is being worked on, and how far it is: building, sealed, in place, announced."""

    scene: int
    plan: Plan
    stage: str = "building"


@dataclass
class Model:
    """What readers may see: versions that stand by scene, the one its item points to, and those that were damaged."""

    standing: dict[int, set[str]] = field(default_factory=lambda: {number: set() for number in range(SCENES)})
    pointed: dict[int, str] = field(default_factory=dict)
    damaged: set[int] = field(default_factory=set)


class Publishing(RuleBasedStateMachine):
    def __init__(self, world: World) -> None:
        super().__init__()
        self.world, self.model = world, Model()
        self.folder = Path(tempfile.mkdtemp(prefix="machine-"))
        self.layout = Layout(self.folder / "out")
        self.ledger: Ledger | None = None
        self.work: Work | None = None
        self.seen: object = None

    def teardown(self) -> None:
        """Whatever has happened: the next run brings every scene to its end, and leaves nothing."""
        try:
            if self.ledger is None:
                self.resume()
            if self.work is not None:
                self.finish()
            for scene in range(SCENES):
                self.run_whole(scene, 0)
            write_index(self.layout.out)
            self.crash(None)
            self.resume()
            self.readers_see_committed_states()
            assert not leftovers(self.layout.out)
        finally:
            if self.ledger:
                self.ledger.__exit__(None, None, None)
            shutil.rmtree(self.folder)

    def product(self, scene: int, identity: str) -> Path:
        return self.layout.product(self.world.items[scene].id, FLOW, identity)

    @property
    def staged(self) -> Path:
        return self.layout.staging(self.work.plan.identity)

    # --- a run -----------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.ledger is None)
    @rule()
    def resume(self):
        """A run begins: it takes over what a dead one has left, and sweeps."""
        self.ledger = Ledger(self.layout.ledger)
        self.ledger.take_over()
        sweep(self.layout, self.ledger)

    @precondition(lambda self: self.ledger and not self.work)
    @rule(scene=st.integers(0, SCENES - 1), version=st.integers(0, VERSIONS - 1))
    def begin(self, scene, version):
        """As a scene's task does: nothing where the product stands, straight to the item where the store does."""
        plan = self.world.plans[scene, version]
        item = self.world.items[scene].id
        if scene in self.model.damaged:
            return
        if self.layout.stands(item, FLOW, plan.identity):
            assert self.model.pointed[scene] == plan.identity
            product = str(self.product(scene, plan.identity))
            self.ledger.end(item, FLOW, "succeeded", product=product, identity=plan.identity)
            return
        self.ledger.claim({item: ""}, FLOW, "run")
        for left in self.ledger.begin(plan.identity, item, FLOW):
            shutil.rmtree(self.layout.staging(left), ignore_errors=True)
        self.work = Work(scene, plan)
        if (self.product(scene, plan.identity) / store.COMMIT).is_file():
            self.work.stage = "in place"
        elif not self.staged.exists():
            self.ledger.forget(plan.identity)

    @precondition(lambda self: self.work and self.work.stage == "building")
    @rule(blocks=st.integers(1, 7))
    def write(self, blocks):
        """Some blocks, and the seal once all stand."""
        stop, plan = threading.Event(), self.work.plan
        left = blocks

        def noted(*_: object) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                stop.set()

        journal = self.ledger.journal(plan.identity)
        before = set(journal.chunks())
        try:
            with Threads(1, stop) as threads:
                execute(plan, self.staged, journal, threads, quiet, noted)
        except Stopped:
            assert set(journal.chunks()) >= before
            return
        self.work.stage = "sealed"

    @precondition(lambda self: self.work and self.work.stage == "sealed")
    @rule()
    def put_in_place(self):
        scene, identity = self.work.scene, self.work.plan.identity
        store.publish(self.staged, self.product(scene, identity))
        self.model.standing[scene].add(identity)
        self.work.stage = "in place"

    @precondition(lambda self: self.work and self.work.stage == "in place")
    @rule()
    def announce(self):
        scene, plan = self.work.scene, self.work.plan
        product = self.product(scene, plan.identity)
        digest = hashlib.sha256((product / store.COMMIT).read_bytes()).hexdigest()
        options = {"workflow": FLOW, "identity": plan.identity, "commit_sha256": digest}
        publish_item(
            self.layout.out, product_record(plan.groups[0], self.world.items[scene], product, pictures={}, **options)
        )
        self.model.pointed[scene] = plan.identity
        self.work.stage = "announced"

    @precondition(lambda self: self.work and self.work.stage == "announced")
    @rule()
    def end(self):
        scene, identity = self.work.scene, self.work.plan.identity
        product = str(self.product(scene, identity))
        self.ledger.end(self.world.items[scene].id, FLOW, "succeeded", product=product, identity=identity)
        assert not self.ledger.journal(identity).chunks()
        self.work = None

    @precondition(lambda self: self.ledger)
    @rule()
    def index(self):
        write_index(self.layout.out)

    def finish(self):
        """All that is left of the scene under way."""
        while self.work:
            steps = {"building": lambda: self.write(99), "sealed": self.put_in_place, "in place": self.announce}
            steps.get(self.work.stage, self.end)()

    @precondition(lambda self: self.ledger and not self.work)
    @rule(scene=st.integers(0, SCENES - 1), version=st.integers(0, VERSIONS - 1))
    def run_whole(self, scene, version):
        """A scene without disturbance; one that was damaged is taken away first, as an operator does."""
        if scene in self.model.damaged:
            damaged = self.model.pointed[scene]
            self.layout.discard(self.product(scene, damaged))
            self.model.standing[scene].discard(damaged)
            self.model.damaged.discard(scene)
            version = next(v for v in range(VERSIONS) if self.world.plans[scene, v].identity == damaged)
        self.begin(scene, version)
        self.finish()
        assert self.model.pointed[scene] == self.world.plans[scene, version].identity

    # --- what goes wrong -------------------------------------------------------------------------------------------

    @precondition(lambda self: self.ledger)
    @rule(torn=st.sampled_from([None, "chunk", "commit", "document", "trash"]))
    def crash(self, torn):
        """The process is gone; what it wrote at that moment is half there."""
        if torn == "chunk" and self.work and self.staged.exists():
            known = self.ledger.journal(self.work.plan.identity).chunks()
            folder = self.staged / "reflectance/c/0"
            free = [row for row in range(3) if f"reflectance/c/0/{row}/0" not in known and folder.exists()]
            for row in free[:1]:
                (folder / str(row) / "0").write_bytes(b"half a chu")
        if torn == "commit" and self.work and self.staged.exists():
            (self.staged / store.COMMIT).write_text('{"layout": 1, "ident')
        if torn == "document" and self.work:
            folder = self.layout.scene(self.world.items[self.work.scene].id)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f".{FLOW}.json.abc.partial").write_text('{"type": "Feat')
        if torn == "trash":
            (self.layout.trash / "old.zarr").mkdir(parents=True, exist_ok=True)
        self.ledger.__exit__(None, None, None)
        self.ledger = self.work = None

    @precondition(lambda self: self.ledger)
    @rule()
    def stop(self):
        """SIGTERM: the claims are let go."""
        self.ledger.release("run")
        assert {row.state for row in self.ledger.scenes()} <= {"aborted", "succeeded"}
        self.crash(None)

    @precondition(lambda self: self.model.pointed)
    @rule(pick=st.randoms(use_true_random=False))
    def corrupt(self, pick):
        """A bit flips in what is published: validating finds it."""
        scene = pick.choice(sorted(self.model.pointed))
        product = self.product(scene, self.model.pointed[scene])
        file = pick.choice(sorted(path for path in product.rglob("*") if path.is_file() and path.name != store.COMMIT))
        content = bytearray(file.read_bytes())
        content[pick.randrange(len(content))] ^= 1 << pick.randrange(8)
        file.write_bytes(content)
        if scene in self.model.damaged:
            return  # the same bit may have flipped back
        self.model.damaged.add(scene)
        with pytest.raises(StoreError, match=file.relative_to(product).as_posix()):
            list(validate_path(product))

    # --- what is taken away ----------------------------------------------------------------------------------------

    @precondition(lambda self: self.ledger and not self.work and self.model.pointed)
    @rule(keep=st.integers(1, VERSIONS), pick=st.randoms(use_true_random=False))
    def collect(self, keep, pick):
        scene = pick.choice(sorted(self.model.pointed))
        current, before = self.model.pointed[scene], self.model.standing[scene]
        drop_versions(self.layout, self.world.items[scene].id, FLOW, self.product(scene, current), keep)
        after = {identity for identity in before if self.product(scene, identity).exists()}
        assert current in after
        assert len(after) == min(keep, len(before))
        self.model.standing[scene] = after

    @precondition(lambda self: self.ledger)
    @rule()
    def sweep_again(self):
        """What is under way, and what a run will go on with, is no leftover."""
        before = self.staged.exists() if self.work else None
        sweep(self.layout, self.ledger)
        assert before == (self.staged.exists() if self.work else None)

    # --- readers ---------------------------------------------------------------------------------------------------

    @invariant()
    def readers_see_committed_states(self):
        for scene, item in enumerate(self.world.items):
            path = self.layout.item(item.id, FLOW)
            assert path.exists() == (scene in self.model.pointed)
            standing = {self.product(scene, identity) for identity in self.model.standing[scene]}
            assert set(self.layout.scene(item.id).glob("*.zarr")) == standing
            if scene in self.model.pointed:
                identity = self.model.pointed[scene]
                assert product_of(path) == self.product(scene, identity)
                assert (product_of(path) / store.COMMIT).read_text() == self.world.commits[identity]
        if self.seen == (seen := stamps(self.layout.out)):
            return  # to hash the same files again would tell the same
        self.seen = seen
        damaged = {str(self.product(scene, self.model.pointed[scene])) for scene in self.model.damaged}
        assert not [one for one in breaches(self.layout.out) if not any(path in one for path in damaged)]

    @invariant()
    def the_ledger_agrees(self):
        if self.ledger is None:
            return
        numbers = {item.id: number for number, item in enumerate(self.world.items)}
        for row in self.ledger.scenes():
            if row.state == "succeeded":
                assert self.model.pointed[numbers[row.item]] == row.identity
            elif row.state == "processing":
                assert self.work is not None
                assert row.identity == self.work.plan.identity


def test_readers_see_nothing_but_committed_states(world, monkeypatch):
    monkeypatch.setattr(memory, "LARGEST_BLOCK", 128)
    steps = settings(
        max_examples=12,
        stateful_step_count=25,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(lambda: Publishing(world), settings=steps)

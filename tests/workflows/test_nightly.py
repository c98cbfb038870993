"""Night after night against a STAC API on loopback: what is run, and how far the watermark moves."""

import fcntl
import json
import os
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cubeloom.catalogs.items import read_catalog
from cubeloom.catalogs.search import Query
from cubeloom.errors import ConfigError, LockedError, RetryableError, StoreError
from cubeloom.workflows.layout import Layout
from cubeloom.workflows.nightly import Reach, _Night, nightly
from cubeloom.workflows.nightly_job import NightlyJob
from cubeloom.workflows.notify import WEBHOOK
from cubeloom.workflows.run import RunOptions, run
from cubeloom.workflows.watermark import Mark, Trouble, parse_time, read_mark, write_mark

EVERYTHING = Query()
CHEAP = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
NOW = datetime(2028, 3, 1, 2, 30, tzinfo=UTC)
SINCE = datetime(2028, 2, 1, tzinfo=UTC)
FIRST, SECOND, THIRD = "2028-02-27T08:00:00Z", "2028-02-28T12:00:00.123456Z", "2028-02-29T23:59:59Z"


def moment(text):
    return datetime.fromisoformat(text)


@pytest.fixture(scope="module")
def small(tiny):
    """Scenes of one chunk: how large they are is not the point here."""
    return tiny


@pytest.fixture
def job(archive, workflow, tmp_path):
    """One night over the archive."""
    mask = workflow()

    def night(query=EVERYTHING, now=NOW, stop=None, chain=mask, **reach):
        reach = Reach(**{"since": SINCE, "overlap": timedelta(0), **reach})
        out, options = tmp_path / "out", RunOptions(retries=0)
        return nightly(chain, archive.server.url, query, out, options, reach=reach, stop=stop, now=lambda: now)

    return night


def states(result):
    return [scene.state for scene in result.scenes]


def cut_short(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


class TestQuietNights:
    def test_the_first_runs_what_is_new_and_the_next_nothing(self, archive, job, tmp_path):
        for number, updated in enumerate((THIRD, FIRST, SECOND)):
            archive.offer(number, updated)
        first = job()
        assert states(first) == ["published"] * 3
        assert [scene.item.properties["updated"] for scene in first.scenes] == [FIRST, SECOND, THIRD]
        assert (first.before, first.after, first.exit_code) == (SINCE, moment(THIRD), 0)
        assert len(read_catalog(tmp_path / "out")) == 3
        fetched = archive.fetched()
        second = job(overlap=timedelta(days=2))
        assert states(second) == ["unchanged"] * 2, "the first scene lies before the overlap"
        assert second.since == moment(THIRD) - timedelta(days=2)
        assert second.after == moment(THIRD)
        assert second.exit_code == 0
        assert archive.fetched() == fetched, "what stands is not fetched again"

    def test_nothing_new_is_no_failure_and_leaves_no_report(self, job, tmp_path):
        result = job()
        assert (result.found, result.run, result.exit_code) == (0, None, 0)
        assert result.after == SINCE
        assert not (tmp_path / "out" / "runs").exists()

    def test_only_what_is_new_is_run(self, archive, job):
        archive.offer(0, FIRST)
        job()
        new = archive.offer(1, SECOND)
        result = job()
        assert [(scene.item.id, scene.state) for scene in result.scenes if scene.state != "unchanged"] == [
            (new["id"], "published")
        ]
        assert result.after == moment(SECOND)

    def test_what_an_item_without_checksums_holds_is_told_by_its_updated(self, archive, job, tmp_path):
        """DLR gives no checksums: an item that was changed may be a reprocessed product, and is run again."""
        item = archive.offer(0, FIRST)
        [before] = job().scenes
        archive.offer(0, SECOND)
        [after] = job().scenes
        assert after.state == "published"
        assert after.identity != before.identity
        [current] = read_catalog(tmp_path / "out")
        assert current.product_path == after.product.resolve()
        assert before.item.id == after.item.id == item["id"]

    def test_an_item_that_says_its_files_are_the_same_is_not_run_again(self, archive, job):
        archive.offer(0, FIRST, checksums=True)
        job()
        fetched = archive.fetched()
        archive.offer(0, SECOND, checksums=True)
        result = job()
        assert states(result) == ["unchanged"]
        assert result.after == moment(SECOND)
        assert archive.fetched() == fetched

    def test_a_late_entry_within_the_overlap_is_found(self, archive, job):
        """A catalog that lists an item a while after its `updated` says."""
        archive.offer(0, THIRD)
        job()
        archive.offer(1, SECOND)
        assert states(job()) == ["unchanged"]
        assert states(job(overlap=timedelta(days=2))) == ["published", "unchanged"]

    def test_another_area_has_a_watermark_of_its_own(self, archive, job, tmp_path):
        archive.offer(0, FIRST, bbox=(10.0, 50.0, 10.5, 50.4))
        archive.offer(1, SECOND, bbox=(20.0, 50.0, 20.5, 50.4))
        assert job(Query(bbox=(9, 49, 11, 51))).after == moment(FIRST)
        assert job(Query(bbox=(19, 49, 21, 51))).after == moment(SECOND)
        assert states(job(Query(bbox=(9, 49, 11, 51)))) == ["unchanged"]
        state = json.loads((tmp_path / "out/.cubeloom/nightly/test.json").read_text())
        assert sorted(one["watermark"] for one in state["searches"].values()) == [FIRST, SECOND]


class TestBadScenes:
    def test_a_scene_that_fails_keeps_the_watermark_back_until_it_is_mended(self, archive, job):
        archive.offer(0, FIRST)
        broken = archive.offer(1, SECOND)
        archive.offer(2, THIRD)
        image = archive.file(broken)
        whole = image.read_bytes()
        cut_short(image)
        first = job()
        assert states(first) == ["published", "failed", "published"]
        assert (first.after, first.exit_code) == (moment(SECOND), 3)
        assert states(job()) == ["failed", "unchanged"]
        image.write_bytes(whole)
        mended = job()
        assert states(mended) == ["published", "unchanged"]
        assert (mended.after, mended.exit_code) == (moment(THIRD), 0)

    def test_it_is_given_up_after_some_nights_and_taken_up_when_it_changes(self, archive, job):
        broken = archive.offer(0, FIRST)
        cut_short(archive.file(broken))
        archive.offer(1, SECOND)
        assert job(nights=2).after == moment(FIRST)
        archive.offer(2, THIRD)
        second = job(nights=2)
        assert second.given_up == (broken["id"],)
        assert (second.after, second.exit_code) == (moment(THIRD), 3)
        fetched = archive.fetched()
        third = job(nights=2, overlap=timedelta(days=5))
        assert third.left_alone == (broken["id"],)
        assert states(third) == ["unchanged", "unchanged"]
        assert (third.exit_code, archive.fetched()) == (0, fetched)
        archive.offer(0, "2028-03-01T00:00:00Z")
        assert states(job(nights=2)) == ["unchanged", "published"]

    def test_nights_on_which_nothing_could_be_made_do_not_count(self, archive, job):
        """A full disk or a dead network tells nothing of the scenes."""
        cut_short(archive.file(archive.offer(0, FIRST)))
        for _ in range(3):
            result = job(nights=2)
            assert (states(result), result.given_up, result.after) == (["failed"], (), moment(FIRST))

    def test_a_server_that_is_busy_is_not_the_scenes_fault(self, archive, job, stac_server):
        busy, _ = archive.offer(0, FIRST), archive.offer(1, SECOND)
        path = busy["assets"]["image"]["href"].removeprefix("@server@")
        archive.server.then(path, *[stac_server.answer(503)] * 4)
        first = job(nights=1)
        assert states(first) == ["failed", "published"]
        assert (first.given_up, first.after) == ((), moment(FIRST))
        assert states(job(nights=1)) == ["published", "unchanged"]

    def test_a_scene_that_the_workflow_does_not_take_is_settled(self, archive, job, workflow):
        archive.offer(0, FIRST)
        other = workflow(levels="[L1C]")
        first = job(chain=other)
        assert states(first) == ["invalid"]
        assert (first.after, first.exit_code) == (moment(FIRST), 3)
        fetched = archive.fetched()
        second = job(chain=other)
        assert second.left_alone == (first.scenes[0].item.id,)
        assert (second.exit_code, archive.fetched()) == (0, fetched)


class TestTime:
    @pytest.fixture
    def kiritimati(self, monkeypatch):
        """Fourteen hours ahead of UTC: tomorrow there is yesterday here."""
        monkeypatch.setenv("TZ", "Pacific/Kiritimati")
        time.tzset()
        yield
        monkeypatch.undo()
        time.tzset()

    @pytest.mark.usefixtures("kiritimati")
    def test_the_time_zone_of_the_machine_does_not_matter(self, archive, job):
        assert datetime.now().astimezone().utcoffset() == timedelta(hours=14)
        archive.offer(0, "2028-02-29T23:59:59.999999Z")
        archive.offer(1, "2028-03-01T13:30:00+14:00")
        result = job(since=None, now=datetime(2028, 3, 1, 1, 0, tzinfo=UTC))
        assert result.since == datetime(2028, 2, 23, 1, 0, tzinfo=UTC), "a week before, over the leap day"
        assert states(result) == ["published"] * 2
        assert [scene.item.properties["updated"][-1] for scene in result.scenes] == ["0", "Z"]
        assert result.after == datetime(2028, 2, 29, 23, 59, 59, 999999, tzinfo=UTC)
        assert parse_time("2028-02-29") == datetime(2028, 2, 29, tzinfo=UTC)

    def test_a_clock_that_was_set_back_skips_nothing_and_repeats_nothing(self, archive, job):
        archive.offer(0, FIRST)
        job()
        archive.offer(1, SECOND)
        back = job(now=datetime(2001, 1, 1, tzinfo=UTC))
        assert states(back) == ["unchanged", "published"]
        assert back.after == moment(FIRST), "nothing to rely on"
        assert "clock" in back.notes[0]
        archive.offer(2, THIRD)
        right = job()
        assert states(right) == ["unchanged", "unchanged", "published"]
        assert right.after == moment(THIRD)

    def test_a_clock_that_was_set_ahead_skips_nothing(self, archive, job):
        archive.offer(0, FIRST)
        assert job(now=datetime(2099, 1, 1, tzinfo=UTC)).after == moment(FIRST)
        archive.offer(1, SECOND)
        assert states(job()) == ["unchanged", "published"]

    def test_an_item_from_the_future_does_not_take_the_watermark_along(self, archive, job):
        archive.offer(0, FIRST)
        archive.offer(1, "2999-01-01T00:00:00Z")
        first = job()
        assert states(first) == ["published"] * 2
        assert first.after == moment(FIRST)
        archive.offer(2, SECOND)
        second = job()
        assert states(second) == ["unchanged", "published", "unchanged"]
        assert second.after == moment(SECOND)

    def test_the_second_night_begins_where_the_first_one_did_if_nothing_came_of_that(self, archive, job, stac_server):
        archive.server.then("/search", *[stac_server.answer(503)] * 8)
        with pytest.raises(RetryableError) as failed:
            job(since=None)
        assert failed.value.exit_code == 75
        archive.server.answers.clear()
        archive.offer(0, (NOW - timedelta(days=6)).isoformat())
        late = job(since=None, now=NOW + timedelta(days=5))
        assert late.since == NOW - timedelta(days=7)
        assert states(late) == ["published"]

    @pytest.mark.parametrize("text", ["yesterday", "2028-02-30", "2028-13-01"])
    def test_no_time_is_refused(self, text, tmp_path):
        with pytest.raises(ConfigError, match="--since"):
            NightlyJob(workflow="ingest", search="dlr-enmap", out=tmp_path, since=text).run()

    @pytest.mark.parametrize("text", [None, "", "2016-12-31T23:59:60Z", "0001-01-01T00:00:00+14:00", 7, {}])
    def test_a_time_that_a_catalog_garbled_is_none(self, text):
        assert parse_time(text) is None

    def test_more_digits_than_microseconds_are_cut(self):
        assert parse_time("2028-02-29T00:00:00.123456789Z") == datetime(2028, 2, 29, 0, 0, 0, 123456, tzinfo=UTC)


class TestOneAtATime:
    def test_the_same_job_does_not_begin_twice(self, archive, job, tmp_path):
        archive.offer(0, FIRST)
        lock = tmp_path / "out/.cubeloom/nightly/test.lock"
        lock.parent.mkdir(parents=True)
        with lock.open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            with pytest.raises(LockedError) as refused:
                job()
            assert refused.value.exit_code == 75
            assert archive.server.seen == [], "it does not even search"
        assert states(job()) == ["published"]

    def test_another_run_on_the_output_leaves_the_watermark(self, archive, job, tmp_path):
        archive.offer(0, FIRST)
        with Layout(tmp_path / "out").locked(), pytest.raises(LockedError):
            job()
        assert job().before == SINCE

    def test_a_stop_leaves_the_rest_for_the_next_night(self, archive, job):
        archive.offer(0, FIRST)
        archive.offer(1, SECOND)
        stop = threading.Event()
        stop.set()
        stopped = job(stop=stop)
        assert states(stopped) == ["aborted"] * 2
        assert stopped.exit_code == 143
        assert stopped.after < moment(SECOND)
        assert states(job()) == ["published"] * 2


class TestState:
    @pytest.mark.parametrize(
        "content",
        ["[]", '{"searches": 3}', '{"searches": {"k": {"watermark": "2028-02-01"}}}', '{"searches": {"k": 1}}'],
    )
    def test_what_is_no_state_is_said_to_be_none(self, tmp_path, content):
        path = tmp_path / "state.json"
        path.write_text(content)
        with pytest.raises(StoreError, match="not the state of a nightly job"):
            read_mark(path, "k")

    @CHEAP
    @given(
        begun=st.datetimes(timezones=st.just(UTC)),
        reached=st.datetimes(timezones=st.just(UTC)),
        troubles=st.dictionaries(
            st.text(), st.builds(Trouble, st.text(), st.sampled_from(["failed", "invalid"]), st.integers(0, 9))
        ),
    )
    def test_it_is_read_as_it_was_written_beside_others(self, tmp_path_factory, begun, reached, troubles):
        path = tmp_path_factory.mktemp("state") / "state.json"
        mark, other = Mark(begun, reached, troubles), Mark(reached, begun)
        write_mark(path, "k", mark, {"provider": "x"})
        write_mark(path, "l", other, {"provider": "y"})
        assert (read_mark(path, "k"), read_mark(path, "l"), read_mark(path, "m")) == (mark, other, None)


MINUTES = st.integers(0, 60)
ENDS = st.sampled_from(["published", "unchanged", "failed", "invalid", "aborted", "never begun"])


@CHEAP
@given(st.lists(st.tuples(MINUTES, ENDS), min_size=1, max_size=12), MINUTES)
def test_the_watermark_passes_nothing_that_is_unsettled_and_never_goes_back(ends, before):
    times = {f"scene-{number}": SINCE + timedelta(minutes=minute) for number, (minute, _) in enumerate(ends)}
    items = {item: SimpleNamespace(id=item, no_guide="") for item in times}
    state = dict(zip(times, (end for _, end in ends), strict=True))
    mark = Mark(SINCE, SINCE + timedelta(minutes=before))
    night = _Night([(items[item], times[item]) for item in times], dict.fromkeys(times, "r"), mark, Reach())
    night.tick_off(
        [
            SimpleNamespace(item=items[item], state=end, exit_code=3, retryable=False)
            for item, end in state.items()
            if end != "never begun"
        ]
    )
    after = night.watermark(NOW, pytest.fail)
    assert mark.updated <= after <= max(*times.values(), mark.updated)
    open_ends = [times[item] for item, end in state.items() if end in ("failed", "aborted", "never begun")]
    assert after == mark.updated or all(after <= time for time in open_ends)
    if not open_ends:
        assert after == max(*times.values(), mark.updated), "all is settled, so it moves as far as it can"


class TestCommand:
    @pytest.fixture
    def nightly_cli(self, archive, cli, workflow, tmp_path, monkeypatch):
        monkeypatch.delenv(WEBHOOK, raising=False)
        workflow()

        def call(*arguments):
            given = ["--search", archive.server.url, "--out", tmp_path / "out", "--since", "2020-01-01", "--retries", 0]
            return cli("nightly", tmp_path / "test.yaml", *given, *arguments)

        return call

    def test_it_says_what_it_did(self, archive, nightly_cli, tmp_path):
        archive.offer(0, "2024-02-29T00:00:00Z")
        ended = nightly_cli("--json")
        assert ended.code == 0, ended.err
        summary = json.loads(ended.out)
        assert summary["counts"] == {"published": 1}
        assert summary["watermark"] == "2024-02-29T00:00:00Z"
        assert (tmp_path / "out/runs" / summary["run"] / "report.html").is_file()
        again = nightly_cli("--json")
        assert (again.code, json.loads(again.out)["counts"]) == (0, {"unchanged": 1})

    def test_a_failed_scene_is_code_3_also_where_nobody_can_be_told(self, archive, nightly_cli):
        cut_short(archive.file(archive.offer(0, "2024-02-29T00:00:00Z")))
        ended = nightly_cli("--webhook", "http://127.0.0.1:1/s3cret")
        assert ended.code == 3
        assert "could not be told" in ended.err
        assert "s3cret" not in ended.err

    def test_a_search_that_fails_is_told(self, archive, nightly_cli, stac_server):
        archive.server.then("/search", *[stac_server.answer(400, b"no")] * 8)
        ended = nightly_cli("--webhook", "http://127.0.0.1:1/s3cret")
        assert ended.code == 3
        assert "could not be told" in ended.err

    def test_another_run_on_the_output_is_code_75(self, archive, nightly_cli, tmp_path):
        archive.offer(0, "2024-02-29T00:00:00Z")
        with Layout(tmp_path / "out").locked():
            ended = nightly_cli("--webhook", "http://127.0.0.1:1/s3cret")
        assert ended.code == 75
        assert "could not be told" not in ended.err, "waiting for another run is nobody's business"

    def test_sigterm_is_code_143_and_the_next_night_goes_on(self, archive, nightly_cli):
        """The signal arrives while a file is fetched."""
        item = archive.offer(0, "2024-02-29T00:00:00Z")
        path = item["assets"]["image"]["href"].removeprefix("@server@")

        def interrupt(handler):
            os.kill(os.getpid(), signal.SIGTERM)
            handler.send_file(archive.server.files / path.removeprefix("/files/"))

        archive.server.then(path, interrupt)
        stopped = nightly_cli("--json")
        assert stopped.code == 143, stopped.err
        assert json.loads(stopped.out)["counts"] == {"aborted": 1}
        assert json.loads(nightly_cli("--json").out)["counts"] == {"published": 1}

    def test_units_are_printed_and_nothing_is_done(self, archive, nightly_cli, tmp_path):
        for option, word in (("--print-systemd", "Persistent=true"), ("--print-cron", "30 2 * * *")):
            ended = nightly_cli(option)
            assert ended.code == 0
            assert word in ended.out
            assert f"--search {archive.server.url}" in ended.out
            assert option not in ended.out
        assert archive.server.seen == []
        assert not (tmp_path / "out").exists()

    def test_a_wrong_workflow_prints_no_units(self, cli, tmp_path):
        ended = cli("nightly", "no_such", "--search", "dlr-enmap", "--out", tmp_path, "--print-systemd")
        assert ended.code == 2
        assert "unknown workflow" in ended.err


def test_a_job_can_be_written_as_json_and_read_back(tmp_path):
    job = NightlyJob(workflow="ingest", search="dlr-enmap", out=tmp_path, bbox="1,2,3,4", options={"workers": 3})
    assert NightlyJob.model_validate(json.loads(job.model_dump_json())) == job
    assert job.query() == Query(bbox=(1, 2, 3, 4))


def test_the_runner_of_a_night_is_the_one_of_every_run():
    assert nightly.__kwdefaults__["runner"] is run


class TestPairs:
    """EnMAP scenes stand for both sensors; what an item says decides which is which."""

    @pytest.fixture
    def pairs(self, workflow):
        return workflow("[{pair: {guide: s2, sensors: [Sentinel-2], coregister: 'off'}}]", sensors="[EnMAP]")

    def offer_guide(self, archive, scene, updated):
        """A scene that shows the same ground an hour later, and says that it is of Sentinel-2."""
        guide = archive.offer(1, updated)
        guide |= {"geometry": scene["geometry"], "bbox": scene["bbox"]}
        guide["properties"] |= {"platform": "sentinel-2a", "datetime": scene["properties"]["datetime"]}
        return guide

    def test_a_guide_of_an_earlier_night_is_found(self, archive, job, pairs):
        scene = archive.offer(0, THIRD)
        guide = self.offer_guide(archive, scene, FIRST)
        result = job(chain=pairs, since=moment(SECOND))
        assert states(result) == ["published"]
        assert result.scenes[0].item.guides["s2"].id == guide["id"]
        assert (result.found, result.after) == (1, moment(THIRD))

    def test_a_scene_waits_some_nights_for_its_guide(self, archive, job, pairs):
        scene = archive.offer(0, FIRST)
        archive.offer(2, SECOND)
        first = job(chain=pairs, nights=3)
        assert states(first) == ["invalid", "invalid"]
        assert first.after == moment(FIRST), "it is looked at again"
        guide = self.offer_guide(archive, scene, THIRD)
        second = job(chain=pairs, nights=3)
        made = {one.item.id: one for one in second.scenes}
        assert guide["id"] not in made, "a guide is no scene"
        assert made[scene["id"]].state == "published"
        assert second.after == moment(SECOND)
        third = job(chain=pairs, nights=3)
        assert len(third.given_up) == 1
        assert third.after == moment(THIRD)

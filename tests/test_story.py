"""The story of 2012: one machine gets stuck, the others do not, and nothing but their mechanism tells them apart.

``ASLAB_SEEDS=200`` tries so many seeds of each machine, and gives each as much to do as `aslab lab story` does.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import pytest

import aslab
from aslab import KM, Cache, CacheStats
from aslab._allocator import tasks_of
from aslab.lab._story import _computer
from aslab.lab._story import _run as _story
from aslab.lab._story._buffers import caches_of
from aslab.lab._story._chapters import Row
from aslab.lab._story._computer import Computer
from aslab.lab._story._machines import CONTROLS, MACHINES, TICK, Aslab, Machine
from aslab.lab._story._run import Chapter
from aslab.lab._story._spl import Growth, SplCache
from aslab.lab.scenarios import builtin, load, play

SEEDS = int(os.environ.get("ASLAB_SEEDS", "1"))
COMPUTER = _computer.COMPUTER if SEEDS > 1 else dataclasses.replace(_computer.COMPUTER, overcommit=1.6)
ROOT = Path(__file__).parent.parent
BY_NAME = {machine.name: machine for machine in MACHINES}
ALL = {machine.name: machine for machine in (*MACHINES, *CONTROLS)}
CACHES = caches_of(COMPUTER)
FINISHING = ("kernel_patch", "emergency", "emergency_v2", "aslab", "aslab_reserve")
FRAGMENTED = 1 / 32
LONG = 15.0
"""Simulated seconds: twice what a machine takes, with much to do, that does not get stuck."""
BRIEF = 1.1
"""Simulated seconds: enough for all processes to swap, for the original to get stuck, the others to be rescued."""
LONGER = 10
"""Writes in the queue of the disk: of so many, more are under way than one kept buffer can help to their end."""

loops = pytest.mark.parametrize("loop", ["asyncio", "trio"])
each_seed = pytest.mark.parametrize("seed", range(SEEDS))


def begin(name: str, seed: int, loop: str, until: float, pinned: float = 0.0, **others: Any) -> Chapter:
    """A run that is cut off at some time."""
    computer = dataclasses.replace(COMPUTER, until=until, pinned=pinned, **others)
    return _story.tell(ALL[name], computer, seed, loop=loop)


begin_once = functools.cache(begin)


def tell(name: str, seed: int, loop: str = "asyncio", pinned: float = 0.0) -> Chapter:
    """One run, made once for all tests."""
    return begin_once(name, seed, loop, LONG, pinned)  # as said here, for what is left out is another key


def longer(name: str, seed: int, pinned: float = 0.0, until: float = LONG) -> Chapter:
    """The same with a longer queue: there aslab makes emergency objects, too."""
    return begin_once(name, seed, "asyncio", until, pinned, queue_depth=LONGER)


def rate(chapter: Chapter) -> float:
    """Pages swapped a second in the last half of the time that the processes took."""
    points = [point for point in chapter.counters["swapped pages"] if chapter.time / 2 <= point[0] <= chapter.time]
    (began, first), (ended, last) = points[0], points[-1]
    return (last - first) / (ended - began)


@asynccontextmanager
async def remembering(found: dict[str, CacheStats], **options: Any) -> AsyncIterator[aslab.Allocator]:
    """An allocator whose caches' last figures are kept."""
    async with aslab.open_allocator(**options) as kmem:
        yield kmem
        found |= {name: cache.stats() for name, cache in tasks_of(kmem).caches.items()}


class TestOriginal:
    SEEDS = {"asyncio": 10, "trio": 3}  # noqa: RUF012

    def test_gets_stuck_with_9_of_10_seeds(self) -> None:
        assert sum(not tell("original", seed).finished for seed in range(self.SEEDS["asyncio"])) >= 9

    def test_gets_stuck_on_the_other_loop_too(self) -> None:
        assert sum(not tell("original", seed, "trio").finished for seed in range(self.SEEDS["trio"])) >= 2

    @loops
    def test_its_cycle_names_all_its_parts(self, loop: str) -> None:
        row = Row(BY_NAME["original"], tuple(tell("original", seed, loop) for seed in range(self.SEEDS[loop])))
        assert {"vmalloc", "reclaim", "writeback"} <= set(row.cycle)
        assert {"txg_sync", "z_wr_iss", "z_wr_int"} & set(row.cycle)
        assert any(node.startswith("cache ") for node in row.cycle)

    @loops
    def test_whenever_it_is_stuck_that_is_seen_soon_and_who_waits_on_whom(self, loop: str) -> None:
        for seed in range(self.SEEDS[loop]):
            chapter = tell("original", seed, loop)
            if not chapter.finished:
                assert chapter.time < LONG, f"seed {seed}: it was given up"
                assert {"vmalloc", "writeback", "zvol", "txg_sync"} <= set(chapter.cycle)
                assert (chapter.spans[-1].row, chapter.spans[-1].kind) == ("original", "stuck")

    def test_nobody_injects_what_it_is_stuck_in(self) -> None:
        assert not any("Deadlock(" in path.read_text() for path in (ROOT / "aslab/lab/_story").glob("*.py"))


class TestOthers:
    @each_seed
    @pytest.mark.parametrize("name", FINISHING)
    def test_finish_with_every_seed(self, name: str, seed: int) -> None:
        chapter = tell(name, seed)
        assert chapter.finished
        assert (chapter.cycle, chapter.emergency_left) == ((), 0)
        assert chapter.swapped > COMPUTER.pages * (COMPUTER.overcommit - 1)

    @pytest.mark.parametrize("name", FINISHING)
    def test_finish_on_the_other_loop_too(self, name: str) -> None:
        assert tell(name, 0, "trio").finished

    @each_seed
    def test_pf_memalloc_uses_up_the_reserve_that_the_others_leave_alone(self, seed: int) -> None:
        half = COMPUTER.min // 2  # as far as HIGH goes
        assert tell("pf_memalloc", seed).lowest_free_pages < half / 2
        for name in FINISHING:
            assert tell(name, seed).lowest_free_pages >= half, name

    def test_only_machines_with_an_emergency_path_take_emergency_objects(self) -> None:
        took = {name: max(tell(name, seed).emergency_max for seed in range(SEEDS)) for name in BY_NAME}
        assert not any(took[name] for name in ("original", "pf_memalloc", "kernel_patch"))
        assert took["emergency"] > 0
        assert took["aslab_reserve"] > 0

    @each_seed
    def test_one_buffer_kept_for_who_finishes_spares_aslab_the_stall(self, seed: int) -> None:
        chapter = tell("aslab", seed)
        assert (chapter.emergency_max, chapter.deadlocks) == (0, 0)
        assert chapter.longest_wait < TICK / 10
        without = tell("aslab_nothing_kept", 0)
        assert without.emergency_max > 0
        assert TICK <= without.longest_wait < 1.1 * TICK

    @pytest.mark.parametrize("name", ["aslab", "aslab_reserve"])
    def test_a_longer_queue_takes_emergency_objects_all_the_same_and_goes_on(self, name: str) -> None:
        chapter = longer(name, 5)
        assert chapter.finished
        assert chapter.emergency_max > 0
        assert chapter.longest_wait < 2 * TICK


class TestRecovery:
    @each_seed
    def test_aslab_has_no_emergency_object_left_and_had_some(self, seed: int) -> None:
        chapter = longer("aslab", seed)
        points = chapter.counters["emergency"]
        assert max(count for _, count in points) > 0
        assert points[-1][1] == 0
        assert chapter.emergency_left == 0

    def test_aslab_completes_the_grow_and_no_cache_stays_deadlocked(self) -> None:
        found: dict[str, CacheStats] = {}
        with mock.patch.object(_story, "open_allocator", functools.partial(remembering, found)):
            chapter = begin("aslab", 0, "asyncio", LONG, queue_depth=LONGER)
        assert chapter.deadlocks > 0, "there was something to recover from"
        assert set(found) == set(CACHES)
        for stats in found.values():
            assert (stats.obj_emergency, stats.deadlocked, stats.growing) == (0, False, False)
        assert found[CACHES[1]].slab_create > 0

    @each_seed
    @pytest.mark.parametrize("name", ["emergency", "emergency_v2", "aslab"])
    def test_rate_is_that_of_a_machine_that_was_never_stuck(self, name: str, seed: int) -> None:
        chapters = [begin_once(one, seed, "asyncio", LONG, overcommit=2.0) for one in (name, "kernel_patch")]
        assert rate(chapters[0]) == pytest.approx(rate(chapters[1]), rel=0.1)


class TestSeeds:
    @pytest.mark.parametrize(
        ("name", "loop"),
        [("original", "asyncio"), ("emergency", "trio"), ("aslab", "asyncio"), ("aslab", "trio")],
    )
    def test_same_seed_gives_the_same_chapter_and_another_another(self, name: str, loop: str) -> None:
        first, again, other = (begin(name, seed, loop, BRIEF) for seed in (0, 0, 1))
        assert first == again
        assert first.counters != other.counters

    def test_same_seed_gives_the_same_chapter_in_another_process(self) -> None:
        program = (
            "from aslab.lab._story._computer import Computer\nfrom aslab.lab._story._machines import MACHINES\n"
            "from aslab.lab._story._run import tell\n"
            f"for machine in MACHINES[::2]: print(tell(machine, Computer(until={BRIEF}), 3))"
        )
        outputs = [
            subprocess.run(
                [sys.executable, "-c", program],
                env={**os.environ, "PYTHONHASHSEED": hashing, "PYTHONPATH": str(ROOT)},
                capture_output=True,
                timeout=300,
                check=True,
            ).stdout
            for hashing in ("1", "2")
        ]
        assert outputs[0] == outputs[1]
        assert outputs[0].count(b"Chapter(") == len(MACHINES[::2])


class TestFragmented:
    def test_large_emergency_objects_fail_at_order_5_and_slow_the_machine_down_or_stop_it(self) -> None:
        for name in ("emergency", "emergency_v2"):
            seeds = range(1, SEEDS + 1)  # with seed 0, none is ever needed
            chapters = [tell(name, seed, pinned=FRAGMENTED) for seed in seeds]
            hurt = [chapter for chapter in chapters if chapter.failed_by_order[5]]
            assert hurt, name
            patience = ALL[name].growth.patience  # type: ignore[union-attr]
            assert patience is not None
            for chapter in hurt:
                assert chapter.emergency_max == 0
                assert not chapter.finished or chapter.longest_wait > 2 * patience
            for seed in seeds:
                assert tell(name, seed).failed_by_order[5] == 0, "it is fragmentation that does it"

    @pytest.mark.parametrize(("name", "seed"), [("emergency", 1), ("emergency_v2", 3)])
    def test_where_pages_can_be_moved_it_is_slow_and_goes_on(self, name: str, seed: int) -> None:
        chapter = begin(name, seed, "asyncio", LONG, scattered=FRAGMENTED)
        assert chapter.finished
        assert chapter.failed_by_order[5] > 0
        assert chapter.rows_made > 0
        assert chapter.emergency_max > 0
        assert chapter.longest_wait > tell(name, seed).longest_wait + COMPUTER.retry / 2

    @each_seed
    def test_aslab_goes_on_with_single_pages(self, seed: int) -> None:
        chapter = tell("aslab", seed, pinned=FRAGMENTED)
        assert chapter.finished
        assert not any(chapter.failed_by_order[1:])
        assert chapter.emergency_left == 0

    def test_aslab_makes_emergency_objects_all_the_same(self) -> None:
        assert longer("aslab", 1, FRAGMENTED).emergency_max > 0


class TestUnconverted:
    @pytest.mark.parametrize(("name", "asks"), [("kernel_patch", "vmalloc"), ("emergency", "kmalloc")])
    def test_one_caller_with_km_sleep_brings_the_deadlock_back(self, name: str, asks: str) -> None:
        chapter = begin(name, 1, "asyncio", LONG, unconverted=1)
        assert not chapter.finished
        assert {asks, "reclaim", "writeback", "zvol", "txg_sync", "z_wr_iss"} <= set(chapter.cycle)

    @pytest.mark.parametrize("name", ["pf_memalloc", "emergency_noio", "aslab", "aslab_reserve"])
    def test_who_gives_it_no_way_into_reclaim_goes_on(self, name: str) -> None:
        assert begin(name, 1, "asyncio", LONG, unconverted=COMPUTER.issue_tasks).finished


class TestWriters:
    def test_begun_under_pressure_they_change_nothing_for_who_is_stuck_and_who_is_not(self) -> None:
        options = {"writers": 4, "writers_from": 0.1}
        assert not begin("original", 1, "asyncio", LONG, **options).finished
        for name in ("emergency", "aslab"):
            chapter = begin(name, 1, "asyncio", LONG, **options)
            assert chapter.finished
            assert (chapter.emergency_max > 0) is (tell(name, 1).emergency_max > 0)
            assert chapter.file_blocks > 0
            assert chapter.time > tell(name, 1).time, "they share the disk"

    def test_begun_before_it_they_have_the_slabs_made_that_the_others_lack(self) -> None:
        chapter = begin("original", 1, "asyncio", LONG, writers=4)
        assert chapter.finished
        assert chapter.file_blocks > 0


class TestComputer:
    """What can be set is heeded."""

    QUICK: ClassVar[Computer] = Computer(
        pages=4096, min_share=0.15, overcommit=3.0, txg_blocks=16, disk=(0.0002, 0.0006), until=0.5
    )
    OTHERS: ClassVar[dict[str, tuple[str, object]]] = {
        "pages": ("emergency", 8192),
        "min_share": ("emergency", 0.1),
        "pinned": ("emergency", 0.01),
        "hogs": ("emergency", 2),
        "overcommit": ("emergency", 1.0),
        "fill": ("emergency", (0.0001, 0.0002)),
        "kswapd_writes": ("emergency", 4),
        "block": ("emergency", 65536),
        "disk": ("emergency", (0.002, 0.006)),
        "depth": ("emergency", 3),
        "txg_timeout": ("emergency", 0.001),
        "txg_blocks": ("emergency", 9),
        "queue_depth": ("emergency", 1),
        "zvol_tasks": ("emergency", 1),
        "issue_tasks": ("emergency", 2),
        "interrupt_tasks": ("emergency", 3),
        "arc_groups": ("emergency", 0.5),
        "reserve": ("emergency_reserve", 9),
        "slab_objects": ("emergency", 3),
        "cpu": ("emergency", (0.001, 0.002)),
        "per_page": ("emergency", 1e-5),
        "lock": ("emergency", 1e-3),
        "retry": ("pf_memalloc", 0.05),
        "until": ("emergency", 0.05),
        "magazine": ("emergency", 4),
        "scattered": ("emergency", 0.05),
        "compact_scan": ("emergency", 1e-6),
        "compact_move": ("emergency", 1e-3),
        "compact_spare": ("emergency", 16.0),
        "unconverted": ("emergency", 1),
        "writers": ("emergency", 2),
        "writers_from": ("emergency", 0.1),
    }
    BESIDE: ClassVar[dict[str, dict[str, Any]]] = {
        "compact_scan": {"scattered": FRAGMENTED},
        "compact_move": {"scattered": FRAGMENTED},
        "compact_spare": {"scattered": FRAGMENTED},
        "writers_from": {"writers": 2},
    }
    """What it takes for a key to matter."""

    @pytest.mark.parametrize("key", list(_computer.KEYS))
    def test_every_key_makes_a_difference(self, key: str) -> None:
        name, value = self.OTHERS[key]
        beside = self.BESIDE.get(key, {})
        other = dataclasses.replace(self.QUICK, **{**beside, key: value})
        assert _story.tell(ALL[name], other, 0) != self.usual(name, **beside)

    @staticmethod
    @functools.cache
    def usual(name: str, **beside: Any) -> Chapter:
        return _story.tell(ALL[name], dataclasses.replace(TestComputer.QUICK, **beside), 0)

    @pytest.mark.parametrize(
        ("block", "others"),
        [(16384, {"pages": 4096}), (2**20, {"pages": 8192, "txg_blocks": 1, "slab_objects": 2, "hogs": 2})],
        ids=["16K", "1M"],
    )
    @pytest.mark.parametrize("name", ["kernel_patch", "aslab_reserve"])
    def test_blocks_from_small_to_large_are_written_out_whole(
        self, name: str, block: int, others: dict[str, Any]
    ) -> None:
        computer = dataclasses.replace(COMPUTER, block=block, min_share=0.2, disk=(0.001, 0.002), **others)
        computer.check()
        chapter = _story.tell(ALL[name], computer, 0)
        assert chapter.finished
        assert chapter.swapped % (block // 4096) == 0
        assert chapter.swapped > computer.pages * (computer.overcommit - 1)

    def test_hogs_fill_pages_at_the_same_speed_whatever_the_size_of_a_block(self) -> None:
        filled: list[tuple[int, float]] = []

        async def hog(
            anonymous: object, clusters: int, pause: Callable[[], float], *, pages: int, retry: float
        ) -> None:
            filled.append((clusters * pages, pause() / pages))

        with mock.patch.object(_story, "hog", hog):
            for block in (16384, 131072, 2**20):
                _story.tell(ALL["original"], dataclasses.replace(self.QUICK, block=block, txg_blocks=1), 0)
        first = filled[: self.QUICK.hogs]
        assert [pages for pages, _ in filled] == [pages for pages, _ in first] * 3
        assert [seconds for _, seconds in filled] == pytest.approx([seconds for _, seconds in first] * 3)


class TestControls:
    CHANGES: ClassVar[dict[str, tuple[str, dict[str, Any]]]] = {
        "emergency_single": ("emergency", {"single_pages": True}),
        "emergency_v2_single": ("emergency_v2", {"single_pages": True}),
        "emergency_reserve": ("emergency", {"reserve": True}),
        "emergency_v2_reserve": ("emergency_v2", {"reserve": True}),
        "emergency_single_reserve": ("emergency", {"single_pages": True, "reserve": True}),
        "emergency_v2_single_reserve": ("emergency_v2", {"single_pages": True, "reserve": True}),
        "emergency_noio": ("emergency", {"growth": Growth("worker", TICK, noio=True)}),
        "aslab_rows": ("aslab", {"single_pages": False}),
    }

    def test_each_is_another_machine_but_for_what_it_is_named_for(self) -> None:
        for control in CONTROLS:
            if control.name in self.CHANGES:
                of, changes = self.CHANGES[control.name]
                same = dataclasses.replace(BY_NAME[of], name=control.name, about=control.about, **changes)
                assert control == same
        assert set(self.CHANGES) <= {control.name for control in CONTROLS}
        assert len(ALL) == len(MACHINES) + len(CONTROLS), "no name is used twice"

    @pytest.mark.parametrize("name", ["emergency_single", "emergency_v2_single"])
    def test_single_pages_mend_what_fragmentation_does_to_them(self, name: str) -> None:
        chapter = tell(name, 1, pinned=FRAGMENTED)
        assert chapter.finished
        assert chapter.emergency_max > 0
        assert not any(chapter.failed_by_order[1:])

    def test_rows_make_aslab_fail_at_order_5_as_others_do(self) -> None:
        chapter = longer("aslab_rows", 1, FRAGMENTED)
        assert chapter.failed_by_order[5] > 0
        assert chapter.emergency_max == 0

    @pytest.mark.parametrize("name", ["emergency_v2_reserve", "emergency_v2_single_reserve"])
    def test_with_a_reserve_there_is_no_stall_to_recover_from(self, name: str) -> None:
        chapter = tell(name, 0)
        assert (chapter.emergency_max, chapter.deadlocks) == (0, 0)
        assert chapter.longest_wait < tell("emergency", 0).longest_wait / 5

    def test_caches_of_a_machine_with_a_reserve_keep_it_for_the_pipeline_alone(self) -> None:
        made: list[tuple[str, Any]] = []
        real = SplCache

        def note(name: str, *args: Any, **options: Any) -> Any:
            made.append((name, options["reserve"]))
            return real(name, *args, **options)

        with mock.patch.object(_story, "SplCache", note):
            begin("emergency_reserve", 0, "asyncio", 0.1)
            begin("emergency", 0, "asyncio", 0.1)
        assert made == [*zip(CACHES, (0, COMPUTER.reserve), strict=True), *zip(CACHES, (0, 0), strict=True)]


class TestAslab:
    """What a machine says of the way it uses aslab."""

    @staticmethod
    def begin(aslab_options: Aslab) -> Chapter:
        machine = dataclasses.replace(BY_NAME["aslab"], growth=aslab_options)
        return _story.tell(machine, dataclasses.replace(COMPUTER, until=BRIEF, queue_depth=LONGER), 0)

    def test_arguments_of_the_allocator_are_passed_on(self) -> None:
        assert self.begin(Aslab()).longest_wait == pytest.approx(TICK, abs=0.001), "slabs come at once"
        assert self.begin(Aslab(allocator={"grow_timeout": 0.03})).longest_wait == pytest.approx(0.03, abs=0.001)

    def test_arguments_of_the_caches_are_passed_on(self) -> None:
        assert longer("aslab", 0, until=BRIEF).emergency_max > 3
        assert self.begin(Aslab(cache={"max_emergency": 1})).emergency_max == 1

    def test_who_starts_a_write_and_who_finishes_it_have_flags_of_their_own(self) -> None:
        asked: list[tuple[str, KM]] = []
        real = Cache.alloc

        def note(self: Cache[Any], flags: KM = KM.SLEEP, **options: Any) -> Any:
            asked.append((self.name, flags))
            return real(self, flags, **options)

        with mock.patch.object(Cache, "alloc", note):
            self.begin(Aslab(starts=KM.SLEEP, finishes=KM.PUSHPAGE))
        data, pipeline = CACHES
        assert {flags for name, flags in asked if name == data} == {KM.SLEEP}
        of_pipeline = [flags for name, flags in asked if name == pipeline]
        assert set(of_pipeline) == {KM.SLEEP, KM.PUSHPAGE}
        assert of_pipeline.count(KM.SLEEP) >= of_pipeline.count(KM.PUSHPAGE) > 0


class TestMachines:
    MAY_DIFFER: dict[str, set[str]] = {  # noqa: RUF012
        "original": set(),
        "pf_memalloc": {"memalloc"},
        "kernel_patch": {"honour_gfp"},
        "emergency": {"growth"},
        "emergency_v2": {"growth"},
        "aslab": {"growth", "single_pages"},
        "aslab_reserve": {"growth", "single_pages", "reserve"},
    }

    def test_differ_from_the_original_in_the_mechanism_named_and_nothing_else(self) -> None:
        assert set(self.MAY_DIFFER) == set(BY_NAME)
        original = dataclasses.asdict(BY_NAME["original"])
        for name, machine in BY_NAME.items():
            fields = dataclasses.asdict(machine)
            differ = {key for key in fields if fields[key] != original[key]}
            assert differ - {"name", "about", "ends"} == self.MAY_DIFFER[name], name

    def test_growth_is_that_of_each_version_of_spl(self) -> None:
        assert {name: machine.growth for name, machine in BY_NAME.items()} == {
            "original": Growth("caller"),
            "pf_memalloc": Growth("caller"),
            "kernel_patch": Growth("caller"),
            "emergency": Growth("worker", TICK, mark=False, index="list"),
            "emergency_v2": Growth("worker", 0.1, mark=True, index="tree", looks_again=True),
            "aslab": Aslab(),
            "aslab_reserve": Aslab(),
        }

    def test_none_has_a_number_of_its_own_but_the_patience(self) -> None:
        for machine in MACHINES:
            for field in dataclasses.fields(Machine):
                value = getattr(machine, field.name)
                assert isinstance(value, (str, bool, Growth, Aslab)), f"{machine.name}: {field.name}"

    def test_all_have_the_same_computer_which_nobody_can_change(self) -> None:
        seen: list[Computer] = []
        telling = _story._Telling.__init__

        def note(self: object, machine: Machine, computer: Computer, seed: int, chapter: Chapter) -> None:
            seen.append(computer)
            telling(self, machine, computer, seed, chapter)  # type: ignore[arg-type]

        with mock.patch.object(_story._Telling, "__init__", note):
            for machine in MACHINES:
                begin(machine.name, 0, "asyncio", 0.1)
        assert seen == [dataclasses.replace(COMPUTER, until=0.1)] * len(MACHINES)
        with pytest.raises(dataclasses.FrozenInstanceError):
            COMPUTER.pages = 1  # type: ignore[misc]
        with pytest.raises(dataclasses.FrozenInstanceError):
            MACHINES[0].memalloc = True  # type: ignore[misc]

    def test_no_module_of_the_model_knows_a_machine_by_its_name(self) -> None:
        models = ("_run", "_buffers", "_spl", "_zfs", "_disk", "_swap", "_index", "_compaction")
        story = [ROOT / "aslab/lab/_story" / f"{name}.py" for name in models]
        for path in [*(ROOT / "aslab" / "emulation").glob("*.py"), *story]:
            for name in BY_NAME.keys() - {"aslab"}:
                assert not re.search(rf'==\s*"{name}"|"{name}"\s*==|case "{name}"', path.read_text()), path.name
            assert '== "aslab"' not in path.read_text()
            assert "machine.name ==" not in path.read_text()


@loops
def test_four_workers_wait_for_the_address_space_more_than_one(loop: str) -> None:
    files = builtin()
    waited = {
        name: play(load(files[name]), seed=0, loop=loop).result.figures["lock_wait_total"]
        for name in ("one-worker", "four-workers")
    }
    assert waited["four-workers"] > 10 * waited["one-worker"]

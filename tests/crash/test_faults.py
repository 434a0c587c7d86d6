"""A full disk, no file descriptors and a read-only place: one line says so, and the same command finishes later."""

import os
import random
import subprocess
import zlib

import pytest
from commands import COMMANDS, Place, assert_finishes, assert_one_line, assert_same


# In make test; the others in make test-slow.
_QUICK = ("masks", "to-yolo", "pull-run")
LOCAL = [
    pytest.param(command, id=command.name, marks=[] if command.name in _QUICK else [pytest.mark.slow])
    for command in COMMANDS
    if not command.pushes
]


@pytest.fixture
def small_disk():
    """Gives the folder `work` of a place a disk of its own; skips where that is not allowed."""
    mounted = []

    def mount(place: Place, options: str) -> None:
        work = str(place.root / "work")
        again = "remount," if work in mounted else ""
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", again + options, "tmpfs", work], capture_output=True)
        if done.returncode:
            pytest.skip("no disk of a given size may be mounted here")
        mounted.append(work)

    yield mount
    for work in set(mounted):
        subprocess.run(["umount", "-l", work], check=True)


@pytest.mark.parametrize("command", LOCAL)
def test_a_full_disk_is_one_line_and_more_room_finishes_the_work(place, command, undisturbed, small_disk):
    chance = random.Random(zlib.crc32(command.name.encode()))
    pages = sum(2 + len(content) // 4096 for content in undisturbed.content.values())
    for least, most in ((1, 8), (1, pages // 2), (pages // 2, pages)):
        one = place()
        small_disk(one, f"size={4 * chance.randint(least, max(least, most))}k")
        code = one.run()
        if code != undisturbed.code:  # A file that fits into a page may be written.
            said = one.said()
            assert code == 2 and "no space is left" in assert_one_line(said), said
        small_disk(one, "size=64m")
        assert_finishes(one, undisturbed)


@pytest.mark.parametrize("command", LOCAL)
def test_a_file_that_must_not_grow_is_one_line_and_the_same_command_finishes(place, command, undisturbed):
    """The limit of `ulimit -f`, which needs no rights to set."""
    one, largest = place(), max(map(len, undisturbed.content.values()))
    code = one.run(bytes=max(4096, largest // 2))  # What the command prints must fit too.
    if code != undisturbed.code or largest > 4096:
        assert code == 2 and "no file may become so large" in assert_one_line(one.said())
    assert_finishes(one, undisturbed)


@pytest.mark.parametrize("command", LOCAL)
def test_without_file_descriptors_nothing_wrong_is_written(place, command, undisturbed):
    """An image that cannot be opened now is not a broken image."""
    for free in (0, 1, 2, 3, 5, 8):
        one = place()
        code = one.run(descriptors=free)
        if code != undisturbed.code:
            said = one.said()
            assert code == 2, said
            assert_one_line(said)
            assert "Retry" not in said
        assert_finishes(one, undisturbed)


@pytest.mark.parametrize("command", LOCAL)
def test_a_read_only_place_is_one_line_and_changes_nothing(place, command, undisturbed, small_disk):
    one = place()
    small_disk(one, "size=64m,ro")
    assert one.run() == 2
    assert "read-only" in assert_one_line(one.said())
    small_disk(one, "size=64m,rw")
    assert_finishes(one, undisturbed)
    small_disk(one, "size=64m,ro")
    one.said()
    code = one.run()  # A finished result may be told again.
    assert code == undisturbed.code or "read-only" in assert_one_line(one.said())
    assert_same(one.content(), undisturbed.content)


@pytest.mark.parametrize("command", LOCAL)
def test_a_place_that_is_deleted_midway_refuses_nothing_afterwards(place, command, undisturbed):
    chance = random.Random(zlib.crc32(command.name.encode()))
    one = place()
    code = one.run(delete=str(one.root / "work"), at=chance.randint(1, undisturbed.operations))
    said = one.said()
    if code != undisturbed.code:
        assert code == 2
        assert_one_line(said)
    os.makedirs(one.root / "work", exist_ok=True)
    assert_finishes(one, undisturbed)

"""SIGKILL, SIGTERM and Ctrl-C at random moments of every command that writes: the next start finishes the work."""

import random
import signal
import zlib

import pytest
from commands import COMMANDS, FAST, ROUNDS, assert_finishes, kill_and_finish


def of(commands):
    return [
        pytest.param(command, id=command.name, marks=[pytest.mark.slow] if command.is_slow else [])
        for command in commands
    ]


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("command", of(COMMANDS))
def test_a_killed_command_ends_with_the_bytes_of_an_undisturbed_one_and_nothing_beside_out(
    place, command, undisturbed
):
    chance = random.Random(zlib.crc32(command.name.encode()))
    for _ in range(ROUNDS):
        kill_and_finish(place(), undisturbed, chance)


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("command", of(FAST))
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_stopped_command_shows_no_traceback_and_resumes(place, command, undisturbed, number):
    chance = random.Random(number)
    one = place()
    code = one.run(signal=number, at=chance.randint(1, max(undisturbed.operations, 1)))
    said = one.said()
    assert "Traceback" not in said, said
    assert (
        code != undisturbed.code or one.content() == undisturbed.content
    )  # At the very end there was nothing left to stop.
    assert_finishes(one, undisturbed)

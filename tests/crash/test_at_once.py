"""Several processes of one command and one OUT: some do the work, the others say in one line who does."""

import re

import pytest
from commands import COMMANDS, FAST, ROUNDS, assert_finishes, assert_one_line, assert_same


def start_at_once(one, undisturbed, count):
    """Starts a command several times; what they leave must be right, whoever was first."""
    codes = [one.wait(pid) for pid in [one.start() for _ in range(count)]]
    said = one.said()
    assert undisturbed.code in codes and set(codes) <= {undisturbed.code, 2}, (codes, said)
    refused = re.findall("lpg-hf: .*", said)
    assert len(refused) == codes.count(2)
    for line in refused:
        assert "another process writes" in line and "(process " in assert_one_line(line), line
    assert_same(one.content(), undisturbed.content)
    assert_finishes(one, undisturbed)
    return codes


@pytest.mark.timeout(3000)
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, id=command.name, marks=[pytest.mark.slow] if command.is_slow else [])
        for command in COMMANDS
    ],
)
def test_two_at_once_leave_what_one_does(place, command, undisturbed):
    codes = start_at_once(place(), undisturbed, 2)
    assert not command.may_wait or codes == [undisturbed.code] * 2


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("command", [pytest.param(FAST[0], id="masks")])
def test_three_masks_at_once_leave_what_one_does(place, command, undisturbed):
    for _ in range(max(2, min(ROUNDS, 12))):
        start_at_once(place(), undisturbed, 3)

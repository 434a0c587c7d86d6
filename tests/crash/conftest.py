"""Fixtures of the crash tests; `make crash` sets LPG_HF_CRASH_ROUNDS."""

import shutil
import time

import pytest
from commands import Data, Driver, Place, Undisturbed, free, make_data
from hub_server import HubServer


KILLS: list[int] = []


@pytest.fixture(scope="session")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="session")
def driver(hub, tmp_path_factory):
    started = Driver(hub.environment(tmp_path_factory.mktemp("home")))
    yield started
    started.close()


@pytest.fixture(scope="session")
def crash_data(hub, driver, segmenter_folder, lpg_folder, tmp_path_factory) -> Data:
    folder = tmp_path_factory.mktemp("read")
    made = make_data(folder, hub)
    shutil.copytree(segmenter_folder, folder / "segmenter")
    shutil.copytree(lpg_folder, folder / "lpg")
    arguments, log = ["push-run", str(folder / "run"), "--org", "org"], folder / "log"
    pid = driver.ask(arguments=arguments, log=str(log), root=str(folder), fault={})["pid"]
    assert driver.ask(wait=pid, seconds=200)["code"] == 0, log.read_text()
    return made


@pytest.fixture
def place(driver, crash_data, command, tmp_path_factory):
    """Makes fresh places for the test's command; they are deleted at the end."""
    made: list[Place] = []

    def make() -> Place:
        made.append(Place(driver, crash_data, command, tmp_path_factory.mktemp("round")))
        return made[-1]

    yield make
    for one in made:
        KILLS.extend(one.kills)
        free(one.root)


_undisturbed: dict[str, Undisturbed] = {}


@pytest.fixture
def undisturbed(place, command) -> Undisturbed:
    """One run of the command; the second, after the first has loaded what is loaded late, is the one that counts."""
    if command.name not in _undisturbed:
        one = place()
        start = time.monotonic()
        code = one.run(count=str(one.root / "count"))
        seconds = time.monotonic() - start
        assert code in (0, 1), one.said()
        operations = int((one.root / "count").read_text())
        _undisturbed[command.name] = Undisturbed(code, one.content(), operations, seconds)
        one.said()
        again = one.run()
        assert again == code and (command.says or "") in one.said()
        assert one.content() == _undisturbed[command.name].content
    return _undisturbed[command.name]


def pytest_terminal_summary(terminalreporter):
    if KILLS:
        terminalreporter.write_line(f"{len(KILLS)} processes were killed")

"""Where log lines go, and what they must not contain."""

import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from envoy2emon import log, words
from tests.daemons import PROJECT

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


@pytest.fixture(autouse=True)
def _root_logger() -> Iterator[None]:
    """Restore the root logger after the test."""
    root, urllib3 = logging.getLogger(), logging.getLogger("urllib3")
    before = root.handlers[:], root.level, urllib3.level, logging.raiseExceptions
    yield
    for handler in set(root.handlers) - set(before[0]):
        handler.close()
    root.handlers[:], root.level, urllib3.level, logging.raiseExceptions = before
    root.setLevel(before[1])  # this also clears logging's cache of enabled levels


def journal() -> dict[str, str]:
    """Return an environment that declares the current stderr the journal; capfd changes stderr from setup to call."""
    stderr = os.fstat(2)
    return {"JOURNAL_STREAM": f"{stderr.st_dev}:{stderr.st_ino}"}


def fail(words: str) -> None:
    """Log an exception with this message, and its traceback."""

    def raises() -> None:
        raise RuntimeError(words)

    try:
        raises()
    except RuntimeError:
        logging.getLogger("x").exception("it failed")


def test_the_journal_gets_levels_and_no_time(capfd: pytest.CaptureFixture[str]) -> None:
    """Under the journal a line is its syslog priority and the message, because the journal adds the time itself."""
    log.setup(journal(), "DEBUG")
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        logging.getLogger("x").log(level, "%d rows", 7)
    assert capfd.readouterr().err == "<7>7 rows\n<6>7 rows\n<4>7 rows\n<3>7 rows\n<2>7 rows\n"


def test_each_line_of_a_traceback_has_its_level(capfd: pytest.CaptureFixture[str]) -> None:
    """Each line of a traceback has the error level, because each is a journal entry, and keeps its indentation."""
    log.setup(journal())
    fail("one\ntwo")
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) > 4
    assert any(line.startswith('<3>  File "') for line in lines)
    assert all(line.startswith("<3>") for line in lines)
    assert lines[0] == "<3>it failed"
    assert lines[-2:] == ["<3>RuntimeError: one", "<3>two"]


@pytest.mark.parametrize("environ", [{}, {"JOURNAL_STREAM": "1:2"}])
def test_a_terminal_gets_time_and_level(environ: dict[str, str], capfd: pytest.CaptureFixture[str]) -> None:
    """If stderr is not the journal, even under a service whose stderr is, a line has UTC and the level's name."""
    log.setup(environ)
    logging.getLogger("x").warning("away")
    assert re.fullmatch(f"{TIME} WARNING away\n", capfd.readouterr().err)


def test_the_level_holds(capfd: pytest.CaptureFixture[str]) -> None:
    """Messages below LOG_LEVEL are not written, nor are urllib3's below ERROR."""
    log.setup({}, "WARNING")
    logging.getLogger("x").info("calm")
    log.setup({}, "DEBUG")
    logging.getLogger("urllib3.connectionpool").warning("retrying")
    logging.getLogger("x").debug("shown")
    assert re.fullmatch(f"{TIME} DEBUG shown\n", capfd.readouterr().err)


def test_the_file_has_utc_pid_and_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line of LOG_FILE has UTC in any time zone, the process ID and the level, and is added to what is there."""
    file = tmp_path / "stream.log"
    file.write_text("older\n")
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "East-9")
        time.tzset()
        log.setup({}, "INFO", file)
        logging.getLogger("x").error("away: %s", "é")
    time.tzset()
    written = datetime.fromisoformat(file.read_text("utf-8").split()[1])
    assert abs(datetime.now(UTC) - written) < timedelta(minutes=1)
    assert re.fullmatch(rf"older\n{TIME} {os.getpid()} ERROR away: é\n", file.read_text("utf-8"))


def test_logrotate_may_move_the_file(tmp_path: Path) -> None:
    """After a rename the next line goes into a new file, and the old file stays as it was."""
    file, moved = tmp_path / "stream.log", tmp_path / "stream.log.1"
    log.setup({}, "INFO", file)
    logging.getLogger("x").info("first")
    file.rename(moved)
    logging.getLogger("x").info("second")
    assert moved.read_text().endswith("INFO first\n")
    assert re.fullmatch(rf"{TIME} \d+ INFO second\n", file.read_text())


def test_a_file_that_cannot_be_had_is_a_warning(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """If LOG_FILE's directory is missing or it is not a plain file, a WARNING says so and lines go to stderr only."""
    os.mkfifo(tmp_path / "fifo")
    for file, reason in {
        tmp_path / "no" / "x.log": "No such file or directory",
        tmp_path: "it is not a plain file",
        tmp_path / "fifo": "it is not a plain file",  # opening it would wait for a reader
    }.items():
        log.setup({}, "INFO", file)
        logging.getLogger("x").info("on")
        warning, line = capfd.readouterr().err.splitlines()
        cure = "so nothing is logged there: set one below /var/log/envoy2emon"
        assert warning.endswith(f"WARNING LOG_FILE {file} cannot be written ({reason}), {cure}")
        assert line.endswith("INFO on")


def test_a_file_that_is_lost_harms_nobody(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """While a moved file cannot be opened again, only its lines are lost; it is used again once it can be opened."""
    folder, moved = tmp_path / "log", tmp_path / "moved"
    folder.mkdir()
    log.setup({}, "INFO", folder / "stream.log")
    folder.rename(moved)
    logging.getLogger("x").info("lost")
    folder.mkdir()
    logging.getLogger("x").info("back")
    assert (folder / "stream.log").read_text().endswith("INFO back\n")
    assert [line.split()[-1] for line in capfd.readouterr().err.splitlines()] == ["lost", "back"]


def test_a_full_disk_harms_nobody(tmp_path: Path) -> None:
    """If the file cannot take a line, only that line of the file is lost; stderr and the daemon are not affected."""
    script = (
        "import logging, pathlib, resource; from envoy2emon import log\n"
        "log.setup({}, 'INFO', pathlib.Path('x.log'))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"  # the file takes no more: EFBIG
        "for number in range(9): logging.getLogger('x').info('line %d', number)\n"
    )
    environ = {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environ, capture_output=True, check=True)
    assert [line.split()[2:] for line in done.stderr.decode().splitlines()] == [["line", str(n)] for n in range(9)]
    assert (tmp_path / "x.log").stat().st_size == 100


@pytest.mark.parametrize("under_journal", [True, False])
def test_whatever_a_neighbour_says_is_one_clean_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], *, under_journal: bool
) -> None:
    """A message that quotes a peer is one line in stderr and file: no secret, forged line or control character."""
    words.keep_secret("hunter2hunter2")
    log.setup(journal() if under_journal else {}, "INFO", tmp_path / "x.log")
    evil = "hunter2hunter2\n<0>ERROR forged\r\x1b[2J\x9bm\u202e\ud800"
    logging.getLogger("x").info("it says %s", evil)
    fail(f"Bearer {evil}")
    for text in (capfd.readouterr().err, (tmp_path / "x.log").read_text("utf-8")):
        assert "it says *** <0>ERROR forged ?[2J?m??\n" in text
        assert "RuntimeError: Bearer ***\n" in text
        assert "hunter2" not in text
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)

"""The printed units are taken by systemd, and the printed crontab line does in a shell what was asked for."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cubeloom.errors import ConfigError
from cubeloom.workflows.systemd import Schedule, schedule

AWKWARD = ("nightly", "a b", "100%", "$HOME", 'q"q', "it's", "back\\slash", ";", "")


def echo(folder: Path) -> Path:
    """A program that writes its arguments, one a line."""
    program = folder / "echo args"
    program.write_text(f"#!{sys.executable}\nimport sys\nprint(*map(repr, sys.argv[1:]), sep='\\n')\n")
    program.chmod(0o755)
    return program


def planned(folder: Path) -> Schedule:
    out = folder / "out 50%"
    out.mkdir(exist_ok=True)
    return Schedule((str(echo(folder)), *AWKWARD), "enmap_l2a", out, folder, "02:05", "root")


def units(text: str, folder: Path) -> list[Path]:
    """The files that the printed text describes, each after the line that names it."""
    parts = re.split(r"^# /etc/systemd/system/(\S+)$", text, flags=re.MULTILINE)[1:]
    for name, content in zip(parts[::2], parts[1::2], strict=True):
        (folder / name).write_text(content)
    return [folder / name for name in parts[::2]]


def test_systemd_takes_the_units(tmp_path):
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not on this machine")
    files = units(planned(tmp_path).systemd(), tmp_path)
    assert [file.name for file in files] == ["cubeloom-enmap_l2a.service", "cubeloom-enmap_l2a.timer"]
    found = subprocess.run(["systemd-analyze", "verify", *files], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert str(tmp_path) not in found.stderr, found.stderr


def test_systemd_reads_every_argument_back(tmp_path):
    """By the rules of systemd.service(5): quotes, backslashes, and doubled percent and dollar signs."""
    [line] = re.findall(r"^ExecStart=(.*)$", planned(tmp_path).systemd(), re.MULTILINE)
    words = re.findall(r'"((?:[^"\\]|\\.)*)"|(\S+)', line)
    plain = [re.sub(r"\\(.)", r"\1", quoted) if quoted or not bare else bare for quoted, bare in words]
    assert [word.replace("%%", "%").replace("$$", "$") for word in plain] == [str(tmp_path / "echo args"), *AWKWARD]


@pytest.mark.parametrize(
    "line",
    [
        "Persistent=true",
        "OnCalendar=*-*-* 02:05:00 UTC",
        "SuccessExitStatus=75 143",
        "RestartForceExitStatus=75",
        "KillSignal=SIGTERM",
        "KillMode=mixed",
        "TimeoutStopSec=10min",
        "Type=exec",
        "User=root",
    ],
)
def test_the_units_say(tmp_path, line):
    assert f"\n{line}\n" in planned(tmp_path).systemd()


def test_cron_runs_the_command_with_every_argument(tmp_path):
    """What cron does with a line: a bare percent sign ends it, an escaped one loses its backslash."""
    lines = [line for line in planned(tmp_path).cron().splitlines() if not line.startswith("#")]
    assert [line.split(" ")[0] for line in lines] == ["5", "@reboot"]
    minute, hour, *days, command = lines[0].split(" ", 5)
    assert (minute, hour, days) == ("5", "2", ["*", "*", "*"])
    assert not re.search(r"(?<!\\)%", command)
    subprocess.run(["/bin/sh", "-c", command.replace(r"\%", "%")], check=True, cwd="/", env={})
    log = tmp_path / "out 50%" / ".cubeloom" / "nightly.log"
    assert log.read_text().splitlines() == [repr(word) for word in AWKWARD]


def test_the_command_is_the_one_that_printed_it_without_what_is_secret(tmp_path):
    given = ["nightly", "enmap_l2a", "--search", "dlr-enmap", "--webhook", "https://hooks.example.org/s3cret", "--out"]
    given += ["out", "--at=03:00", "--print-systemd", "--webhook=https://hooks.example.org/s3cret"]
    made = schedule(given, "enmap_l2a", tmp_path / "out", "03:00")
    assert made.command[-6:] == ("nightly", "enmap_l2a", "--search", "dlr-enmap", "--out", "out")
    assert Path(made.command[0]).is_file()
    assert made.here == Path.cwd(), "relative paths lead to the same places"
    assert "s3cret" not in made.systemd() + made.cron()


@pytest.mark.parametrize("at", ["2:30", "24:00", "12:60", "02:30:00", "noon", "02:30\n"])
def test_a_wrong_time_is_refused(tmp_path, at):
    with pytest.raises(ConfigError, match="time of day"):
        schedule([], "enmap_l2a", tmp_path, at)


def test_a_line_break_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="line break"):
        schedule(["nightly", "a\nUser=root"], "enmap_l2a", tmp_path, "02:30")

"""Ready units for systemd and a line for cron: they call the command as it was called to print them."""

import getpass
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cubeloom.errors import ConfigError

ENVIRONMENT = Path("/etc/cubeloom/nightly.env")
"""Logins and the webhook's address; readable by root alone, systemd hands it on."""

_PRINTING = ("--print-systemd", "--print-cron", "--prefect")
_LEFT_OUT = ("--webhook", "--at")

_SERVICE = """\
# /etc/systemd/system/{name}.service
# Once, as root: install -d -o {user} {out_shell}
# Logins and CUBELOOM_WEBHOOK, if any, as NAME=VALUE lines in {environment} (chmod 600).
[Unit]
Description=Cubeloom nightly: {workflow} into {out_text}
Wants=network-online.target
After=network-online.target
# Never writes into the empty mount point of a disk that is not there.
RequiresMountsFor={out}
StartLimitIntervalSec=6h
StartLimitBurst=12

[Service]
# Not oneshot: up to systemd 252 that refuses RestartForceExitStatus.
Type=exec
User={user}
WorkingDirectory={here}
EnvironmentFile=-{environment}
Environment=XDG_CACHE_HOME=%C/cubeloom MPLCONFIGDIR=%C/cubeloom/matplotlib
CacheDirectory=cubeloom
ExecStart={command}
# 75: another run holds the output, or the catalog cannot be reached; later it will. 143: stopped, and what was finished
# is kept. Both are no failure; 3 is one, some scenes have no product.
SuccessExitStatus=75 143
RestartForceExitStatus=75
RestartSec=15min
# The main process alone is asked to stop, and lets its workers finish the blocks under way.
KillSignal=SIGTERM
KillMode=mixed
TimeoutStopSec=10min
Nice=10
# It may write to its output and its cache, and nowhere else. Left out on purpose: MemoryDenyWriteExecute, since the
# networks' kernels are compiled at run time, and PrivateDevices, which hides a GPU.
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths={out}
PrivateTmp=yes
NoNewPrivileges=yes
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
RestrictNamespaces=yes
LockPersonality=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
UMask=0022
"""

_TIMER = """\
# /etc/systemd/system/{name}.timer
# Then: systemctl daemon-reload && systemctl enable --now {name}.timer
[Unit]
Description=Cubeloom nightly: {workflow} into {out_text}

[Timer]
OnCalendar=*-*-* {at}:00 UTC
RandomizedDelaySec=10min
# A night on which the machine was off is made up for when it is on again.
Persistent=true

[Install]
WantedBy=timers.target
"""

_CRON = """\
# Install with `crontab -e`. The hour is that of this machine's clock and does not matter: what is done is told by the
# catalog's time. A second one that starts too early leaves with code 75, for the job holds its own lock. Logins and
# CUBELOOM_WEBHOOK, if any: as NAME=VALUE lines above this one.
{minute} {hour} * * * {line}
@reboot sleep 300 && {line}
"""


@dataclass(frozen=True)
class Schedule:
    """A command that is to run every night.

    Attributes:
        command: program and arguments.
        workflow: name of the workflow; names the units.
        out: directory of the products, absolute.
        here: the folder that relative paths in `command` start from, absolute.
        at: hour and minute as `02:30`.
        user: who runs it.
    """

    command: tuple[str, ...]
    workflow: str
    out: Path
    here: Path
    at: str
    user: str

    def systemd(self) -> str:
        """A service and its timer."""
        program, *rest = self.command
        values = {
            "name": f"cubeloom-{self.workflow}",
            "workflow": self.workflow,
            "user": self.user,
            "environment": ENVIRONMENT,
            "out_text": str(self.out).replace("%", "%%"),
            "out_shell": shlex.quote(str(self.out)),
            "out": _systemd_word(str(self.out)),
            "here": str(self.here).replace("%", "%%"),
            "command": " ".join([_systemd_word(program), *(_systemd_word(word).replace("$", "$$") for word in rest)]),
            "at": self.at,
        }
        return _SERVICE.format(**values) + "\n" + _TIMER.format(**values)

    def cron(self) -> str:
        """Lines of a crontab."""
        log = self.out / ".cubeloom" / "nightly.log"
        line = " && ".join(
            [
                f"cd {shlex.quote(str(self.here))}",
                f"mkdir -p {shlex.quote(str(log.parent))}",
                f"{shlex.join(self.command)} >>{shlex.quote(str(log))} 2>&1",
            ]
        )
        hour, minute = self.at.split(":")
        # cron ends a command at a percent sign that has no backslash, whatever quotes stand round it
        return _CRON.format(minute=int(minute), hour=int(hour), line=line.replace("%", r"\%"))


def schedule(arguments: Sequence[str], workflow: str, out: Path, at: str) -> Schedule:
    """The schedule of a `cubeloom` command by its own arguments, those left out that only print, or are secret.

    Raises:
        ConfigError: `at` is no time of day, or a path holds a line break.
    """
    check_time(at)
    kept, words = [], iter(arguments)
    for word in words:
        if word in _LEFT_OUT:
            next(words, None)
        elif word not in _PRINTING and word.partition("=")[0] not in _LEFT_OUT:
            kept.append(word)
    command = (*program(), *kept)
    if any("\n" in word for word in (*command, str(out))):
        raise ConfigError("an argument holds a line break, which neither a unit nor a crontab can carry")
    return Schedule(command, workflow, out.absolute(), Path.cwd(), at, getpass.getuser())


def check_time(at: str) -> str:
    """A time of day as `02:30`.

    Raises:
        ConfigError: it is none.
    """
    if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", at):
        raise ConfigError(f"--at {at!r}: expected a time of day such as 02:30")
    return at


def program() -> tuple[str, ...]:
    """How to start this Cubeloom: its script beside the interpreter, else the module."""
    beside = Path(sys.executable).with_name("cubeloom")
    found = str(beside) if beside.is_file() else shutil.which("cubeloom")
    return (found,) if found else (sys.executable, "-m", "cubeloom.workflows.cli")


def _systemd_word(word: str) -> str:
    """A word as systemd reads it back: quoted, and without the specifiers that a percent sign begins."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'"{escaped}"' if re.search(r"[^\w@%+=:,./-]", escaped) or not escaped else escaped

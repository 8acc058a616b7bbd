"""The door: `python -m segtrain [command] key=value …`.

Picks the command, hands the rest to Hydra with `configs/<command>.yaml`, and turns the outcome into an exit code:
0 ok, 1 a bug of ours, 2 config, 3 data, 4 checkpoint, 5 non-finite, 6 out of memory or space, 130 SIGINT saved,
143 SIGTERM saved. Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segtrain import __version__
from segtrain.errors import ConfigError, ResourceError, SegtrainError, closest, listed
from segtrain.memory import is_out_of_memory
from segtrain.outcomes import Outcome, sweep_table
from segtrain.streams import mute, open_missing_streams, say, tell, unwritable_output

FLAGS_WITH_VALUE = (
    *("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd"),
    "--experimental-rerun",
)
HYDRA_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


@dataclass
class Session:
    """One call of the program."""

    command: str
    traces: bool
    outcomes: list[Outcome] = field(default_factory=list)

    def code(self) -> int:
        """A bug of ours is worse than any fault of the user's; else the highest code."""
        codes = [outcome.code for outcome in self.outcomes]
        return 1 if 1 in codes else max(codes, default=0)


def main() -> None:
    """Console entry point."""
    open_missing_streams()
    code = run(sys.argv[1:])
    try:
        say("", end="")  # what Hydra printed may still be on its way
    except SegtrainError as error:
        code = code or report(error, False)
    sys.exit(code)


def run(argv: list[str]) -> int:
    """Runs one command line and returns the exit code; leaves `sys.argv`, environment and root logger as they were."""
    full_error, arguments = os.environ.get("HYDRA_FULL_ERROR"), sys.argv
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    traces = full_error == "1"
    try:
        command, rest = split_command(argv)
        if {"-h", "--help"} & set(rest):
            from segtrain.help import help_text

            say(help_text(rest))
            return 0
        if "--version" in rest:
            say(f"segtrain {__version__}")
            return 0
        refuse_folder_of_many_jobs(rest)
        return run_hydra(Session(command, traces), rest)
    except SegtrainError as error:
        return report(error, traces)
    finally:
        sys.argv = arguments
        root.handlers[:] = handlers  # Hydra's --info adds one that holds today's sys.stdout and tells all, for good
        root.setLevel(level)
        if full_error is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error


def split_command(argv: list[str]) -> tuple[str, list[str]]:
    """The first argument that is no flag is the command where it has no '='; else it is `train`.

    The rest comes back with its flags in front, wherever they stood: argparse wants the overrides in one piece.

    Raises:
        ConfigError: no such command.
    """
    from segtrain.composition import COMMANDS

    flags, words = flags_apart(argv)
    if not words or "=" in words[0] or words[0].startswith(("+", "~")):
        return "train", [*flags, *words]
    if words[0] not in COMMANDS:
        near = closest(words[0], COMMANDS)
        raise ConfigError(
            f"there is no command '{words[0]}'",
            expected=listed(COMMANDS),
            fix=f"did you mean {near}?" if near else f"values are set with key=value, as in {words[0]}=…",
        )
    return words[0], [*flags, *words[1:]]


def flags_apart(argv: list[str]) -> tuple[list[str], list[str]]:
    """Hydra's flags with their values, and all the rest, each in its order."""
    flags: list[str] = []
    words: list[str] = []
    before = ""
    for argument in argv:
        value = before in FLAGS_WITH_VALUE or (before in ("--info", "-i") and argument in HYDRA_INFO)
        (flags if value or argument.startswith("-") else words).append(argument)
        before = "" if value else argument
    return flags, words


def refuse_folder_of_many_jobs(argv: list[str]) -> None:
    """A sweep's folder has another key, and Hydra would pass over this one without a word.

    Raises:
        ConfigError: hydra.run.dir with --multirun.
    """
    given = [argument for argument in argv if argument.lstrip("+").startswith("hydra.run.dir=")]
    if given and {"--multirun", "-m"} & set(argv):
        raise ConfigError(
            f"{given[0]} with --multirun",
            expected="hydra.sweep.dir=DIR, where each job of a sweep gets a folder of its own",
            fix=f"hydra.sweep.dir={given[0].partition('=')[2]}",
        )


def run_hydra(session: Session, argv: list[str]) -> int:
    """Composes the config and runs the command's job, or each job of a sweep."""
    import hydra
    from hydra.errors import MissingConfigException

    from segtrain.composition import (
        VERSION_BASE,
        config_dir,
        register_resolvers,
        translated,
    )
    from segtrain.overlay import split_overrides

    register_resolvers()
    if session.command != "train":
        argv = split_overrides(session.command, argv)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's own handler would print and exit 1 for everything
    sys.argv = ["segtrain", *argv]

    @hydra.main(version_base=VERSION_BASE, config_path=str(config_dir()), config_name=session.command)
    def job(cfg: Any) -> float:
        return run_job(session, cfg)

    with translated(session.command, [a for a in argv if not a.startswith("-")]):
        try:
            job()
        except MissingConfigException:  # an OSError too, but `translated` knows better
            raise
        except BrokenPipeError:  # as by `--cfg job | head -1`: Hydra prints
            mute(sys.stdout)
        except OSError as error:  # Hydra makes the run folder before the job starts
            if error.filename is None:  # it prints
                mute(sys.stdout)
                raise unwritable_output(error) from error
            raise ResourceError(
                f"the run folder cannot be made: {error.strerror or error}",
                where=error.filename,
                fix="choose another folder with hydra.run.dir=DIR",
            ) from error
    if len(session.outcomes) > 1:
        say(sweep_table(session.outcomes))
    return session.code()


def run_job(session: Session, cfg: Any) -> float:
    """One job; never raises and never exits, because either would end a sweep."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from segtrain.composition import named
    from segtrain.run_folder import RunFolder

    settings = HydraConfig.get()
    # Unresolved: an override such as data.root=${oc.env:DATA} is written down as it was given, not as its value.
    typed: Any = OmegaConf.to_container(settings.overrides, resolve=False)
    overrides = [shown(override) for override in typed["task"]]
    outcome = Outcome(overrides)
    if any(earlier.code > 128 for earlier in session.outcomes):
        outcome.code, outcome.message = session.outcomes[-1].code, "not started: the sweep was interrupted"
        session.outcomes.append(outcome)
        return outcome.score
    session.outcomes.append(outcome)
    own = [source.path for source in settings.runtime.config_sources if source.provider == "command-line"]
    flags = [f"--config-dir={path}" for path in own]
    folder = RunFolder(session.command, given_folder(settings, typed["hydra"]), overrides, flags)
    try:
        cfg = named(cfg, dict(settings.runtime.choices))
        module = importlib.import_module(f"segtrain.commands.{session.command}")
        outcome.score, outcome.monitor, outcome.higher_is_better = module.run(cfg, folder)
    except SegtrainError as error:
        outcome.message = error.found
        outcome.code = report(error, session.traces)
        folder.keep_error(str(error))
    except KeyboardInterrupt:
        outcome.message, outcome.code = "stopped at once, nothing saved", 130
        tell(sys.stderr, "stopped at once; the last saved checkpoint is whole\n")
    except (Exception, SystemExit) as error:  # a user's own class may call sys.exit
        shortage = ran_out(error)
        if shortage is None:
            outcome.message, outcome.code = f"{type(error).__name__}: {error}", 1
            folder.keep_error(traceback.format_exc())
            tell(sys.stderr, traceback.format_exc())
            tell(sys.stderr, "\nthis is a bug of segtrain: please report it with the lines above\n")
        else:
            outcome.message, outcome.code = shortage.found, report(shortage, session.traces)
            folder.keep_error(str(shortage))
    return outcome.score


def given_folder(settings: Any, overrides: list[str]) -> Path | None:
    """The folder that the user or a sweep chose for the job; None: the job chooses one itself."""
    sweep = settings.mode is not None and settings.mode.name == "MULTIRUN"
    given = any(override.lstrip("+").startswith("hydra.run.dir=") for override in overrides)
    return Path(settings.runtime.output_dir) if sweep or given else None


def ran_out(error: BaseException) -> ResourceError | None:
    """The error block for memory or disk space that ran out where nobody nearer could say more; None: another error."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    if is_out_of_memory(error):
        return ResourceError(
            f"memory ran out: {text}",
            fix="smaller data.batch_size, inference=slide or a smaller inference.size, or trainer.device=cpu",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(
            "disk full", where=error.filename, fix="free some space or choose another folder with hydra.run.dir=DIR"
        )
    return None


def shown(override: str) -> str:
    """The override as the user wrote it (see `overlay.split_overrides`)."""
    return override.removeprefix("++over.").removeprefix("++choices.")


def report(error: SegtrainError, traces: bool) -> int:
    """Prints the error block (and the traceback if the user asked for it) and returns the exit code.

    Under torchrun the others leave it to the first rank to tell an error that they all have.
    """
    if traces:
        tell(sys.stderr, "".join(traceback.format_exception(error)))
    rank = os.environ.get("RANK", "0")
    if rank != "0" and error.of_all_ranks:
        return error.code
    tell(sys.stderr, ("" if rank == "0" else f"[rank {rank}] ") + f"{error}\n")
    return error.code


if __name__ == "__main__":
    main()

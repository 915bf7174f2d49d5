"""The `hvdkit` command: finds the module of a subcommand and hands it the rest of the command line."""

import difflib
import importlib
import sys

import hvdkit

_COMMANDS = {
    "train": ("hvdkit.train.__main__", "train a language model (under horovodrun, mpirun or `hvdkit run`)"),
    "generate": ("hvdkit.train.generate", "continue a prompt with a trained model"),
    "evaluate": ("hvdkit.train.evaluate", "measure the loss of a trained model"),
    "merge": ("hvdkit.merge.__main__", "merge models that were trained apart, by a recipe"),
    "plan": ("hvdkit.plan.__main__", "tell what a run will need: memory, time, ranks, and the command to start it"),
    "run": ("hvdkit.launch.run", "start workers with the right launcher and flags"),
    "doctor": ("hvdkit.launch.doctor", "check whether this machine can train, with remedies"),
    "collectives": ("hvdkit.collectives.__main__", "show which collective algorithm is chosen, and why"),
    "horovod": ("hvdkit.horovod_build.__main__", "`hvdkit horovod build`: build Horovod against the installed torch"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; returns its exit status."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0
    if words[0] == "--version":
        print(f"hvdkit {hvdkit.__version__}")
        return 0
    name, rest = words[0], words[1:]
    if name not in _COMMANDS:
        close = difflib.get_close_matches(name, _COMMANDS, n=1)
        hint = f"; did you mean `hvdkit {close[0]}`?" if close else ""
        print(f"hvdkit: there is no command {name!r}{hint} (`hvdkit --help` lists them)", file=sys.stderr)
        return 2
    if name == "horovod":
        if rest[:1] != ["build"]:
            print("hvdkit: the command is `hvdkit horovod build` (--help tells its options)", file=sys.stderr)
            return 2
        rest = rest[1:]
    status: int = importlib.import_module(_COMMANDS[name][0]).main(rest)
    return status


def _usage() -> str:
    lines = [f"  {name:<12}{text}" for name, (_, text) in _COMMANDS.items()]
    return "\n".join(["usage: hvdkit COMMAND [options]", "", *lines, "", "Each command has its own --help."])


if __name__ == "__main__":
    sys.exit(main())

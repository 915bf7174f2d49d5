"""`hvdkit horovod build`, also `python -m hvdkit.horovod_build`."""

import argparse
import sys
import time
from pathlib import Path

from hvdkit.errors import BuildError
from hvdkit.horovod_build.toolchain import Toolchain, find_toolchain
from hvdkit.horovod_build.verify import mark_unverified, verify
from hvdkit.horovod_build.wheel import get_wheel, install_wheel, uninstall


def main(argv: list[str] | None = None) -> int:
    """Build, install and verify Horovod; returns the exit status."""
    options = _parser().parse_args(argv)
    started = time.monotonic()
    try:
        toolchain = find_toolchain(options.mpi, options.gpu)
        _say(f"torch {toolchain.torch}, {toolchain.mpi}, {toolchain.compiler}, GPU: {toolchain.gpu}")
        wheel = get_wheel(toolchain, _say, options.source)
        if options.wheel_only:
            print(wheel)
            return 0
        install_wheel(wheel)
        _verify(toolchain, options.verify)
    except BuildError as error:
        print(f"hvdkit horovod build: error: {error}", file=sys.stderr)
        return 1
    _say(f"Horovod 0.28.1 is installed ({time.monotonic() - started:.0f} s)")
    return 0


def _verify(toolchain: Toolchain, when: str) -> None:
    if when == "later":
        mark_unverified()
        _say("not verified yet: the first init() with more than one rank will tell")
        return
    try:
        for line in verify(toolchain):
            _say(line)
    except BuildError:
        uninstall()  # nothing half installed
        raise


def _say(text: str) -> None:
    print(f"hvdkit horovod build: {text}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hvdkit horovod build",
        description="Build Horovod 0.28.1 against the torch and MPI of this environment, install and verify it. "
        "Finished wheels are cached under ~/.cache/hvdkit.",
    )
    parser.add_argument("--source", type=Path, help="Horovod's source archive, instead of downloading it with pip")
    parser.add_argument("--mpi", default="auto", help="auto, wheel, system, or the folder of an MPI (default: auto)")
    parser.add_argument(
        "--gpu",
        default="auto",
        choices=["auto", "nccl", "none"],
        help="nccl if torch has CUDA (auto); none builds for CPUs whatever torch can do",
    )
    parser.add_argument(
        "--verify", default="now", choices=["now", "later"], help="later: where no ranks may be started here"
    )
    parser.add_argument("--wheel-only", action="store_true", help="build and print the wheel's path, install nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""`hvdkit horovod build`, also `python -m hvdkit.horovod_build`."""

import argparse
import errno
import signal
import sys
import time
from pathlib import Path

from hvdkit.errors import BuildError
from hvdkit.horovod_build.cache import open_cache
from hvdkit.horovod_build.compile import get_wheel
from hvdkit.horovod_build.install import check_installable, install_wheel
from hvdkit.horovod_build.progress import Progress
from hvdkit.horovod_build.source import VERSION
from hvdkit.horovod_build.toolchain import Toolchain, find_toolchain
from hvdkit.horovod_build.unverified import mark_unverified
from hvdkit.horovod_build.verify import verify

_NAME = "hvdkit horovod build"
_EPILOG = f"""\
Horovod {VERSION}'s source comes from PyPI through pip, or from --source; its sha256 is checked. Finished wheels, the
source and logs are kept in ~/.cache/hvdkit (or $XDG_CACHE_HOME/hvdkit). Nothing changes in the environment until the
wheel is finished and two ranks have worked with it. CXX, CC, CXXFLAGS, LDFLAGS and MAKEFLAGS are used as usual, and
of Horovod's own options HOROVOD_BUILD_ARCH_FLAGS, HOROVOD_BUILD_CUDA_CC_LIST, HOROVOD_CPU_OPERATIONS, HOROVOD_CUDA_HOME
and HOROVOD_NCCL_HOME (or _INCLUDE and _LIB).

examples:
  hvdkit horovod build                              with what is there
  hvdkit horovod build --mpi system --verify later  on a cluster's login node, with its MPI module
  hvdkit horovod build --mpi /opt/mpich             with the MPI in that folder
  hvdkit horovod build --source horovod-{VERSION}.tar.gz   without a network
"""


def main(argv: list[str] | None = None) -> int:
    """Build, verify and install Horovod; returns the exit status."""
    options = _parser().parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        _run(options)
    except KeyboardInterrupt:
        return _fail("interrupted; nothing was installed. Run it again when you like")
    except BuildError as error:
        return _fail(str(error))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "; free some space, or set TMPDIR to a folder on a larger disk" if full else ""
        return _fail(f"{error}{remedy}. Nothing was installed")
    return 0


def _run(options: argparse.Namespace) -> None:
    started = time.monotonic()
    stream = sys.stderr if options.wheel_only else sys.stdout

    def say(text: str) -> None:
        print(f"{_NAME}: {text}", file=stream, flush=True)

    if not options.wheel_only:
        check_installable()
    cache = open_cache()
    toolchain = find_toolchain(options.mpi, options.gpu)
    say(_describe(toolchain))
    wheel = get_wheel(cache, toolchain, say, Progress(_NAME, stream), options.source, options.rebuild)
    if options.verify == "now":
        for line in verify(wheel, toolchain.mpi):
            say(line)
    if options.wheel_only:
        print(wheel)
        return
    install_wheel(wheel)
    if options.verify == "later":
        mark_unverified()
        say("not verified yet: the first init() with more than one rank will check it")
    say(f"Horovod {VERSION} is installed ({time.monotonic() - started:.0f} s)")


def _describe(toolchain: Toolchain) -> str:
    cuda = toolchain.cuda
    gpu = f"CUDA {cuda.version} with NCCL {cuda.nccl}" if cuda else "for CPUs"
    return (f"torch {toolchain.torch.version}, {toolchain.mpi.version} ({toolchain.mpi.folder}), {toolchain.compiler}, "
            f"CMake {toolchain.cmake}, {gpu}")  # fmt: skip


def _fail(text: str) -> int:
    print(f"{_NAME}: error: {text}", file=sys.stderr)
    return 1


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_NAME,
        description=f"Build Horovod {VERSION} against the torch and MPI of this environment, with MPI, Gloo and (for\n"
        "a torch with CUDA) NCCL; check it with two ranks; install it.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--mpi",
        default="auto",
        metavar="MPI",
        help="wheel (PyPI's Open MPI in this environment), system (the mpicxx on PATH), the folder of an MPI, "
        "or auto: the wheel if it is installed, else the system's (default: auto)",
    )
    parser.add_argument(
        "--gpu",
        default="auto",
        choices=["auto", "nccl", "none"],
        help="nccl needs the CUDA toolkit; none builds for CPUs whatever torch can do; auto is nccl for a torch with "
        "CUDA, else none (default: auto)",
    )
    parser.add_argument("--source", type=Path, metavar="FILE", help=f"Horovod {VERSION}'s source archive (no network)")
    parser.add_argument(
        "--verify",
        default="now",
        choices=["now", "later"],
        help="later leaves the check with two ranks to the first init(), where no ranks may be started here "
        "(default: now)",
    )
    parser.add_argument("--wheel-only", action="store_true", help="print the wheel's path and install nothing")
    parser.add_argument("--rebuild", action="store_true", help="build even if a finished wheel is in the cache")
    return parser


if __name__ == "__main__":
    sys.exit(main())

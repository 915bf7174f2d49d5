"""The edits that Horovod 0.28.1 needs for today's tool chain, as data."""

from dataclasses import dataclass
from pathlib import Path

from hvdkit.errors import BuildError


@dataclass(frozen=True)
class Edit:
    """In `file`, `anchor` must occur exactly `count` times and is replaced by `replacement`."""

    file: str
    anchor: str
    replacement: str
    why: str
    since: str
    """The version that made it necessary."""
    count: int = 1


_REST = "the engine's loop takes time from every computation, also while nobody uses it"
_REST_SINCE = "HOROVOD_IDLE_CYCLE_TIME, which hvdkit sets"

EDITS = (
    Edit(
        file="CMakeLists.txt",
        anchor="set(CMAKE_CXX_STANDARD 14)",
        replacement="set(CMAKE_CXX_STANDARD $ENV{HVDKIT_CXX_STANDARD})",
        why="torch's headers need C++17, later C++20: hvdkit reads from them which",
        since="torch 2.1",
    ),
    Edit(
        file="horovod/torch/CMakeLists.txt",
        anchor="    set(CMAKE_CXX_STANDARD 14)",
        replacement="    set(CMAKE_CXX_STANDARD $ENV{HVDKIT_CXX_STANDARD})",
        why="torch's headers need C++17, later C++20; this file sets the standard again",
        since="torch 2.1",
    ),
    Edit(
        file="CMakeLists.txt",
        anchor="check_language(CUDA)\nif(NOT CMAKE_CUDA_COMPILER)\n",
        replacement=(
            "set(HVDKIT_WITHOUT_GPU $ENV{HVDKIT_WITHOUT_GPU})\n"
            "if(NOT HVDKIT_WITHOUT_GPU)\n    check_language(CUDA)\nendif()\n"
            "if(NOT CMAKE_CUDA_COMPILER AND NOT HVDKIT_WITHOUT_GPU)\n"
        ),
        why="a build for CPUs must not depend on whether some CUDA compiler is on PATH, or works",
        since="torch with CUDA, CPU build asked for",
    ),
    Edit(
        file="cmake/Modules/FindPytorch.cmake",
        anchor='string(TOUPPER "${Pytorch_ROCM}" Pytorch_ROCM)\n',
        replacement=(
            'string(TOUPPER "${Pytorch_ROCM}" Pytorch_ROCM)\n'
            'if("$ENV{HVDKIT_WITHOUT_GPU}" STREQUAL "1")\n'
            "    set(Pytorch_CUDA FALSE)\n    set(Pytorch_ROCM FALSE)\nendif()\n"
        ),
        why="a torch with CUDA is built against as a CPU one when asked to, without CUDA's headers and libraries",
        since="torch with CUDA, CPU build asked for",
    ),
    Edit(
        file="horovod/torch/CMakeLists.txt",
        anchor="from distutils.sysconfig import get_python_inc; print(get_python_inc())",
        replacement="import sysconfig; print(sysconfig.get_path('include'))",
        why="distutils is gone from the standard library",
        since="Python 3.12",
    ),
    Edit(
        file="horovod/runner/js_run.py",
        anchor="from distutils.spawn import find_executable",
        replacement="from shutil import which as find_executable",
        why="distutils is gone from the standard library, and horovodrun imports this file",
        since="Python 3.12",
    ),
    Edit(
        file="horovod/runner/mpi_run.py",
        anchor="elif 'MPICH' in output:",
        replacement="elif 'MPICH' in output or 'HYDRA' in output:",
        why="MPICH's launcher calls itself Hydra, and horovodrun took it for no MPI at all",
        since="MPICH 4.0",
    ),
    Edit(
        file="horovod/common/tensor_queue.h",
        anchor="#include <iostream>\n",
        replacement="#include <atomic>\n#include <chrono>\n#include <condition_variable>\n#include <iostream>\n",
        why=_REST,
        since=_REST_SINCE,
    ),
    Edit(
        file="horovod/common/tensor_queue.h",
        anchor="  void RemoveJoinTensor();\n",
        replacement=(
            "  void RemoveJoinTensor();\n\n"
            "  // Waits for a tensor, `until`, or a Wake after `is_over` was set; says whether there is a tensor.\n"
            "  bool WaitForTensor(std::chrono::steady_clock::time_point until, const std::atomic_bool& is_over) {\n"
            "    std::unique_lock<std::mutex> guard(mutex_);\n"
            "    wake_.wait_until(guard, until, [&] { return is_over || !tensor_table_.empty(); });\n"
            "    return !tensor_table_.empty();\n"
            "  }\n\n"
            "  void Wake() {\n"
            "    std::lock_guard<std::mutex> guard(mutex_);\n"
            "    wake_.notify_all();\n"
            "  }\n"
        ),
        why=_REST,
        since=_REST_SINCE,
    ),
    Edit(
        file="horovod/common/tensor_queue.h",
        anchor="  mutable std::mutex mutex_;\n",
        replacement="  mutable std::mutex mutex_;\n  std::condition_variable wake_;\n",
        why=_REST,
        since=_REST_SINCE,
    ),
    Edit(
        file="horovod/common/tensor_queue.cc",
        anchor="  message_queue_.push(std::move(message));\n  return Status::OK();\n",
        replacement="  message_queue_.push(std::move(message));\n  wake_.notify_all();\n  return Status::OK();\n",
        why=_REST,
        since=_REST_SINCE,
    ),
    Edit(
        file="horovod/common/tensor_queue.cc",
        anchor="    message_queue_.push(std::move(messages[i]));\n  }\n",
        replacement="    message_queue_.push(std::move(messages[i]));\n  }\n  wake_.notify_all();\n",
        why=_REST,
        since=_REST_SINCE,
    ),
    Edit(
        file="horovod/common/operations.cc",
        anchor="    horovod_global.shut_down = true;\n",
        replacement=(
            "    horovod_global.shut_down = true;\n    horovod_global.process_set_table.Get(0).tensor_queue.Wake();\n"
        ),
        why=_REST,
        since=_REST_SINCE,
    ),
    Edit(
        file="horovod/common/operations.cc",
        anchor="bool RunLoopOnce(HorovodGlobalState& state) {\n  // This delay",
        replacement=(
            "// While this rank has nothing to do, keeps it out of the cycles in which all ranks wait for each other:\n"
            "// what others ask for needs this rank's part anyway. For HOROVOD_IDLE_CYCLE_TIME (ms) at most.\n"
            "static void RestWhileIdle(HorovodGlobalState& state) {\n"
            '  static const char* text = std::getenv("HOROVOD_IDLE_CYCLE_TIME");\n'
            "  static const std::chrono::microseconds longest(text == nullptr ? 0L : long(std::atof(text) * 1000.));\n"
            "  static int idle_cycles = 0;\n"
            "  // Ranks outside a process set have no part in what it does, and a new set needs everyone's cycles.\n"
            "  if (state.dynamic_process_sets || state.process_set_table.Ids().size() != 1) {\n"
            "    return;\n"
            "  }\n"
            "  auto until = state.last_cycle_start;\n"
            "  if (++idle_cycles > 10) {\n"
            "    until += longest;\n"
            "  }\n"
            "  if (state.process_set_table.Get(0).tensor_queue.WaitForTensor(until, state.shut_down)) {\n"
            "    idle_cycles = 0;\n"
            "  }\n"
            "}\n\n"
            "bool RunLoopOnce(HorovodGlobalState& state) {\n  // This delay"
        ),
        why=_REST,
        since=_REST_SINCE,
    ),
    Edit(
        file="horovod/common/operations.cc",
        anchor="    std::this_thread::sleep_for(sleep_duration);\n  }\n",
        replacement="    std::this_thread::sleep_for(sleep_duration);\n  }\n  RestWhileIdle(state);\n",
        why=_REST,
        since=_REST_SINCE,
    ),
    Edit(
        file="third_party/gloo/CMakeLists.txt",
        anchor="cmake_minimum_required(VERSION 2.8.12 FATAL_ERROR)",
        replacement="cmake_minimum_required(VERSION 3.5 FATAL_ERROR)",
        why="CMake refuses policies older than 3.5",
        since="CMake 4.0",
    ),
    Edit(
        file="cmake/Modules/FindNCCL.cmake",
        anchor='set(NCCL_LIBNAME "nccl")',
        replacement='set(NCCL_LIBNAME "nccl" "libnccl.so.2")',
        why="pip's nvidia-nccl ships libnccl.so.2 alone, without the link that the linker's name needs",
        since="nvidia-nccl wheels",
    ),
)


def apply_edits(source: Path, edits: tuple[Edit, ...] = EDITS) -> None:
    """Apply all `edits` to the unpacked release in `source`.

    Raises BuildError, before anything is written, if an anchor is not there exactly as often as expected: then the
    release is not the one these edits were made for.
    """
    texts: dict[Path, str] = {}
    for edit in edits:
        path = source / edit.file
        try:
            text = texts.get(path) or path.read_text(encoding="utf-8")
        except OSError as error:
            raise BuildError(f"{edit.file} is missing from Horovod's source ({error}); {edit.why}") from None
        found = text.count(edit.anchor)
        if found != edit.count:
            raise BuildError(
                f"{edit.file}: found {found} times instead of {edit.count} what must be edited because {edit.why}: "
                f"{edit.anchor!r}. This is not the source release that the edits were made for"
            )
        texts[path] = text.replace(edit.anchor, edit.replacement)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")

"""How long a rank may wait in a collective, by Horovod's variables (horovod/common/stall_inspector.cc)."""

import logging
import os
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

_log = logging.getLogger(__name__)

_DISABLE, _WARN, _SHUTDOWN = (
    "HOROVOD_STALL_CHECK_DISABLE",
    "HOROVOD_STALL_CHECK_TIME_SECONDS",
    "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS",
)
_GLOO_TIMEOUT = "HOROVOD_GLOO_TIMEOUT_SECONDS"
_GLOO_GRACE_S = 30
"""How much longer than the limit Gloo waits, so that what ends the job is what can name ranks and collective."""


@dataclass(frozen=True)
class StallLimits:
    """Warn each time that another `warn_s` have passed; end the job after `shutdown_s` (0: never)."""

    warn_s: float = 60.0
    shutdown_s: float = 0.0


def stall_limits(environ: Mapping[str, str] = os.environ) -> StallLimits | None:
    """Read HOROVOD_STALL_*; None where the check is off: HOROVOD_STALL_CHECK_DISABLE=1, or a limit of 0 s to warn.

    As in Horovod, a limit to end the job that lies below the one to warn counts as none, and is said.
    """
    if _seconds(environ, _DISABLE, 0) > 0:
        return None
    warn_s = _seconds(environ, _WARN, StallLimits.warn_s)
    shutdown_s = max(0.0, _seconds(environ, _SHUTDOWN, 0))
    if warn_s <= 0:
        return None
    if 0 < shutdown_s < warn_s:
        _log.warning(
            "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS=%g is less than HOROVOD_STALL_CHECK_TIME_SECONDS=%g: a stalled job is "
            "not ended",
            shutdown_s,
            warn_s,
        )
        shutdown_s = 0.0
    return StallLimits(warn_s, shutdown_s)


def limit_hangs(
    timeout_s: float | None, default_s: float, environ: MutableMapping[str, str] = os.environ
) -> None:  # fmt: skip
    """From the next `init()` on, a wait of `timeout_s` ends the job and half of it is warned of; 0: it never ends.

    With None the limit is `default_s`, except where the user's environment says something about stalls: that stands,
    and the default only adds the end that it leaves open.
    """
    if timeout_s is None:
        is_told = any(environ.get(name, "").strip() for name in (_DISABLE, _WARN, _SHUTDOWN))
        found = stall_limits(environ) if is_told else StallLimits(default_s / 2, default_s)
        if found is None:
            return
        if is_told and not environ.get(_SHUTDOWN, "").strip() and found.warn_s <= default_s:
            found = replace(found, shutdown_s=default_s)
    else:
        found = StallLimits(timeout_s / 2, timeout_s) if timeout_s else StallLimits()
        environ[_DISABLE] = "0"
    environ[_WARN], environ[_SHUTDOWN] = f"{found.warn_s:g}", f"{found.shutdown_s:g}"


@contextmanager
def engine_leaves_stalls(limits: StallLimits | None, uses_gloo: bool) -> Iterator[None]:
    """While Horovod starts: where hvdkit's check ends a stalled job by `limits`, the engine's own is off.

    The engine's looks at intervals of the time to warn only, knows no patience with a rank that still works, and is
    silent where a rank was stopped, since its coordinator then waits for that rank too.
    """
    if limits is None:
        yield
        return
    before = os.environ.get(_DISABLE)
    os.environ[_DISABLE] = "1"
    if uses_gloo:
        os.environ.setdefault(_GLOO_TIMEOUT, str(int(limits.shutdown_s) + _GLOO_GRACE_S))
    try:
        yield
    finally:
        if before is None:
            del os.environ[_DISABLE]
        else:
            os.environ[_DISABLE] = before


def _seconds(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name, "").strip()
    try:
        return float(text) if text else default
    except ValueError:
        _log.warning("%s=%r is not a number; %g is used", name, text, default)
        return default

"""How long a rank may wait in a collective, by Horovod's variables (horovod/common/stall_inspector.cc)."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StallLimits:
    """Warn each time that another `warn_s` have passed; end the job after `shutdown_s` (0: never)."""

    warn_s: float = 60.0
    shutdown_s: float = 0.0


def stall_limits(environ: Mapping[str, str] = os.environ) -> StallLimits | None:
    """Read HOROVOD_STALL_*; None where the check is off: HOROVOD_STALL_CHECK_DISABLE=1, or a limit of 0 s to warn.

    As in Horovod, a limit to end the job that lies below the one to warn counts as none, and is said.
    """
    if _seconds(environ, "HOROVOD_STALL_CHECK_DISABLE", 0) > 0:
        return None
    warn_s = _seconds(environ, "HOROVOD_STALL_CHECK_TIME_SECONDS", StallLimits.warn_s)
    shutdown_s = max(0.0, _seconds(environ, "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", 0))
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


def _seconds(environ: Mapping[str, str], name: str, default: float) -> float:
    text = environ.get(name, "").strip()
    try:
        return float(text) if text else default
    except ValueError:
        _log.warning("%s=%r is not a number; %g is used", name, text, default)
        return default

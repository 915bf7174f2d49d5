"""What `hvdkit run` and the program that it restarts say to each other; known to both, so it imports nothing of theirs.

`hvdkit run --max-restarts` tells every rank, in the environment, the job's name and how often it was started before.
The program answers with its exit status.
"""

import re

RUN_NAME = "HVDKIT_RUN_NAME"
"""A variable: the job's name, such as 20261126-194500-1a2b3c, the same in all attempts and fit for a folder's name."""

ATTEMPT = "HVDKIT_ATTEMPT"
"""A variable: 0 at the job's first start, 1 at its first restart."""

RESUME_STATUS = 75
"""EX_TEMPFAIL of sysexits.h: the job saved because it was told to end; started again, it goes on."""

USAGE_STATUS = 2
"""As argparse's: the job would fail again however often it were started."""


def is_run_name(text: str) -> bool:
    """Whether this may be a job's name: a plain file name that is no option."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", text) is not None

"""What the installed Horovod was built with, if hvdkit built it. Cheap: `init()` and the doctor ask too."""

import importlib.util
import json
from pathlib import Path
from typing import Any

RECORD = "horovod/hvdkit_build.json"
"""Where a built wheel says it, below site-packages."""


def horovod_record() -> dict[str, Any]:
    """The tool chain of the installed Horovod's build (`Toolchain.describe`), or empty. Does not import Horovod."""
    spec = importlib.util.find_spec("horovod")
    file = Path(spec.origin).parents[1] / RECORD if spec and spec.origin else None
    if file is None or not file.exists():
        return {}
    toolchain: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")).get("toolchain", {})
    return toolchain

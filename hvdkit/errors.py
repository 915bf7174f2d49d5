"""The errors that hvdkit raises for the world's faults; the caller's mistakes are ValueError or TypeError."""


class HvdkitError(RuntimeError):
    """Base of every error that hvdkit raises on purpose; its text is a whole message for a person."""


class HorovodMissingError(HvdkitError, ImportError):
    """Horovod is not installed, or does not load against the installed torch."""


class LaunchError(HvdkitError):
    """The processes of a job did not find each other as the launcher announced."""


class BuildError(HvdkitError):
    """Horovod could not be built or installed."""


class ConfigError(HvdkitError, ValueError):
    """A configuration that cannot be run."""


class DataError(HvdkitError):
    """Training data that cannot be used; names the file and line."""


class CheckpointError(HvdkitError):
    """A checkpoint that cannot be written, read, or does not fit the model."""


class DivergenceError(HvdkitError):
    """Ranks that should agree do not."""


class CollectiveMismatchError(HvdkitError):
    """Ranks came to the same point with different collectives."""


class MergeError(HvdkitError):
    """Submodels that cannot be merged; names model and tensor."""

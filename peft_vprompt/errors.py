"""The few errors this package raises on purpose, and a warning that is looked for by its class.

What is wrong with a value is a `ValueError`; what is wrong with a place on the disk is an `OSError`.
"""


class UnsupportedModelError(ValueError):
    """The base model, or this method on this base model, is not supported."""


class ClassNamesError(ValueError):
    """Class names are missing, malformed, or not usable with the adapter they were given to."""


class PromptTooLongError(ValueError):
    """A text does not fit into the positions that the text tower has."""


class TokenizerNotFoundError(ValueError):
    """Text has to be tokenised, but no tokenizer was handed over, configured or found beside the base model."""


class AdapterMismatchError(ValueError):
    """The weights of an adapter do not fit the model, are incomplete, or cannot be read."""


class TrainingDivergedError(ValueError):
    """Training gave values that are not finite. The model holds the last finite ones.

    Attributes:
        epoch: the epoch, counted from 1, in which it happened.
    """

    def __init__(self, message: str, epoch: int):
        super().__init__(message)
        self.epoch = epoch


class OutputNotFiniteError(ValueError):
    """A model's output is not finite: its training diverged, or its values are too large for its precision."""


class CannotWriteError(OSError):
    """A file or a folder cannot be written: the disk is full, say, or the place is read-only."""


class FailedCellsError(ValueError):
    """Cells of a grid failed; the others are done.

    Attributes:
        failed: why, by the name of the cell.
    """

    def __init__(self, message: str, failed: dict[str, str]):
        super().__init__(message)
        self.failed = failed


class FolderInUseError(OSError):
    """Another process writes to the same folder, or took it over while this one stood still."""


class CannotPublishError(OSError):
    """An adapter was not published: the Hub refused it, or was not reached. What lies on the disk stays."""


class ContextLengthWarning(UserWarning):
    """The words that a context starts from set its length, and another length was asked for."""

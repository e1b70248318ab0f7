"""The failures that the program understands. A message says what is wrong, where, and the mend, in one or two lines."""


class AecliError(Exception):
    """A failure with a message for the user; the command line prints it and leaves with `exit_status`."""

    exit_status = 1


class ConfigError(AecliError):
    """An option, or a combination of options, that can't be meant: wrong usage."""

    exit_status = 2


class DataError(AecliError):
    """A source of images that can't be found, listed, read or paired."""


class ModelError(AecliError):
    """A model that is not known, can't be imported, or can't do what was asked of it."""


class CheckpointError(AecliError):
    """A run folder or a checkpoint that is missing, damaged or does not fit."""


class OutputError(AecliError):
    """A place to write to that is taken or can't be written."""


class WeightsError(AecliError):
    """Weights of a metric's network that can't be had."""


class TrainingError(AecliError):
    """A training run that can't go on: a loss that is no finite number."""


class DeviceError(AecliError):
    """A device or compiler that this machine does not have, or that has too little memory."""


class PeerError(AecliError):
    """Another of the processes that share a command's work is lost; why, it has told itself, if it could."""

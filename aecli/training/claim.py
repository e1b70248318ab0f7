"""A run folder, taken by one process for as long as it trains there."""

from pathlib import Path

from aecli import files
from aecli.errors import OutputError
from aecli.locks import Lock
from aecli.runs import RunFolder


class Claim:
    """The right to write a run folder; nobody else gets it before `close`, or before this process ends, however."""

    def __init__(self, folder: RunFolder) -> None:
        """Name the folder; nothing is made yet."""
        self.folder = folder
        self._lock = Lock(folder.lock, by_name=True)
        self._made: list[Path] = []

    def take(self) -> bool:
        """Make the folder and take it, tidied of what a killed process left half written; False where another has it.

        Raises:
            OutputError: the folder can't be made.
        """
        try:
            self._made = files.make_folder(self.folder.path)
            if not self._lock.take():
                return False
            for each in (self.folder.path, self.folder.previews):  # other processes may be writing further below
                files.remove_half_written(each, by_anyone=self._lock.excludes)
        except OSError as error:
            self.close()
            raise OutputError(f"{self.folder.path} can't be written: {error.strerror or error}") from error
        return True

    def holder(self) -> str:
        """Who has it: `process 4242 on host-a`."""
        return self._lock.holder()

    def close(self) -> None:
        """Give it up; a folder made for a run that never began goes again."""
        self._lock.close()
        if not self.folder.exists():
            files.remove_empty(self._made)

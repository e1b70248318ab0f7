"""Models on the Hugging Face Hub: `hf:ORG/NAME[:SUBFOLDER]` is fetched into its cache, weights in safetensors alone."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aecli.errors import CheckpointError, ModelError, message_of
from aecli.progress import Listener, Notice
from aecli.runs.diffusers_folder import CONFIG, PARTS, WEIGHTS, find_weights

PREFIX = "hf:"
_NAME = re.compile(r"(?P<repository>[\w-][\w.-]*/[\w-][\w.-]*)(:(?P<subfolder>[\w-][\w.-]*(/[\w-][\w.-]*)*))?")
_WEIGHTS = (f"{WEIGHTS}.safetensors", f"{WEIGHTS}-*.safetensors", f"{WEIGHTS}.safetensors.index.json")
_VARIANTS = (f"{WEIGHTS}.*.safetensors",)


@dataclass(frozen=True)
class HubModel:
    """A model's repository, and the folder of its weights there, if it is named."""

    repository: str
    subfolder: str | None

    @classmethod
    def parse(cls, text: str, flag: str) -> "HubModel":
        """Return what `hf:ORG/NAME[:SUBFOLDER]` names; raises CheckpointError for another form."""
        found = _NAME.fullmatch(text.removeprefix(PREFIX))
        if found is None:
            raise CheckpointError(f"{flag} {text}: expected hf:ORG/NAME or hf:ORG/NAME:SUBFOLDER")
        return cls(found["repository"], found["subfolder"])

    @property
    def name(self) -> str:
        """The repository's name without its owner."""
        return self.repository.partition("/")[2]

    def fetch(self, flag: str, listen: Listener) -> Path:
        """Return its weights in the cache of huggingface_hub; first the configs are fetched, and then what they are of.

        Raises:
            ModelError: huggingface_hub is missing.
            CheckpointError: it can't be reached and is not in the cache, or holds no autoencoder in safetensors.
        """
        places = [self.subfolder] if self.subfolder else ["", *PARTS]
        configs = self._download([_path(place, CONFIG) for place in places], flag)
        place = next((each for each in places if (configs / each / CONFIG).is_file()), None)
        if place is None:
            raise CheckpointError(
                f"{flag} {self}: no {CONFIG} in {' or '.join(each or 'its top folder' for each in places)}\n"
                "hint: name the folder with hf:ORG/NAME:SUBFOLDER"
            )
        listen(Notice(f"{self} is taken from the Hugging Face Hub or its cache, {configs / place}"))
        for names in (_WEIGHTS, _VARIANTS):
            folder = self._download([_path(place, name) for name in names], flag) / place
            if any(folder.glob(f"{WEIGHTS}*.safetensors")) and (weights := find_weights(folder)):
                return weights
        raise CheckpointError(
            f"{flag} {self}: no {WEIGHTS}.safetensors there, and pickles (.bin) are not fetched\n"
            f"hint: fetch it with `hf download {self.repository}`, and --model FOLDER says how to convert it"
        )

    def _download(self, patterns: Sequence[str], flag: str) -> Path:
        """Return the folder of the repository in the cache, with the files of these patterns, as far as there are."""
        try:
            from huggingface_hub import snapshot_download
            from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # its HTTP client's
        except ImportError as error:
            raise ModelError(
                f"{flag} {self} needs huggingface_hub, which can't be imported: {error}\n"
                "hint: pip install 'aecli[diffusers]'"
            ) from error
        try:
            with _without_bars():
                return Path(snapshot_download(self.repository, allow_patterns=list(patterns)))
        except (OSError, ValueError, HTTPError) as error:
            reason = message_of(str(error).partition("\n")[0])
            raise CheckpointError(
                f"{flag} {self} can't be fetched: {reason}\n"
                f"hint: `hf download {self.repository}` where there is a network, then {flag} FOLDER"
            ) from error

    def __str__(self) -> str:
        """As it is named."""
        return f"{PREFIX}{self.repository}" + (f":{self.subfolder}" if self.subfolder else "")


def _path(place: str, name: str) -> str:
    return f"{place}/{name}" if place else name


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep huggingface_hub from drawing on a terminal that isn't ours."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()

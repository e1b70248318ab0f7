"""Upload to the Hugging Face Hub. Nothing here is called unless the user asked for it."""

from collections.abc import Sequence
from pathlib import Path

from aecli._version import __version__
from aecli.errors import ConfigError, OutputError, message_of

_LOG_IN = "hint: log in with: hf auth login (a token that may write), or set HF_TOKEN"


def require_login(push: str) -> None:
    """Raise an error, before any work, where nothing can be uploaded to `hf:ORG/NAME`; nothing is sent.

    Raises:
        ConfigError: a package of the extra `hub` is missing.
        OutputError: there is no token on this machine.
    """
    try:
        from huggingface_hub import get_token
    except ImportError as error:
        raise ConfigError('--push: a package is missing\nhint: pip install "aecli[hub]"') from error
    if get_token() is None:
        raise OutputError(f"--push {push}: nobody is logged in to the Hugging Face Hub\n{_LOG_IN}")


def push_folder(folder: Path, files: Sequence[str], push: str) -> str:
    """Upload these files of the folder to the repository `hf:ORG/NAME`, made if it is missing; return its address.

    Raises:
        OutputError: the Hub can't be reached, or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.errors import HTTPError as HubError  # type: ignore[attr-defined] # of the client it has

    api, repository = HfApi(library_name="aecli", library_version=__version__), push.removeprefix("hf:")
    try:
        made = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, allow_patterns=list(files),
                          commit_message=f"Export by aecli {__version__}")  # fmt: skip
    except (HubError, HFValidationError, OSError) as error:
        raise OutputError(f"--push {push}: {message_of(error)}; {folder} is written\n{_LOG_IN}") from error
    return str(made)

"""Weights of diffusers: what the config beside them says, in place of aecli's document."""

from collections.abc import Mapping
from pathlib import Path

from aecli.errors import CheckpointError, message_of
from aecli.models import ldm_keys
from aecli.models.diffusers_config import DiffusersConfig
from aecli.runs.diffusers_folder import CONFIG, WEIGHTS
from aecli.runs.plain_weights import ASSUMED_SIZE, PlainWeights
from aecli.storage.strict_json import SCHEMA, read_json


def config_beside(weights: Path) -> DiffusersConfig | None:
    """Return the config of weights that are named as diffusers names them; None without one.

    Raises:
        CheckpointError: it is damaged, or of something else than an autoencoder of RGB images.
    """
    path = weights.with_name(CONFIG)
    if not weights.name.startswith(WEIGHTS) or not path.exists():
        return None
    try:
        document = read_json(path)
        if not isinstance(document, dict) or not isinstance(document.get("_class_name"), str):
            raise ValueError("no _class_name")
        return DiffusersConfig.from_document(document)
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {message_of(error)}") from error


def weights_of(path: Path, shapes: Mapping[str, tuple[int, ...]], config: DiffusersConfig) -> PlainWeights:
    """Return what stands in for aecli's document of weights with that config: a `kl`, a `vq`, or diffusers' own class.

    Raises:
        CheckpointError: the config's scaling of latents is invalid.
    """
    try:
        scaling = config.latent_scaling()
    except ValueError as error:
        raise CheckpointError(f"{path.with_name(CONFIG)}: {message_of(error)}") from error
    own = config.own_model()
    name, options = own or (config.class_name, dict(config.values))
    names = {key: key for key in shapes}
    if own:
        current = ldm_keys.current_keys(shapes)
        names = {current.get(key, key): key for key in shapes}
    known = {key: ldm_keys.current_shape(key, shapes[there]) if own else shapes[there] for key, there in names.items()}
    size = config.sample_size or max(ASSUMED_SIZE, config.downsampling)
    document = {"schema": SCHEMA, "model": name, "options": options, "image_size": size, "fit": "squash",
                "assumed": True, "latent_scaling": scaling.to_json()}  # fmt: skip
    return PlainWeights(document, names, known, prefix="", external=None if own else config)

"""A model to export, with what is known of its latents."""

from dataclasses import dataclass

from aecli.inference.export.latent_statistics import LatentStatistics
from aecli.inference.loaded_model import LoadedModel
from aecli.models.latent_scaling import LatentScaling


@dataclass(frozen=True)
class Subject:
    """A model to export, how a diffusion model is to scale its latents, and the statistics that this comes from.

    `scaling` is the model's own where it has one, else that of the statistics; None: neither is known.
    """

    loaded: LoadedModel
    scaling: LatentScaling | None
    statistics: LatentStatistics | None

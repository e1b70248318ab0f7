"""A model to export, with what is known of its latents."""

from dataclasses import dataclass

from aecli.inference.export.latent_statistics import LatentStatistics
from aecli.inference.loaded_model import LoadedModel
from aecli.models.latent_scaling import LatentScaling
from aecli.runs.diffusers_weights import config_beside


@dataclass(frozen=True)
class Subject:
    """A model to export, how a diffusion model is to scale its latents, and the statistics that this comes from.

    `scaling` is the model's own where it has one, else that of the statistics; None: neither is known.
    """

    loaded: LoadedModel
    scaling: LatentScaling | None
    statistics: LatentStatistics | None

    @property
    def needs_upcast(self) -> bool:
        """Whether float16 may not hold the activations: as measured, or as diffusers' config says; else True."""
        if self.statistics is not None:
            return self.statistics.overflows_half
        config = config_beside(self.loaded.located.checkpoint)
        return config is None or config.values.get("force_upcast") is not False

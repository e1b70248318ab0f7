"""What a train command is to do, resolved from its config before any image is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from aecli.configs import TrainConfig
from aecli.configs.train import ObjectiveConfig
from aecli.data.inventory import Listing
from aecli.data.sources.registry import require_source
from aecli.diagnosis import Finding, training_findings
from aecli.errors import ConfigError, DataError, name_examples
from aecli.inference.latents.labels import label_images
from aecli.metrics.lpips import LPIPS
from aecli.metrics.network_weights import local_weights
from aecli.models import registry
from aecli.models.base import Prior
from aecli.runs.initial_weights import InitialWeights, find_initial_weights
from aecli.runtime.device import Placement, make_deterministic, place
from aecli.runtime.distributed import Distributed
from aecli.training.checks import validate_log, validate_objective, validate_options, validate_pieces
from aecli.training.compiling import require_compiler, sync_batchnorm
from aecli.training.inputs.image_sets import count_images
from aecli.training.inputs.latent_sets import LatentEncoder, resolve_model
from aecli.training.objectives import Objective
from aecli.training.optim import freeze_encoder
from aecli.training.run_choice import resolved_options
from aecli.training.state import TrainState
from aecli.training.state_schema import Best, Row


@dataclass(frozen=True)
class Plan:
    """A validated config, the processes and device that compute it, and the model's options with defaults filled in."""

    config: TrainConfig
    distributed: Distributed
    placement: Placement
    validation_placement: Placement
    model_name: str  # as in model.safetensors; `prior` is another one for an autoencoder with codes
    model_options: Any
    encoder: LatentEncoder | None  # of a prior
    init: InitialWeights | None  # what a new run begins from
    perceptual_net: str | None  # of the perceptual loss, if there is one
    options: dict[str, Any]  # all of them, as config.json has them

    @property
    def model_document(self) -> dict[str, Any]:
        """What model.safetensors says of the model."""
        config = self.config
        document: dict[str, Any] = {
            "model": self.model_name,
            "options": self.options["options"],
            "image_size": config.data.image_size,
            "fit": config.data.fit,
            "background": config.data.background,
        }
        # Latents, and so their scaling, stay those of the first weights while the encoder does.
        if self.init is not None and self.init.latent_scaling and config.optimization.train == "decoder":
            document["latent_scaling"] = self.init.latent_scaling
        return document

    def for_images(self, listings: Mapping[str, Listing], recorded: Mapping[str, Any] | None) -> "Plan":
        """Return the plan for these images, with turns and crops only as they are needed: see `augment_above`.

        A run goes on as its config.json (`recorded`) says. `options` stay as they were given.

        Raises:
            DataError: no image is left to train on.
        """
        most, plain = self.config.data.augment_above, self.config.replace(turns=False, resized_crops=False)
        if most is None or plain == self.config:
            return self
        if recorded is not None:
            is_plain = recorded.get("augmentation") == plain.data.augmentation
        else:
            count, _ = count_images(self.config, listings)
            is_plain = count is None or self.config.optimization.passes(count) <= most
        return replace(self, config=plain) if is_plain else self

    def findings(self, rows: Sequence[Row], best: Best) -> tuple[Finding, ...]:
        """Return what is said of a run of this plan that has ended."""
        return tuple(training_findings(rows, best.epoch, best.metrics.get("train_kl"), self.model_options))

    def new_state(self, weights: Mapping[str, Tensor] | None = None) -> TrainState:
        """Return the state before the first step, with these weights; those not among them are drawn from the seed."""
        config, placement = self.config, self.placement
        torch.manual_seed(config.run.seed)
        model = registry.build(self.model_name, self.model_options).to(placement.device)
        if weights is not None:
            model.load_state_dict(dict(weights), strict=False)
        model = model.to(memory_format=placement.memory_format)
        model = sync_batchnorm(model, config.optimization.sync_batchnorm, placement.device, self.distributed).train()
        if config.optimization.train == "decoder":
            freeze_encoder(model)
        perceptual = LPIPS.from_net(self.perceptual_net) if self.perceptual_net else None
        objective = Objective(config.objective, model, perceptual).to(placement.device)
        objective = objective.to(memory_format=placement.memory_format)
        return TrainState(model, objective, placement, config.optimization)

    def is_complete(self, epochs: int, steps: int, stopped_early: bool) -> bool:
        """Whether that many finished epochs and steps are all that the config asks for."""
        optimization = self.config.optimization
        if optimization.steps is not None:
            return stopped_early or steps >= optimization.steps
        return stopped_early or epochs >= optimization.epochs


def _initial_weights(config: TrainConfig) -> InitialWeights | None:
    name, given = config.model.name, config.model.init
    if given is None:
        return None
    if issubclass(registry.load(name), Prior):
        raise ConfigError(
            f"--init {given}: a prior can't begin from weights, because they belong to the latents that they were "
            "trained on\nhint: leave --init out"
        )
    return find_initial_weights(given, name, config.run.runs, config.run.out)


def resolve(config: TrainConfig, distributed: Distributed) -> Plan:
    """Choose the device, validate the options together, and fill in those of the model.

    Raises:
        AecliError: options that can't be used, or a device, compiler or package that is missing.
    """
    placement = place(config.run.device, config.run.precision, training=True)
    if config.run.deterministic:
        make_deterministic()
    validate_log(config.run.log)
    if config.run.compile == "on":
        require_compiler(placement.device)
    for flag, source in (("--data", config.data.source), ("--val-data", config.data.val_source)):
        if source is not None:
            require_source(source, flag)
    init = _initial_weights(config)
    name, model_options, encoder = resolve_model(config, init)
    model = registry.build_on_meta(name, model_options)
    validate_options(config, model, distributed, placement)
    validate_pieces(config, model)
    net = perceptual_net(config.objective)
    validate_objective(config, model, net)
    options = resolved_options(config, model_options, encoder, init)
    options["perceptual_net"] = net or options["perceptual_net"]
    return Plan(config, distributed, placement.for_training(model), place(config.run.device, "auto"), name,
                model_options, encoder, init, net, options)  # fmt: skip


def with_classes(plan: Plan, listings: Mapping[str, Listing]) -> Plan:
    """Return the plan with the names of the classes that a prior learns: the folders of its training images.

    Raises:
        ConfigError: other classes were asked for.
        DataError: no image lies in a folder, or only some do.
    """
    data, images = plan.config.data, listings["data"].images
    if data.labels == "none" or images is None:
        return plan
    if not hasattr(plan.model_options, "classes"):
        raise ConfigError(
            f"--labels {data.labels}: the prior of this model learns no classes\nhint: leave --labels out"
        )
    labels = label_images(images, data.labels)
    if labels is None:
        raise DataError(
            f"--labels {data.labels}: the images of {data.source} lie in one folder, whose name says no class\n"
            "hint: a folder a class, as in photos/cats/1.jpg and photos/dogs/2.jpg"
        )
    classes = tuple(labels.classes)
    if plan.model_options.classes not in ((), classes):
        raise ConfigError(f"--option classes: the folders of {data.source} are {name_examples(classes, len(classes))}")
    options = {**plan.options, "options": {**plan.options["options"], "classes": list(classes)}}
    return replace(plan, model_options=replace(plan.model_options, classes=classes), options=options)


def perceptual_net(config: ObjectiveConfig) -> str | None:
    """Return the network of the perceptual loss: `auto` is vgg where its weights are on this machine, else alex."""
    if not config.perceptual_weight:
        return None
    if config.perceptual_net != "auto":
        return config.perceptual_net
    return "vgg" if local_weights("vgg") else "alex"

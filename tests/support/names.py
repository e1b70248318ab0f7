"""Names of the registry."""

from aecli.models import registry

AUTOENCODERS = tuple(name for name in registry.names() if name not in registry.PRIORS)

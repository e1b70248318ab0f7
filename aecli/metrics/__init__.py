"""How near images are: one file a metric."""

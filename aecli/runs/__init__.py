"""Run folders and checkpoints: what a run holds, and how a MODEL argument finds one."""

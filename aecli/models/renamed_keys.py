"""Renamed parameters of built-in models, so that older checkpoints still load."""

_RENAMED = {
    "prior": {
        "time": "time_mlp", "read": "proj_in", "places": "pos_embed", "shift": "final_modulation", "write": "proj_out",
        "condition": "modulation", "attend": "qkv", "mix": "attention_out", "perceptron": "mlp",
    },
}  # fmt: skip


def current_key(model: object, key: str) -> str:
    """Return the current name of a tensor `key` in a checkpoint of the model called `model`.

    A key is renamed part by part, so that prefixes (`model.`, `average.module.`, `optimizer.exp_avg.`) are kept.
    """
    renamed = _RENAMED.get(model, {}) if isinstance(model, str) else {}
    return ".".join(renamed.get(part, part) for part in key.split("."))

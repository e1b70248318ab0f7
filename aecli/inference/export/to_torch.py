"""Programs of torch.export, `encoder.pt2` and `decoder.pt2`: no code of aecli's is needed to run them."""

import io
import json

import torch

from aecli.inference.export.programs import Programs


def torch_files(programs: Programs, facts: dict[str, str]) -> dict[str, bytes]:
    """Return both programs by name, with `facts` as the JSON document `aecli.json` beside the weights in each."""
    files = {}
    for name, program in (("encoder.pt2", programs.encoder), ("decoder.pt2", programs.decoder)):
        content = io.BytesIO()
        torch.export.save(program, content, extra_files={"aecli.json": json.dumps(facts)})
        files[name] = content.getvalue()
    return files

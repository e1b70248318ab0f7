"""`aecli score`."""

from functools import partial

from aecli.cli.options import Output, takes
from aecli.configs import ScoreConfig
from aecli.progress import Listener


@takes(ScoreConfig)
def score(config: ScoreConfig, listen: Listener) -> Output:
    """Rank images by how badly a model reconstructs them: what it has not learnt comes first."""
    from aecli.cli.tables import print_scores
    from aecli.inference.anomaly_scores import score_images

    report = score_images(config, listen)
    return Output(report.to_json(), partial(print_scores, report))

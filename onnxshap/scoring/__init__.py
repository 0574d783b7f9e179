"""The score stage: jobs (`jobs`), who does them (`runners`), when it is enough (`stage`), resuming (`journal`)."""

from onnxshap.scoring.stage import DECIDED, Rules, misplaced, score_groups

__all__ = ["DECIDED", "Rules", "misplaced", "score_groups"]

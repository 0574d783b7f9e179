"""What every job starts with.

- `reading`: a model and data -> a traced model, checked data. `given`: all that a job is given, and images to judge by.
- `layouts`: how data lie for a model. `subject`: what is cut of it. `preparing`: all that comes before the scoring.
- `written`: what may be written.
"""

from onnxshap.opening.given import Given
from onnxshap.opening.preparing import prepared
from onnxshap.opening.reading import ModelLike, calibration, drawn, open_model, sample
from onnxshap.opening.subject import REPAIR_IMAGES, Subject, groups_to_cut, in_bases

__all__ = [
    "REPAIR_IMAGES",
    "Given",
    "ModelLike",
    "Subject",
    "calibration",
    "drawn",
    "groups_to_cut",
    "in_bases",
    "open_model",
    "prepared",
    "sample",
]

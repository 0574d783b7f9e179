"""Models run over data sets, and what is measured of their activations.

- `feeding`: data in batches. `running`: outputs on all images.
- `holding`: how much of a model is run again where activations do not fit into the memory.
- `freeing`: any number of images at a time, where they are apart. `statistics`: means and covariances of channels.
"""

from onnxshap.calibrate.feeding import (
    activations,
    batches,
    by_image,
    bytes_per_image,
    live_bytes,
    usual_batch,
    usual_size,
)
from onnxshap.calibrate.freeing import free_batch, mixes_rows, rows_apart
from onnxshap.calibrate.holding import runs_past
from onnxshap.calibrate.running import run_all
from onnxshap.calibrate.statistics import channel_covariances, channel_means, means_of_sites, site_means

__all__ = [
    "activations",
    "batches",
    "by_image",
    "bytes_per_image",
    "channel_covariances",
    "channel_means",
    "free_batch",
    "live_bytes",
    "means_of_sites",
    "mixes_rows",
    "rows_apart",
    "run_all",
    "runs_past",
    "site_means",
    "usual_batch",
    "usual_size",
]

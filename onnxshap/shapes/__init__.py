"""The shape of every tensor, shape arithmetic as constants, and the place of the images, by running the model.

- `specs`: what the inputs declare. `trials`, `search`, `dims`: at which sizes it is run.
- `probe`, `pieces`, `samples`: the runs that tell. `baked`: batches free by name.
- `folding`, `constants`: what they make constant.
- `bodies`: which bodies of If, Loop and Scan are lifted. `shaped`: all of it as one `Shaped`.
- `doubts`: sizes that are alike by chance.
- `images`, `imagerules`, `imagewalk`: where the images lie. `batching`: any number of them.
"""

from onnxshap.shapes.probe import noise
from onnxshap.shapes.shaped import Shaped, infer
from onnxshap.shapes.specs import check_names, input_specs, placed

__all__ = ["Shaped", "check_names", "infer", "input_specs", "noise", "placed"]

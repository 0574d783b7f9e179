"""Calibration and evaluation data: files, folders of images, functions and arrays -> a `Dataset` the model can eat.

    data.npz            arrays named as the model's inputs; `labels` or `y` are the targets
    data.npy            the only input of a single-input model
    folder/             images; subfolders are the labels, if there are two or more (`Images`: normalised)
    module:function     anything below, from a function without arguments
    Dataset | mapping of arrays | (inputs, labels) | array

Whatever the way in, `check_data` is the one gate: names, dtypes, shapes, lengths, NaN. Axis 0 of every array counts
images, also where the model has a fixed batch of 1 there, or its batch on another axis (a state [2, batch, 128] is
array[n, 2, 128]). An input without a batch (a sampling rate, a threshold) is given whole for every image, a scalar as
array[n], or once for all.
"""

from onnxshap.data.checks import are_whole, check_data
from onnxshap.data.images import IMAGENET_MEAN, IMAGENET_STD, Images, Normalize
from onnxshap.data.loading import DataLike, as_dataset, load_data
from onnxshap.data.noise import random_data
from onnxshap.data.objects import INPUT_NAMES, LABEL_NAMES
from onnxshap.data.spec import InputSpec, feeds_of

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "INPUT_NAMES",
    "LABEL_NAMES",
    "DataLike",
    "Images",
    "InputSpec",
    "Normalize",
    "are_whole",
    "as_dataset",
    "check_data",
    "feeds_of",
    "load_data",
    "random_data",
]

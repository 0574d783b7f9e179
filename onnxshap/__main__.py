"""`python -m onnxshap`."""

from onnxshap.cli import main

main(prog_name="onnxshap")

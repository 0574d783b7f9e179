"""`python -m onnxshap`."""

try:
    from onnxshap.cli import main

    main(prog_name="onnxshap")
finally:  # Python remembers an interrupt of code given as text, though it was caught, and would end by that signal
    exec("")

"""The command line: options in, tables or JSON on stdout, everything else on stderr.

Exit codes: 0 ok; 1 the model, data or budget cannot be served; 2 usage; 3 verification failed; 130 interrupted.
The library is imported inside the commands, so that `--help`, usage errors and completion are quick.
"""

import sys

try:
    from onnxshap.cli.commands import main
except KeyboardInterrupt:  # what imports this is about to run it
    sys.stderr.write("onnxshap: interrupted\n")
    sys.exit(130)

__all__ = ["main"]

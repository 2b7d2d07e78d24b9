"""Tests a running Tombola server with the openai package.

    python run.py --url http://127.0.0.1:8000 --ticket-file adapters/sql.safetensors

The server has to serve the default base and the sql ticket. The tests delete their uploads.
"""

import argparse
import os
import sys
import unittest

import settings


def main() -> int:
    def flag(name: str, default: str | None) -> None:
        variable = "CLIENTS_" + name.upper().replace("-", "_")
        value = os.environ.get(variable, default)
        parser.add_argument(
            f"--{name}", default=value, required=value is None, help=f"or {variable}"
        )

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    flag("url", "http://127.0.0.1:8000")
    flag("base", "smollm2-135m")
    flag("ticket", "sql")
    flag("ticket-file", None)
    settings.use(**vars(parser.parse_args()))

    here = os.path.dirname(os.path.abspath(__file__))
    suite = unittest.defaultTestLoader.discover(here)
    result = unittest.TextTestRunner(stream=sys.stdout, verbosity=2).run(suite)
    return 0 if result.wasSuccessful() and result.testsRun > 0 else 1


if __name__ == "__main__":
    sys.exit(main())

"""A model that tells which process it runs in."""

import os
import pathlib
import sys

from broken import Fine


class Noted(Fine):
    def __init__(self, context=None, path="pid"):
        super().__init__(context)
        is_command = pathlib.Path(sys.argv[0]).name == "elasticdl"
        pathlib.Path(path).write_text(f"{os.getpid()} {os.getpid() if is_command else 'worker'}")

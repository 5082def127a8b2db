"""An argument parser that says what was meant: short errors with a suggestion, and help that ends with an example."""

import argparse
import difflib
import os
import sys
from pathlib import Path
from typing import NoReturn

from repro import ReproError, choose


class Parser(argparse.ArgumentParser):
    """Like argparse's, but a misspelt command, option or choice is answered with the closest one.

    Raises ReproError where argparse would exit. `example` is what the help ends with: lines of
    shell that run as they are pasted into a terminal in the project's folder.
    """

    def __init__(self, *args, example: str = "", **kwargs):
        super().__init__(*args, **kwargs)
        self.example = example

    def format_help(self) -> str:
        lines = "".join(f"  {line}\n" for line in self.example.splitlines())
        return super().format_help() + (f"\nexample:\n{lines}" if lines else "")

    def parse_known_args(self, args=None, namespace=None):
        """Also called for a subcommand, with what follows its name, so that errors are about it, not the whole program."""
        args = sys.argv[1:] if args is None else list(args)
        for word in args:
            self._check_option(word)
            if self._subparsers and not word.startswith("-"):
                break  # the rest is the subcommand's
        namespace, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unexpected argument {rest[0]!r}")
        return namespace, rest

    def _check_option(self, word: str) -> None:
        """Misspelt options come first: otherwise an argument that seems to be missing would be reported in their place."""
        name = word.partition("=")[0]
        known = [option for option in self._option_string_actions if option.startswith("--")]
        if name.startswith("--") and not any(option.startswith(name) for option in known):  # argparse also takes beginnings
            closest = difflib.get_close_matches(name, known, n=1)
            self.error(f"unknown option {name}." + (f" Did you mean {closest[0]}?" if closest else ""))

    def _check_value(self, action: argparse.Action, value) -> None:
        if action.choices is not None:
            choose((action.option_strings or [action.dest])[0].lstrip("-"), value, action.choices)  # its error lists them

    def error(self, message: str) -> NoReturn:
        places = [str(action.metavar or action.dest).upper() for action in self._get_positional_actions()]
        raise ReproError(f"{message}\nusage: {' '.join([self.prog, *places])} [options]; --help lists them")


def at_home(value):
    """A path that begins with `~` from the user's home, as shells leave it in `--out=~/runs`; anything else as it is."""
    return type(value)(os.path.expanduser(value)) if isinstance(value, (str, Path)) else value

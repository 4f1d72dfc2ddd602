"""`asr-jax COMMAND ...`, the same as `python -m asr_jax COMMAND ...`."""

import difflib
import importlib
import io
import sys

from asr_jax.errors import user_message
from asr_jax.text_files import one_line

# The usage of each command, and what it does.
COMMANDS = {
    "prepare": (
        "prepare SOURCE OUT [--config CONFIG]",
        "Check recordings and store them as a dataset that training reads fast.",
    ),
    "train": (
        "train CONFIG [--run DIR] [--init-from RUN|DIR] [--FIELD VALUE ...]",
        "Train a model, resuming from its latest checkpoint if there is one.",
    ),
    "import": (
        "import SOURCE OUT",
        "Write a pretrained Parakeet or Nemotron model as a folder that all commands take.",
    ),
    "evaluate": (
        "evaluate RUN [--data DATA ...] [--compare RUN|DIR] [--decoder beam]",
        "Measure the word error rate on datasets and write a report.",
    ),
    "transcribe": (
        "transcribe RUN AUDIO ... [--checkpoint ...] [--json]",
        "Print the transcripts of recordings.",
    ),
    "segment": (
        "segment RUN AUDIO --text FILE --output OUT.jsonl [--min-confidence C]",
        "Cut a long recording with a rough text into utterances to train on.",
    ),
    "export": (
        "export RUN OUT --format params [--checkpoint ...] [--quantize int8]",
        "Write a trained model to a folder of its own, in a format for other programs.",
    ),
    "fit": (
        "fit CONFIG [--target h200|a100-40|v5e-8 ...] [--largest] [--json]",
        "Compute the memory and operations of a training step, without the accelerator.",
    ),
}


def main() -> int:
    """Run the command; an error that its user can fix is one line on stderr and exit status 2."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name or word that standard output cannot encode must not end the command.
        sys.stdout.reconfigure(errors="backslashreplace")
    command, *arguments = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        print("Train and use Conformer-transducer speech recognizers in JAX.\n")
        for usage, summary in COMMANDS.values():
            print(f"  asr-jax {usage}\n      {summary}")
        print("\nRun `asr-jax COMMAND --help` for its options.")
        return 0
    if command not in COMMANDS:
        [nearest] = difflib.get_close_matches(command, COMMANDS, n=1, cutoff=0.0)
        print(f"asr-jax: unknown command {command!r}; did you mean {nearest}?", file=sys.stderr)
        return 2
    # A module cannot be named after a keyword of Python.
    module = {"import": "import_model"}.get(command, command)
    try:
        return importlib.import_module(f"asr_jax.commands.{module}").run(arguments)
    except (Exception, KeyboardInterrupt) as error:
        message = user_message(error)
        if message is None:
            raise
        print(f"asr-jax {command}: {one_line(message)}", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 2


if __name__ == "__main__":
    sys.exit(main())

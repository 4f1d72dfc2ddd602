"""`asr-jax VERB ...`, the same as `python -m asr_jax VERB ...`."""

import difflib
import importlib
import sys

from asr_jax.errors import user_message

COMMANDS = {
    "prepare": "prepare SOURCE OUT [--config CONFIG]",
    "train": "train CONFIG [--run DIR] [--init-from RUN|DIR] [--FIELD VALUE ...]",
    "evaluate": "evaluate RUN [--data DATA ...] [--compare RUN|DIR] [--decoder beam]",
    "transcribe": "transcribe RUN AUDIO ... [--checkpoint ...] [--json]",
    "export": "export RUN OUT --format params [--checkpoint ...] [--quantize int8]",
    "fit": "fit CONFIG [--target h200|a100-40|v5e-8 ...] [--largest] [--json]",
}


def main() -> int:
    """Runs the verb; what the user can mend is one line on stderr and exit status 2."""
    verb, *arguments = sys.argv[1:] or ["--help"]
    if verb in ("-h", "--help"):
        usage = "\n".join(f"  asr-jax {line}" for line in COMMANDS.values())
        print(f"Conformer-transducers in JAX.\n\n{usage}\n\nasr-jax VERB --help says more.")
        return 0
    if verb not in COMMANDS:
        near = difflib.get_close_matches(verb, COMMANDS, n=1, cutoff=0.0)
        print(f"asr-jax: no verb {verb!r}; did you mean {near[0]}?", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(f"asr_jax.commands.{verb}").run(arguments)
    except (Exception, KeyboardInterrupt) as error:
        problem = user_message(error)
        if problem is None:
            raise
        print(f"asr-jax {verb}: {problem}", file=sys.stderr)
        return 130 if isinstance(error, KeyboardInterrupt) else 2


if __name__ == "__main__":
    sys.exit(main())

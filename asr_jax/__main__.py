"""`asr-jax VERB ...`, the same as `python -m asr_jax VERB ...`."""

import difflib
import importlib
import sys

VERBS = {
    "train": "train CONFIG [--run DIR] [--FIELD VALUE ...]",
    "evaluate": "evaluate RUN --data DATA [--checkpoint best|last|STEP|average:N] [--output DIR]",
    "transcribe": "transcribe RUN AUDIO ... [--checkpoint ...] [--json]",
}


def main() -> int:
    """Runs the verb; what the user can mend is one line on stderr and exit status 2."""
    verb, *arguments = sys.argv[1:] or ["--help"]
    if verb in ("-h", "--help"):
        usage = "\n".join(f"  asr-jax {line}" for line in VERBS.values())
        print(f"Conformer-transducers in JAX.\n\n{usage}\n\nasr-jax VERB --help says more.")
        return 0
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.0)
        print(f"asr-jax: no verb {verb!r}; did you mean {near[0]}?", file=sys.stderr)
        return 2
    try:
        return importlib.import_module(f"asr_jax.commands.{verb}").run(arguments)
    except KeyboardInterrupt:
        print(f"asr-jax {verb}: interrupted", file=sys.stderr)
        return 130
    except ValueError as error:
        if not _raised_here(error):
            raise
        problem = str(error)
    except OSError as error:
        problem = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    print(f"asr-jax {verb}: {problem}", file=sys.stderr)
    return 2


def _raised_here(error: BaseException) -> bool:
    """Whether our own code raised it: a rule that the user can keep. A library's is our bug."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals["__name__"].startswith("asr_jax")


if __name__ == "__main__":
    sys.exit(main())

"""What a command says of an error that its user can mend."""


def complaint_of(error: BaseException) -> str | None:
    """The line to print; None for a bug, whose traceback is to be seen."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if isinstance(error, ValueError) and _raised_here(error):
        return str(error)
    return None


def _raised_here(error: BaseException) -> bool:
    """Whether our own code raised it: a rule that the user can keep. A library's is our bug."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals["__name__"].startswith("asr_jax")

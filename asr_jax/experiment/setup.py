"""How a run starts: everything is checked and read before anything is written or compiled."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import optax
from flax import nnx
from jax.sharding import Mesh
from orbax.checkpoint import v1 as ocp

from asr_jax.config import Config, flatten
from asr_jax.data.corpus import Corpus
from asr_jax.data.epochs import Epochs
from asr_jax.data.manifest import read_transcribed
from asr_jax.data.pipeline import Batches
from asr_jax.data.plan import TrainingPlan
from asr_jax.distributed.mesh import check_batch, local_rows, make_mesh, utterance_shards
from asr_jax.distributed.processes import code_fingerprint, is_first, require_same
from asr_jax.experiment.corpus import (
    keep_tokenizer,
    limits_of,
    training_corpus,
    with_chosen_tokenizer,
)
from asr_jax.experiment.fine_tuning import Source, forget_source, initialize_from, read_source
from asr_jax.experiment.resumed_schedule import Schedule, resumed_schedule
from asr_jax.experiment.run_directory import (
    changes,
    keep_config,
    keep_new_config,
    require_shared,
    run_metadata,
)
from asr_jax.experiment.skipped import describe_held_out, list_skipped
from asr_jax.experiment.tasks import Task, task_of
from asr_jax.experiment.training_buckets import (
    buckets_for,
    check_buckets,
    describe_buckets,
    kept_buckets,
    training_lengths,
)
from asr_jax.models.composition import split_model
from asr_jax.text import Tokenizer
from asr_jax.training import checkpoint
from asr_jax.training.loop import DevEvaluation
from asr_jax.training.optimizer import make_optimizer
from asr_jax.training.state import TrainState, abstract_state, initial_state

# The file of a run that holds the number of batches in each epoch so far.
EPOCHS = "epochs.json"


class Setup(NamedTuple):
    """Everything that a run trains with, equal on all processes."""

    config: Config
    run: Path
    task: Task
    mesh: Mesh
    corpus: Corpus
    plan: TrainingPlan
    tokenizer: Tokenizer
    optimizer: optax.GradientTransformation
    graphdef: nnx.GraphDef
    abstract: TrainState
    """Shapes, dtypes and shardings of the state."""
    source: Source | None
    """The model with whose parameters a new run starts; None for random parameters."""
    evaluation: DevEvaluation | None
    metadata: checkpoint.Metadata
    schedule: Schedule
    """The learning-rate schedule, and how it differs from that before the run resumed."""

    def batches(self, position: int) -> Batches:
        """Return the endless stream of the run's batches that starts after `position` batches."""
        epochs = Epochs(self.plan, cache_path=self.run / EPOCHS, write_cache=is_first())
        rows = functools.partial(local_rows, self.mesh)
        return self.task.batches(self.config, self.corpus, epochs, rows, position)


def suitable_mesh(config: Config) -> Mesh:
    """Return the mesh of all devices.

    Raises ValueError if the mesh does not suit the devices or the batches, or if the processes do
    not have the same config and code.
    """
    require_same({"a fingerprint of the code": code_fingerprint(), **flatten(config)})
    mesh = make_mesh(config.mesh, jax.devices())
    for utterances in config.data.bucket_utterances:
        check_batch(utterances, mesh, config.train.accumulate)
    return mesh


def set_up(config: Config, run: Path, mesh: Mesh, *, init_from: Path | None) -> Setup:
    """Check run directory and data, then write config.json and the tokenizer.

    A resumed run's config.json is written by `restore`. Raises ValueError. A start that fails
    leaves only files that the next start replaces.
    """
    require_shared(run)
    schedule = resumed_schedule(config, run)
    config = schedule.config

    task = task_of(config)
    buckets = kept_buckets(config, run)
    corpus, tokenizer = training_corpus(
        config, run, limits=limits_of(config, buckets), read=task.read
    )
    config = with_chosen_tokenizer(config, tokenizer)
    if buckets is None:
        parts = utterance_shards(mesh) * config.train.accumulate
        lengths = training_lengths(config, corpus)
        buckets = buckets_for(config, lengths, tokenizer.vocabulary_size, parts=parts)
    check_buckets(buckets, config, mesh, run)
    optimizer = make_optimizer(config.optimizer, steps=config.train.steps)
    abstract = abstract_state(config, tokenizer.vocabulary_size, optimizer, mesh)
    graphdef, _ = split_model(config, tokenizer.vocabulary_size)
    source = read_source(init_from, run, config, tokenizer, abstract.params)
    evaluation = task.evaluation(config, graphdef, tokenizer, mesh, corpus)
    if config.data.test:
        read_transcribed(config.data.test, "data.test")  # fails now, not after days of training
    metadata = run_metadata(config, corpus, buckets)
    require_same(
        {
            f"a fingerprint of data.train = {config.data.train}": metadata["utterances"],
            "optimizer.decay_steps": config.optimizer.decay_steps,
            "the shapes of batches": str(buckets),
        }
    )

    keep_new_config(run, config)
    keep_tokenizer(run)
    return Setup(
        config=config,
        run=run,
        task=task,
        mesh=mesh,
        corpus=corpus,
        plan=task.plan(config, corpus, buckets),
        tokenizer=tokenizer,
        optimizer=optimizer,
        graphdef=graphdef,
        abstract=abstract,
        source=source,
        evaluation=evaluation,
        metadata=metadata,
        schedule=schedule,
    )


def restore(
    setup: Setup, checkpointer: ocp.training.Checkpointer
) -> tuple[TrainState | None, list[str]]:
    """Return the state of the run's newest readable checkpoint, or None, and warnings.

    Raises CheckpointError as `checkpoint.restore` does and if the disk has no room for another
    checkpoint, and UsageError if the checkpoint was saved with a config whose training cannot be
    resumed with this one. Then writes the config.json of a run that resumes.
    """
    state, warnings = checkpoint.restore(checkpointer, setup.abstract)
    if state is not None:
        saved = checkpoint.saved_metadata(checkpointer, int(state.step))
        warnings += changes(saved, setup.metadata, setup.corpus, setup.run)
    if state is None or int(state.step) < setup.config.train.steps:
        needed = setup.abstract
        if state is not None:
            needed = checkpoint.saved_part(checkpointer, needed)
        checkpoint.require_room(setup.run, setup.config.checkpoint, needed)
    if state is not None:
        keep_config(setup.run, setup.config)
    return state, warnings


def describe(
    setup: Setup,
    state: TrainState | None,
    warnings: Sequence[str],
    *,
    note: Callable[[str], None],
) -> None:
    """Report the model, the data and the warnings, and list the utterances that are left out."""
    corpus, params = setup.corpus, setup.abstract.params
    for warning in warnings:
        note(f"warning: {warning}")
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    note(
        f"{setup.run}: {len(corpus.utterances)} utterances, {setup.task.amount(corpus)}; "
        f"{count / 1e6:.2f} million parameters; {setup.mesh.size} {jax.default_backend()} device(s)"
    )
    tokenizer = setup.tokenizer
    note(f"{setup.run / 'tokenizer.model'}: {tokenizer.vocabulary_size} labels ({tokenizer.kind})")
    if folding := tokenizer.folding:
        note(
            f"{setup.run / 'tokenizer.model'}: folds text ({folding}); transcripts are trained on, "
            "and references scored, in this form"
        )
    list_skipped(corpus, setup.run, resumed=state is not None, note=note)
    if corpus.held_out:
        note(describe_held_out(corpus))
    is_language_model = setup.config.objective.is_language_model
    optimizer, steps = setup.config.optimizer, setup.config.train.steps
    for line in describe_buckets(setup.plan, is_language_model=is_language_model, steps=steps):
        note(line)
    if optimizer.warmup_steps >= (optimizer.decay_steps or steps):
        note(
            f"optimizer.warmup_steps = {optimizer.warmup_steps}: the learning rate rises in all of "
            f"the {optimizer.decay_steps or steps} steps"
        )
    if state is not None:
        note(f"resuming from step {int(state.step)} of {setup.config.train.steps}")
        if setup.schedule.note:
            note(setup.schedule.note)
    for line in setup.source.notes if setup.source else ():
        note(line)


def first_state(setup: Setup, checkpointer: ocp.training.Checkpointer) -> TrainState:
    """Return a new run's state; if it starts from another model, save it first."""
    config, tokenizer = setup.config, setup.tokenizer
    state = initial_state(config, tokenizer.vocabulary_size, setup.optimizer, setup.mesh)
    if setup.source:
        state = initialize_from(setup.source, setup.run, state, config, tokenizer)
    checkpoint.keep_frozen(checkpointer, state, config.optimizer)
    if setup.source:
        # Resuming must not need the source.
        checkpoint.save(checkpointer, state, dev_metric=None, metadata=setup.metadata)
    else:
        forget_source(setup.run)
    return state

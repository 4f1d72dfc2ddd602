"""Load a trained model and print the words of recordings with their times.

python examples/transcribe.py runs/quickstart recording.wav ...
"""

import sys

import asr_jax

run, *recordings = sys.argv[1:]
model = asr_jax.load(run)
for recording, transcript in zip(recordings, model.transcribe(recordings, timestamps=True)):
    print(f"{recording}: {transcript.text}")
    for word in transcript.words:
        times = f"{word.start_seconds:7.2f} to {word.end_seconds:6.2f} s"
        print(f"  {times}  {word.text}  (confidence {word.confidence:.2f})")

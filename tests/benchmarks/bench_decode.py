"""Greedy decoding: time for a token with the cache against the full pass, by length.

The quickstart's body (D 96, 8 experts), 8 sources of 24 tokens, one thread, the process's CPU time.
The last line compares the cached step at the longest length with the one at the shortest: near 1 is
flat.

    python -m tests.benchmarks.bench_decode [--repeats 5]
"""

import argparse
import json
import statistics
import time

import torch

from mmtrain.models.model import ModelConfig, MultiTaskModel, TaskSpec, build_model
from mmtrain.models.multimodel import Config
from mmtrain.predict.decoding import Stepper
from tests.mmtrain.predict.full_pass import FullPass

BATCH, SOURCE, VOCABULARY, COMMAND = 8, 24, 1500, 2
LENGTHS = (32, 64, 128, 256)
PROBED = 4  # steps timed at each length


def build() -> MultiTaskModel:
    task = TaskSpec(name="translate", input_net="text", output_net="text", command_id=COMMAND)
    config = ModelConfig(body=Config(num_heads=4), vocab_size=VOCABULARY)
    return build_model(config, [task], 0).eval()


def step_times_ms(model: MultiTaskModel, *, cached: bool) -> dict[int, float]:
    """Mean of the `PROBED` steps that follow after each number of tokens."""
    inputs = torch.randint(3, VOCABULARY, (BATCH, SOURCE))
    lengths = torch.full((BATCH,), SOURCE)
    encoded = model.encode("translate", inputs=inputs, input_lengths=lengths)
    stepper = (Stepper if cached else FullPass)(model, task="translate", inputs=encoded)
    tokens_BT = torch.randint(3, VOCABULARY, (BATCH, LENGTHS[-1] + PROBED))
    tokens_BT[:, 0] = COMMAND
    taken, done = dict[int, float](), 0
    for length in LENGTHS:
        given_BT, done = tokens_BT[:, done:length], length + PROBED
        if isinstance(stepper, FullPass):
            stepper.tokens += given_BT.unbind(1)
        else:
            for last_B in given_BT.unbind(1):
                stepper.next(last_B)
        start = time.process_time()
        for t in range(length, length + PROBED):
            stepper.next(tokens_BT[:, t])
        taken[length] = (time.process_time() - start) * 1e3 / PROBED
    return taken


def report(name: str, *, ours_ms: float, peer_ms: float) -> None:
    line = {"name": name, "ours": round(ours_ms, 2), "peer": round(peer_ms, 2)}
    line |= {"ratio": round(ours_ms / peer_ms, 3), "unit": "ms", "better": "lower"}
    print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=5)
    repeats: int = parser.parse_args().repeats
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build()
    runs: dict[bool, list[dict[int, float]]] = {True: [], False: []}
    with torch.no_grad():
        for _ in range(repeats):
            for cached, times in runs.items():
                times.append(step_times_ms(model, cached=cached))
    medians = {
        cached: {length: statistics.median(run[length] for run in times) for length in LENGTHS}
        for cached, times in runs.items()
    }
    for length in LENGTHS:
        report(
            f"decode_token_at_{length}_against_full_pass",
            ours_ms=medians[True][length],
            peer_ms=medians[False][length],
        )
    report(
        f"decode_token_at_{LENGTHS[-1]}_against_at_{LENGTHS[0]}",
        ours_ms=medians[True][LENGTHS[-1]],
        peer_ms=medians[True][LENGTHS[0]],
    )


if __name__ == "__main__":
    main()

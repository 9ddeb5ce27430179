"""What the audits of records cost: seconds and peak memory for a stage of N rollouts, in arrays or from a run folder.

python benchmarks/audits.py                             1 million rollouts in arrays
python benchmarks/audits.py --stored FOLDER             write such a run folder, 2.6 GB
python benchmarks/audits.py --run FOLDER                audit it
"""

import argparse
import resource
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from forkpoint.audits.table import run_audits
from forkpoint.records import Contents, Records
from forkpoint.seeds import Key, content_hash
from forkpoint.store import DATABASE, RunWriter
from forkpoint.store.columns import stage_records

GROUP = 16
PER_UPDATE = 1000
TOKENS = 200
WORDS = ("so", "we", "add", "two", "numbers", "and", "look", "whether", "this", "holds", "then", "carry", "one", "over")


def text(place: int) -> str:
    """About 600 characters that depend on the place alone."""
    draw = np.random.Generator(np.random.Philox(key=place)).integers(len(WORDS), size=130)
    return " ".join(WORDS[word] for word in draw)


def in_arrays(count: int) -> Records:
    """A stage as arrays; texts are made when they are asked for."""
    draw = Key.root(0).child("audits").generator()
    place = np.arange(count)
    correct = (draw.random(count) < 0.3 + 0.4 * place / count).astype(np.int8)

    def contents(rows: np.ndarray) -> Iterator[Contents]:
        return (Contents(text=text(row), answer=str(row), reference=str(row), prompt="?") for row in rows.tolist())

    return Records(
        run="benchmark", stage="rl", ids=np.array([b"%032x" % row for row in range(count)]),
        has=frozenset({"updates", "groups", "correct", "outcomes", "reward", "length", "stops", "difficulty", "text",
                       "answer", "reference", "prompt", "tokens"}),
        update=(place // (GROUP * PER_UPDATE)).astype(np.int32), purposes=("train",),
        purpose=np.zeros(count, dtype=np.int8), problem=(place // GROUP % 50_000).astype(np.uint64),
        group=(place // GROUP).astype(np.uint64), length=draw.integers(50, 400, count).astype(np.int32),
        correct=correct, outcome=(1 - correct).astype(np.int8), stop=np.zeros(count, dtype=np.int8),
        reward=correct.astype(np.float64), difficulty=(place % 5).astype(np.float32),
        kept=np.ones(count, dtype=np.bool_), contents=contents,
    )  # fmt: skip


def stored(folder: Path, count: int) -> None:
    """A run of one stage; its rows are written without the library's checks, which take longer."""
    with RunWriter.create(folder, name="benchmark", identity={}) as writer:
        writer.add_stage("rl", kind="rl")
    connection = sqlite3.connect(folder / DATABASE)
    connection.execute("PRAGMA synchronous = OFF")
    problems = [content_hash("benchmark", number) for number in range(min(50_000, count // GROUP + 1))]
    connection.executemany(
        "INSERT INTO problems VALUES (?, 'benchmark', '\"?\"', '1', ?, '{}')",
        [(key, float(place % 5)) for place, key in enumerate(problems)],
    )
    bodies = [text(place) for place in range(997)]
    blob, mask = bytes(4 * TOKENS), bytes(TOKENS)
    ids = [f"{place * 2654435761 % 2**64:032x}" for place in range(count)]
    connection.executemany(
        "INSERT INTO rollouts VALUES (?, ?, 'rl', 'train', ?, ?, ?, ?, NULL, 0, ?, ?, ?, ?, '[]', 1.0, ?, 'eos', '00')",
        (
            (ids[i], f"{i // GROUP:032x}", i // (GROUP * PER_UPDATE), i % (GROUP * PER_UPDATE), i % GROUP,
             problems[i // GROUP % len(problems)], mask[:40], blob, blob, mask, bodies[i % 997])
            for i in range(count)
        ),
    )  # fmt: skip
    connection.executemany(
        "INSERT INTO verdicts VALUES (?, ?, ?, NULL, '4', '', '{}', NULL)",
        ((name, "correct" if i % 3 else "wrong", int(i % 3 > 0)) for i, name in enumerate(ids)),
    )
    connection.executemany(
        "INSERT INTO credits (rollout_id, reward) VALUES (?, ?)",
        ((name, float(i % 3 > 0)) for i, name in enumerate(ids)),
    )
    connection.commit()
    connection.close()


def main() -> None:
    """Prints seconds of loading and of each audit, and the peak memory of the process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=1_000_000)
    parser.add_argument("--run", type=Path, help="a run folder that was made before: its stage `rl` is read")
    parser.add_argument("--stored", type=Path, help="only write a run folder, here")
    chosen = parser.parse_args()
    if chosen.stored:
        stored(chosen.stored, chosen.rollouts)
        return
    began = time.perf_counter()
    records = stage_records(chosen.run, "rl") if chosen.run else in_arrays(chosen.rollouts)
    print(
        f"{len(records)} rollouts loaded in {time.perf_counter() - began:.1f} s, {time.process_time():.1f} s of a core"
    )
    for result in run_audits(records):
        print(f"{result.audit:20s} {result.seconds:6.1f} s  {len(result.findings)} findings")
    print(f"together {time.perf_counter() - began:.1f} s, {time.process_time():.1f} s of a core")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory {peak:.0f} MiB")


if __name__ == "__main__":
    main()

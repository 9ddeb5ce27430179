"""Three forked processes under gloo, which form groups of 1, 2 and 3 ranks and run every loss and aggregation.

    python gloo_worker.py FOLDER        writes FOLDER/found.json

This process computes no gradient before it forks, so that imports are paid for once.
"""

import hashlib
import json
import multiprocessing
import os
import sys
from datetime import timedelta
from functools import cache
from pathlib import Path

import torch
import torch.distributed as distributed
from invariance_cases import (
    AGGREGATIONS,
    LOSSES,
    distance,
    gradient,
    objective_of,
    policy_of,
    rows_of,
)

from forkpoint.training.components import accumulate
from forkpoint.training.ranks import ProcessGroup, accumulate_share, shares

SIZES = (1, 2, 3)
POLICIES = (("decoder", "float32"), ("table", "float64"))


@cache
def tried():
    """Policy, rows and objective of each case; the last one of a policy leaves ranks without any row."""
    cases = []
    for kind, dtype in POLICIES:
        for loss in LOSSES:
            objective = objective_of(loss, kind, dtype)
            cases += [((kind, dtype), rows_of(kind, loss, name, "token"), objective) for name in AGGREGATIONS]
        few = rows_of(kind, "reinforce", "constant", "token")[:2]
        cases.append(((kind, dtype), few, objective_of("reinforce", kind, dtype)))
    return cases


@cache
def alone(number):
    """The sums and the gradient of a case in one process and one packing."""
    (kind, dtype), rows, objective = tried()[number]
    sums = accumulate(policy_of(kind, dtype), rows, objective, max_tokens=1 << 20)
    return sums, gradient(policy_of(kind, dtype))


def compare(ranks):
    """The largest differences of one group to a single process; only its first rank computes that one."""
    found = {"float32": [], "float64": [], "sums": 0.0, "disagreements": 0, "empty_shares": 0}
    for number, ((kind, dtype), rows, objective) in enumerate(tried()):
        sums = accumulate_share(policy_of(kind, dtype), rows, objective, max_tokens=200, ranks=ranks)
        mine = gradient(policy_of(kind, dtype))
        digests = ranks.gather(hashlib.sha256(mine.numpy().tobytes()).hexdigest() + json.dumps(sums))
        if ranks.rank == 0:
            expected, right = alone(number)
            assert set(sums) == set(expected)
            found[dtype].append(distance(mine, right))
            gaps = [abs(sums[name] - value) / max(1.0, abs(value)) for name, value in expected.items() if name != "padding_share"]  # fmt: skip  # noqa: E501
            found["sums"] = max(found["sums"], *gaps)
            found["disagreements"] += len(set(digests)) > 1
            found["empty_shares"] += [] in shares(rows, ranks.size)
    return found


def work(rank, folder):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=max(SIZES),
        timeout=timedelta(seconds=120),
    )  # fmt: skip
    groups = {size: distributed.new_group(list(range(size))) for size in SIZES}
    found = {size: compare(ProcessGroup(group)) for size, group in groups.items() if rank < size}
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found))
    distributed.barrier()
    distributed.destroy_process_group()


def main(folder):
    if Path("/sys/class/net/lo").exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=work, args=(rank, folder)) for rank in range(max(SIZES))]
    for child in children:
        child.start()
    for child in children:
        child.join()
    return max(abs(child.exitcode) for child in children)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

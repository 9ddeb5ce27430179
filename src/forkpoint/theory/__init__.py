"""The exact theory of backtracking (Wei and Kim, arXiv 2606.22938).  Numpy and scipy only.

`graphs`       the path-star multigraph as edge states with legal successors
`classes`      policies tied over branches and lanes; `solving` their exact hitting times, values and visits
`chains`       the class-reduced chain in time: the chance of a hit within T steps
`rationals`    the same by fractions and another algorithm: the oracle of the float code
`tables`       full policy tables: values, visits, advantages for every target; `horizon` the same with a horizon
`gradients`    exact policy gradients and imitation gradients; `flows` training in the limit of many samples
`search`       the agent that never enters a directed edge twice; `simulation` walks, many at once

Steps are edges walked, the first edge from the source to the fork included.  Logits and gaps are in nats.
"""

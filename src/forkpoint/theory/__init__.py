"""The exact theory of backtracking: graphs, chains, values, gradients, flows, search.  Numpy and scipy only."""

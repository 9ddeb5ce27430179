"""Postmortems: what a rollout's outcome turned on, what would have been better, and whether a re-rollout agrees."""

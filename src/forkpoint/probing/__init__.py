"""What answers a probe with real policies, samplers and verifiers."""

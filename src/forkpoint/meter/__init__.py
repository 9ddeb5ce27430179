"""Credit against the truth: how much of the true advantage each rule lets through, and at what cost."""

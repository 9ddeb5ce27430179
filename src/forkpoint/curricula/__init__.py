"""Which problems next: what is known of their pass rates, and what that says about the next batch.

Everything here reads `correct`, never a reward, and is a pure function of frozen records.
"""

"""Audits: what can be wrong with a scorer, found before a model finds it."""

from forkpoint.audits.attacks import Item
from forkpoint.audits.scorer import FAULTS, ScorerAudit, Subject, audit_scorer, sums

__all__ = ["FAULTS", "Item", "ScorerAudit", "Subject", "audit_scorer", "sums"]

"""Self-checks of the learning loop: before a run, every N updates, and alone on a recipe or a run."""

from forkpoint.doctor.check import Check, DoctorError
from forkpoint.doctor.hook import DoctorHook
from forkpoint.doctor.subject import FULL, SHORT, Subject, draw_subject
from forkpoint.doctor.table import CHECKS, examine

__all__ = ["CHECKS", "FULL", "SHORT", "Check", "DoctorError", "DoctorHook", "Subject", "draw_subject", "examine"]

"""Engines that draw rollouts."""

"""Damaged and forged files by the hundred thousand: ``make fuzz``."""

"""Holds a backend to the specification: draws calls, asks the backend in a process of its own, and keeps the smallest call that breaks a clause."""

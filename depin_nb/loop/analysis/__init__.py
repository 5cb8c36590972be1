"""Reads a loop's body before anything is spent: what it keeps and hands on, and whether that forbids several workers."""
